"""All that the runs of a thread say from now on, of those that are going on and of those that begin.

Each run is read from its log, as by any reader; a notice tells that one has begun. A notice that was lost is made good
by a look at the thread's runs. There is no cursor over a thread: who comes hears what is said from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Final

from durable.errors import DurableError, RunExpired, ThreadConflict, UnknownRun
from durable.journal import Entry
from durable.observer import Hub, Listener, Observer
from durable.runs import RunRecord, Runs, check_thread_id
from durable.store import Store, text

LOOKED_AT: Final = 50
"""How many of the newest runs of a thread are looked at, to find those that have begun."""


class ThreadFeed:
    """Reads threads as they go on.

    Args:
        store: Where they are.
        runs: The runs of the deployment.
        hub: What all readers of the process listen with.
        observer: Reads the runs.
    """

    def __init__(self, store: Store, runs: Runs, hub: Hub, observer: Observer) -> None:
        self._store = store
        self._runs = runs
        self._hub = hub
        self._observer = observer

    async def pages(
        self, thread_id: str, *, resource_id: str | None = None, silence: float | None = None
    ) -> AsyncGenerator[list[Entry]]:
        """What its runs say. The first page is empty: nothing that is said after it is missed. A page is of one run.
        Ends when the hub dismisses its readers.

        Args:
            thread_id: The thread. There need not be one yet.
            resource_id: Whose it has to be, if that matters.
            silence: Seconds without news after which an empty page comes; None for never.

        Raises:
            InvalidRequest: The id is not one.
            ThreadConflict: The thread belongs to another resource.
            StoreUnavailable: Redis does not answer.
        """
        known = await self._runs.thread(check_thread_id(thread_id))
        if known and resource_id is not None and known["resource"] != resource_id:
            raise ThreadConflict
        async with self._hub.listen(self._store.keys.thread_channel(thread_id), text) as notices:
            reading = _Reading(self._runs, self._hub, self._observer, thread_id, resource_id)
            try:
                await reading.begin(notices)
                yield []
                async for page in reading.pages(silence):
                    yield page
            finally:
                await reading.end()


class _Reading:
    """One reader of a thread: a task for each run, and one for the notices; each hands on a page at a time."""

    def __init__(self, runs: Runs, hub: Hub, observer: Observer, thread_id: str, resource_id: str | None) -> None:
        self._runs = runs
        self._hub = hub
        self._observer = observer
        self._thread_id = thread_id
        self._resource_id = resource_id
        self._said: asyncio.Queue[list[Entry] | DurableError | None] = asyncio.Queue(maxsize=1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._followed: set[str] = set()
        self._since = 0

    async def begin(self, notices: Listener[str]) -> None:
        """Follow what is going on, and hear what begins."""
        records = await self._newest()
        self._since = max((record.created_ms for record in records), default=0)
        for record in records:
            self._followed.add(record.run_id)
            if not record.status.ended:
                self._start(self._read(record.run_id, record.last_seq))
        self._start(self._hear(notices))

    async def end(self) -> None:
        """Read no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def pages(self, silence: float | None) -> AsyncGenerator[list[Entry]]:
        """What is said."""
        while True:
            try:
                async with asyncio.timeout(silence):
                    page = await self._said.get()
            except TimeoutError:
                yield []
                continue
            if isinstance(page, DurableError):
                raise page
            if page is None:
                return
            yield page

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._safely(work), name="thread-feed")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _safely(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (UnknownRun, RunExpired):
            return  # it was there, and is forgotten
        except DurableError as error:
            await self._said.put(error)

    async def _hear(self, notices: Listener[str]) -> None:
        while not self._hub.dismissed:
            for run_id in notices.take():
                self._follow(run_id)
            if notices.missed:
                notices.missed = False
                for record in reversed(await self._newest()):
                    if record.created_ms > self._since or not record.status.ended:
                        self._follow(record.run_id)
            if not notices.heard:
                await notices.wait(None)
        await self._said.put(None)

    def _follow(self, run_id: str) -> None:
        if run_id not in self._followed:
            self._followed.add(run_id)
            self._start(self._read_new(run_id))

    async def _read_new(self, run_id: str) -> None:
        if self._resource_id in {None, (await self._runs.get(run_id)).resource_id}:
            await self._read(run_id, 0)

    async def _read(self, run_id: str, after: int) -> None:
        async with aclosing(self._observer.pages(run_id, after)) as pages:
            async for page in pages:
                await self._said.put(page)

    async def _newest(self) -> list[RunRecord]:
        found, _ = await self._runs.page(thread=self._thread_id, limit=LOOKED_AT)
        return found
