"""What surrounds every command: a client for its work, errors as one line, Ctrl-C as a way to leave.

Invariant: an error ends in one line on standard error and the exit code that `exits` gives it; never in a traceback.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import typer

from durable.cli.exits import Exit, exit_of_error
from durable.cli.terminal import Terminal
from durable.client import Backoff, Client
from durable.client.outage import OnOutage
from durable.errors import DurableError, ServerUnreachable

# Somebody sits in front of it: a server that is not there is reported soon.
_RETRY = Backoff(patience=5.0)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn an error of ours into its line and exit code, and a closed pipe into a quiet end."""
    try:
        yield
    except DurableError as error:
        Terminal().error(error.message)
        raise typer.Exit(exit_of_error(error)) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough. Nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.OK) from None


def tell_outage(trouble: DurableError | None) -> None:
    """Say on standard error that the server is away, or back."""
    if trouble is None:
        words = "The server answers again."
    elif isinstance(trouble, ServerUnreachable):
        words = "The server does not answer; trying again …"
    else:
        words = f"The server is not ready ({trouble.message.rstrip('.')}); trying again …"
    Terminal().note(words)


def attend(
    url: str | None,
    work: Callable[[Client], Awaitable[Exit]],
    *,
    on_interrupt: Callable[[], Exit] | None = None,
    on_outage: OnOutage = tell_outage,
) -> None:
    """Do a command's work with a client, and end with its exit code.

    Args:
        url: The server; as `Client` finds it by default.
        work: What to do.
        on_interrupt: Says what Ctrl-C leaves behind.
        on_outage: Says that the server is away, and that it is back.

    Raises:
        typer.Exit: Always.
    """

    async def connected() -> Exit:
        async with Client(url, retry=_RETRY, on_outage=on_outage) as client:
            return await work(client)

    with reporting():
        try:
            code = asyncio.run(connected())
        except KeyboardInterrupt:
            code = on_interrupt() if on_interrupt else Exit.INTERRUPTED
        raise typer.Exit(code)
