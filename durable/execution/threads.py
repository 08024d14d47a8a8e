"""The threads of synchronous tools, and those that calls which were given up have left busy.

A thread can't be stopped: a tool that blocks keeps its thread after its run was cancelled, handed back or lost.
Invariant: each thread that is still busy `patience` seconds after the end of its attempt is counted until its call
returns, and when more than half of all are so, whoever executes runs with them is told, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class AttemptThreads(Executor):
    """The threads of a process, as one attempt uses them.

    Args:
        pool: Has the threads.
    """

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._calls: set[Future[Any]] = set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Make a call in a thread."""
        call = self._pool.submit(fn, *args, **kwargs)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def give_up(self) -> set[Future[Any]]:
        """Drop the calls that have not begun; those that go on."""
        return {call for call in list(self._calls) if not call.cancel() and not call.done()}


class ToolThreads:
    """The threads of one process.

    Args:
        count: Synchronous tools at a time.
        patience: Seconds that a call has to return after its attempt has ended.
        on_hung: Called, in the event loop, when more than half of the threads are busy with calls that do not return.
    """

    def __init__(self, count: int, patience: float, on_hung: Callable[[], None] = lambda: None) -> None:
        self._count = count
        self._patience = patience
        self._on_hung = on_hung
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="tool")
        self._given_up: set[Future[Any]] = set()
        self._hung: set[Future[Any]] = set()
        self._told = False

    @property
    def busy(self) -> int:
        """How many threads make calls that were given up."""
        return len(self._given_up)

    def of_attempt(self) -> AttemptThreads:
        """The threads for one attempt."""
        return AttemptThreads(self._pool)

    def give_up(self, threads: AttemptThreads) -> None:
        """An attempt has ended: none of its calls is waited for any more."""
        calls = threads.give_up()
        if not calls:
            return
        self._given_up |= calls
        for call in calls:
            call.add_done_callback(self._given_up.discard)
            call.add_done_callback(self._hung.discard)
        asyncio.get_running_loop().call_later(self._patience, self._count_hung, calls)

    def close(self) -> None:
        """Begin no more calls. Those that go on are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count_hung(self, calls: set[Future[Any]]) -> None:
        hung = {call for call in calls if not call.done()}
        if not hung:
            return
        self._hung |= hung
        for call in hung:
            if call.done():
                self._hung.discard(call)  # it has returned between
        count = len(self._hung)
        log.warning("%d of %d tool threads are busy with calls that were given up and don't return", count, self._count)
        if count * 2 > self._count and not self._told:
            self._told = True
            self._on_hung()
