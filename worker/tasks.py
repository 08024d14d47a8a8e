"""The task that executes a run, and what Celery's monitors are told of its end."""

from __future__ import annotations

import logging
from typing import Any, Final, Protocol

from celery import Celery, Task
from celery.exceptions import Ignore

from durable.dispatch import EXECUTE
from durable.execution import Outcome

_TRACE: Final = logging.getLogger("celery.app.trace")


def reworded(record: logging.LogRecord) -> bool:
    """A filter of Celery's log that drops nothing. Of a run that has not completed Celery would say that its task was
    ignored, as if nobody had executed it."""
    if isinstance(record.args, dict) and record.args.get("description") == "ignored":
        record.args = {**record.args, "description": "ended: its run did not complete"}
    return True


class RunHost(Protocol):
    """Who executes runs."""

    def execute(self, run_id: str) -> Outcome | None: ...


def register(app: Celery, host: Any) -> None:
    """Define the task.

    Args:
        app: Celery's app.
        host: Gives the `RunHost` of this process.
    """
    _TRACE.addFilter(reworded)

    @app.task(name=EXECUTE, shared=False, bind=True, max_retries=0, ignore_result=True)
    def execute(self: Task[Any, Any], run_id: str) -> str:
        """Execute a run. A message for a run that is not to be executed here and now does nothing."""
        runs: RunHost = host()
        outcome = runs.execute(run_id)
        match outcome:
            case Outcome.FAILED:
                # The run has ended and its failure is in its log: for Celery this is news, not an error to handle.
                self.send_event("task-failed", exception="the run failed; see its log", traceback="")
                raise Ignore
            case Outcome.CANCELLED:
                self.send_event("task-revoked", terminated=True, signum="", expired=False)
                raise Ignore
            case None:
                return "nothing to do"
            case _:
                return outcome.value
