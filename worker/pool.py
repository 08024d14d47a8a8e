"""Celery's thread pool, made fit for runs: it starts and stops the host, ends one job without the others, and tells the
worker at once when a slot is free.

The pool of Celery can't terminate a job; then cold shutdown, soft shutdown and revoking from Flower fail. And with
prefetching off, a worker looks for work only when its loop turns, up to a second after a slot has become free.
"""

from __future__ import annotations

import itertools
import logging
import os
from typing import Any, Final, Protocol

from celery.concurrency import thread
from celery.concurrency.base import apply_target
from celery.worker import state

from .identity import run_of_task

log = logging.getLogger(__name__)

EXIT_HUNG: Final = 71
"""Exit code of a worker most of whose threads for tools hang."""
ORDERS: Final[Any] = state
"""Where Celery's main loop looks for the exit code that it is to stop with. Its stubs know none."""


class JobHost(Protocol):
    """Who executes the runs of the pool's jobs."""

    @property
    def busy_threads(self) -> int: ...
    def start(self) -> None: ...
    def cancel(self, run_id: str) -> None: ...
    def hand_back(self, run_id: str) -> None: ...
    def drain(self, grace: float) -> None: ...
    def stop(self) -> None: ...


class Job(thread.ApplyResult):  # type: ignore[name-defined,misc]  # the stubs lack it
    """A job of the pool. Ending it is the pool's business."""

    def terminate(self, signum: int) -> None:
        """Do nothing: `AgentPool.terminate_job` was called before."""


class AgentPool(thread.TaskPool):
    """One thread a run; the thread waits for the host."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._host: JobHost = self.app.durable.host
        self._grace: float = self.app.durable.settings.grace_seconds
        self._hub: Any = None
        self._tasks: dict[int, str] = {}
        # Celery addresses a job by its process id. These are no process ids; they start where none can be.
        self._ids = itertools.count(2**31)

    def on_start(self) -> None:
        """Start the host before the first job."""
        self._host.start()

    def on_stop(self) -> None:
        """Warm shutdown: runs may end within the grace time, then they are handed back."""
        self._stop(self._grace)

    def on_terminate(self) -> None:
        """Cold shutdown: hand all runs back now."""
        self._stop(0)

    def _stop(self, grace: float) -> None:
        self._host.drain(grace)
        super().on_stop()
        self._host.stop()
        if self._host.busy_threads:
            # Python would wait for them. All that is left to do is done: the runs are handed back.
            os._exit(int(ORDERS.should_stop or 0))

    def register_with_event_loop(self, hub: Any) -> None:
        """Remember whom to wake."""
        self._hub = hub

    def on_apply(  # type: ignore[override]  # the stubs know no result
        self,
        target: Any,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> Job:
        """Execute a job in a thread of the pool."""
        job = next(self._ids)
        # `args` are those of Celery's tracer: task name, task id, …
        self._tasks[job] = str(args[1]) if args and len(args) > 1 else ""
        work = self.executor.submit(self._work, job, target, args or (), kwargs, callback, accept_callback)  # type: ignore[attr-defined]
        return Job(work)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:  # noqa: ARG002
        """End one job: as cancelled when its task was revoked, else by handing its run back."""
        task_id = self._tasks.get(pid)
        if task_id is None:
            return
        if task_id in state.revoked:
            self._host.cancel(run_of_task(task_id))
        else:
            self._host.hand_back(run_of_task(task_id))

    def _work(self, job: int, target: Any, args: Any, kwargs: Any, callback: Any, accept_callback: Any) -> None:
        try:
            apply_target(target, args, kwargs, callback, accept_callback, pid=job, getpid=os.getpid)
        finally:
            del self._tasks[job]
            if self._hub is not None:
                self._hub.call_soon(_nothing)


def renew() -> None:
    """Have the worker stop as SIGTERM does, with an exit code of its own: whoever supervises it starts it again."""
    log.error("most threads for tools hang: this worker hands its runs back and ends")
    if ORDERS.should_stop is None and ORDERS.should_terminate is None:
        ORDERS.should_stop = EXIT_HUNG


def _nothing() -> None:
    """Turn the hub's loop once."""
