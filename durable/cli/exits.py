"""What the exit codes of `durable` mean. They are part of the interface: scripts branch on them."""

from __future__ import annotations

from enum import IntEnum

from durable.errors import DurableError, ServerUnreachable, StoreUnavailable
from durable.views import RunStatus


class Exit(IntEnum):
    """One code for each way to end. 2 is what the command line parser itself uses."""

    OK = 0  # the run completed, or goes on without us, or there was nothing to follow
    RUN_FAILED = 1
    USAGE = 2
    RUN_CANCELLED = 3
    REFUSED = 4  # the server said no, or this process is not set up
    UNREACHABLE = 5  # no server, or a server without its store
    UNSOUND = 6  # `doctor` found what must not be
    INTERRUPTED = 130  # by Ctrl-C, before there was a run to leave


def exit_of_run(status: RunStatus) -> Exit:
    """The code for a run in this state."""
    match status:
        case RunStatus.FAILED:
            return Exit.RUN_FAILED
        case RunStatus.CANCELLED:
            return Exit.RUN_CANCELLED
        case _:
            return Exit.OK


def exit_of_error(error: DurableError) -> Exit:
    """The code for an error."""
    return Exit.UNREACHABLE if isinstance(error, ServerUnreachable | StoreUnavailable) else Exit.REFUSED
