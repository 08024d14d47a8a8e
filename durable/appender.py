"""Sending what the writers of a process have gathered: the batches of all of them together, in one pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from redis.exceptions import NoScriptError

from durable.errors import StoreUnavailable
from durable.probes import Point, Probe, silent
from durable.scripts import Script
from durable.settings import Settings
from durable.store import PASSING, Store
from durable.writer import RunWriter

log = logging.getLogger(__name__)


class Appender:
    """Sends the batches of all writers of a process. Belongs to one event loop."""

    def __init__(self, store: Store, settings: Settings, probe: Probe = silent) -> None:
        self.store = store
        self.settings = settings
        self.probe = probe
        self._ready: list[RunWriter] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="appender")

    async def stop(self) -> None:
        """End. Batches that were not acknowledged are left; their attempts have to have ended before."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def enqueue(self, writer: RunWriter) -> None:
        """Send the writer's batch with the next pipeline."""
        self._ready.append(writer)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            writers, self._ready = self._ready, []
            pause = 0.02
            while writers := [writer for writer in writers if writer.under_way is not None]:
                writers = await self._attempt(writers)
                if writers:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 0.5)

    async def _attempt(self, writers: Sequence[RunWriter]) -> list[RunWriter]:
        """Send the batches once; returns the writers whose batches have to be sent again."""
        calls = [writer.call() for writer in writers]
        self._pass(writers, before=True)
        try:
            async with (
                asyncio.timeout(self.settings.lease_seconds),
                self.store.redis.pipeline(transaction=False) as pipe,
            ):
                for script, keys, args in calls:
                    pipe.evalsha(script.sha, len(keys), *keys, *args)
                replies = await pipe.execute(raise_on_error=False)
        except PASSING as error:
            log.warning("chunks wait for Redis: %s", type(error).__name__)
            return list(writers)
        self._pass(writers, before=False)
        again: list[RunWriter] = []
        for writer, (script, _, _), reply in zip(writers, calls, replies, strict=True):
            if isinstance(reply, NoScriptError):
                await self._load(script)
                again.append(writer)
            elif isinstance(reply, PASSING):
                again.append(writer)
            elif isinstance(reply, Exception):
                log.error("run %s: Redis refused a batch: %s", writer.lease.run_id, type(reply).__name__)
                writer.fail(StoreUnavailable("Redis refused to store the run's chunks."))
            else:
                writer.acknowledge(reply)
        return again

    def _pass(self, writers: Sequence[RunWriter], *, before: bool) -> None:
        """Pass the points around what is sent."""
        for writer in writers:
            batch = writer.under_way
            self.probe(Point.APPEND_BEFORE if before else Point.APPEND_AFTER)
            if batch is not None and any(note.checkpoint for note in batch.notes):
                self.probe(Point.CHECKPOINT_BEFORE if before else Point.CHECKPOINT_AFTER)
            if batch is not None and any(note.waiting for note in batch.notes):
                self.probe(Point.ANNOUNCE_BEFORE if before else Point.ANNOUNCE_AFTER)
            if batch is not None and batch.ending is not None:
                self.probe(Point.FINISH_BEFORE if before else Point.FINISH_AFTER)

    async def _load(self, script: Script) -> None:
        try:
            await self.store.redis.script_load(script.text)
        except PASSING:
            return  # the next attempt finds out
