"""The one event loop of a worker process, and the run layer that lives in it.

Pool threads only wait: each hands its run to this loop. A loop for each task would break the HTTP clients that agents
share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from durable.announcements import keep_announced
from durable.backend import Backend
from durable.definition import AgentDefinition
from durable.errors import StoreUnavailable
from durable.execution import Engine, Outcome
from durable.settings import Settings
from durable.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
EXIT_STALLED = 70
"""Exit code of a worker whose event loop stood still."""


class Host:
    """Executes runs for the pool's threads.

    Args:
        settings: Times, limits and addresses.
        definitions: The agents of this worker, by name.
        queues: The queues that it reads; None for all of its agents.
        on_hung: Called, in the loop, when most of the tools' threads hang.
    """

    def __init__(
        self,
        settings: Settings,
        definitions: Mapping[str, AgentDefinition],
        queues: Collection[str] | None = None,
        *,
        on_hung: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._definitions = definitions
        self._queues = queues
        self._on_hung = on_hung
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="durable-loop", daemon=True)
        self._backend: Backend | None = None
        self._announcing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the loop, and announce the agents."""
        self._thread.start()
        self._call(self._open()).result()

    def execute(self, run_id: str) -> Outcome | None:
        """Execute a run; waits until it ends or is handed back."""
        return self._call(self._engine.execute(run_id)).result()

    def cancel(self, run_id: str) -> None:
        """End a run as cancelled, if it is executed here."""
        self._loop.call_soon_threadsafe(self._engine.cancel, run_id)

    def hand_back(self, run_id: str) -> None:
        """Give a run back, if it is executed here."""
        self._loop.call_soon_threadsafe(self._engine.hand_back, run_id)

    def drain(self, grace: float) -> None:
        """Begin no more runs; let those under way go on for `grace` seconds, then hand them back. Returns when none
        is left."""
        self._call(self._engine.drain(grace)).result()

    def stop(self) -> None:
        """Close everything and end the loop."""
        self._call(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def busy_threads(self) -> int:
        """How many threads are busy with tools' calls that were given up. They keep a process from ending."""
        return self._engine.busy_threads

    @property
    def _engine(self) -> Engine:
        if self._backend is None or self._backend.engine is None:
            raise RuntimeError("the host is not started")
        return self._backend.engine

    async def _open(self) -> None:
        store = Store.of(self._settings)
        backend = Backend(
            store, self._settings, self._definitions, in_process=False, on_stall=_exit, on_hung=self._on_hung
        )
        await backend.__aenter__()
        self._backend = backend
        announcing = keep_announced(
            backend.announcements, self._definitions.values(), self._engine.owner, self._settings, self._queues
        )
        self._announcing = asyncio.get_running_loop().create_task(announcing, name="announce")

    async def _close(self) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
        if self._backend is not None:
            try:
                await self._backend.announcements.leave(self._engine.owner, self._definitions, self._queues)
            except StoreUnavailable:
                log.info("this worker's liveness runs out by itself")
            await self._backend.__aexit__()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _exit() -> None:
    """Leave at once: an event loop that stands still can't be stopped, and its runs are given back."""
    os._exit(EXIT_STALLED)
