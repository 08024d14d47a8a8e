"""The sweeper: finds runs that lost their worker or their wake-up, and calls that nobody answered in time.

It runs in every process that hosts agents; where none of these lives, all others stand in for the one thing that needs
no agent: a lost run that was told to end. Whoever comes first sweeps, the others leave it at that: nobody leads, so
nobody's loss delays a sweep. What it does to a run is conditional on what it saw, in one script, so two sweepers at
once do no harm. Each sweep is bounded, and lost workers come first: somebody waits for the next chunk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

from redis.exceptions import ResponseError

from durable.decisions import DEADLINE, OUT_OF_TIME, Answer, Decisions
from durable.errors import (
    AlreadyDecided,
    RunEnded,
    RunExpired,
    StoreUnavailable,
    UnknownCall,
    UnknownRun,
)
from durable.runs import WAKE_GRACE, RunRecord, Runs
from durable.scripts import REQUEUE
from durable.settings import Settings
from durable.store import Store, text
from durable.suspension import OnExpiry

log = logging.getLogger(__name__)

LARGEST_SWEEP: Final = 500
"""Runs of each kind in one sweep, at most."""
REMEMBERED: Final = 3
"""For so many intervals it is known that somebody sweeps."""


class Sweeper:
    """Looks for lost runs, again and again.

    Args:
        store: Where the runs are.
        settings: How often.
        dispatch: Wakes somebody who executes the run.
        name: This process.
    """

    def __init__(
        self, store: Store, settings: Settings, dispatch: Callable[[RunRecord], Awaitable[None]], name: str
    ) -> None:
        self._store = store
        self._settings = settings
        self._dispatch = dispatch
        self._name = name
        self._runs = Runs(store, settings)
        self._decisions = Decisions(store, self._runs)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._sweep_for_ever(), name="sweeper")

    async def stop(self) -> None:
        """End; another process goes on."""
        if self._task is None:
            return
        while not self._task.done():  # a client of Redis may swallow a cancellation, and the sweep goes on
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.2)
        await self._leave()

    async def _leave(self) -> None:
        try:
            async with self._store.guard(1.0):
                swept_by = await self._store.redis.get(self._store.keys.sweeper)
                if swept_by is not None and text(swept_by) == self._name:
                    await self._store.redis.delete(self._store.keys.sweeper)  # or it would seem that somebody sweeps
        except StoreUnavailable:
            return  # the mark runs out by itself

    async def _sweep_for_ever(self) -> None:
        while True:
            begun = time.monotonic()
            try:
                if await self._is_due() and await self._trustworthy():
                    await self.sweep()
            except Exception as error:  # noqa: BLE001 - whatever it was, lost runs must be looked for again
                log.warning("the sweep is postponed: %s", type(error).__name__)
            pause = self._settings.sweep_seconds
            await asyncio.sleep(max(pause / 2, begun + pause - time.monotonic()))

    async def sweep(self) -> int:
        """Look once. Returns how many runs were dispatched.

        A queue may be so long that to wake its runs takes longer than until the next sweep. Then some are left for
        that, as leases may have run out meanwhile.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        keys, dispatched = self._store.keys, 0
        until = time.monotonic() + self._settings.sweep_seconds / 2
        for run_id, token in await self._lost():
            dispatched += await self._requeue(run_id, token)
        for run_id, call, question, what in await self._decisions.due(LARGEST_SWEEP):
            dispatched += await self._expire(run_id, call, question, what)
        unwoken = await self._due(keys.wakeups)
        await self._end_cancelled(unwoken)
        for run_id in unwoken:
            dispatched += await self._requeue(run_id, "")
            if time.monotonic() > until:
                break
        await self._forget()
        return dispatched

    async def _lost(self) -> list[tuple[str, str]]:
        """The runs whose leases have run out, with their tokens. Those that were told to end have ended then."""
        lost = [member.rpartition(":") for member in await self._due(self._store.keys.leases)]
        await self._end_cancelled([run_id for run_id, _, _ in lost])
        return [(run_id, token) for run_id, _, token in lost]

    async def _end_cancelled(self, run_ids: Sequence[str]) -> None:
        """End those of some runs that were told to end, unless somebody has claimed them: nobody is needed for it."""
        if not run_ids:
            return
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hexists(self._store.keys.run(run_id), "cancelRequested")
            told = await pipe.execute()
        for run_id in [run_id for run_id, asked in zip(run_ids, told, strict=True) if asked]:
            try:
                if await self._runs.cancel(run_id):
                    log.info("run %s was told to end, and nobody executes it: it is cancelled", run_id)
            except (UnknownRun, RunExpired, RunEnded):
                continue  # somebody was faster

    async def _forget(self) -> None:
        """Take runs, and background tasks, whose retention has passed out of the indexes."""
        keys = self._store.keys
        for expiries, index in ((keys.expiries, keys.runs), (keys.task_expiries, keys.tasks)):
            members = await self._due(expiries)
            if not members:
                continue
            async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
                for member in members:
                    run_id, status, agent, thread = member.split(":")
                    indexes = [index(), index(status=status), index(agent=agent)]
                    for name in [*indexes, *([keys.runs(thread=thread)] if thread else [])]:
                        pipe.zrem(name, run_id)
                pipe.zrem(expiries, *members)
                await pipe.execute()

    async def _expire(self, run_id: str, call: str, question: str, what: OnExpiry) -> int:
        """Nobody has answered a call in time: do what its tool wants then."""
        log.info("run %s: nobody answered a call in time: %s", run_id, what)
        try:
            reason = OUT_OF_TIME if what == "decline" else None
            answer = Answer(kind="fail" if what == "cancel" else what, reason=reason, actor=DEADLINE)
            record = await self._decisions.decide(run_id, call, answer, question=question, due=True)
            if what == "cancel":
                await self._runs.cancel(run_id, reason=OUT_OF_TIME, actor=DEADLINE)
                return 0
        except (UnknownRun, RunExpired, UnknownCall, RunEnded, AlreadyDecided):
            return 0  # somebody was faster
        if record is None:
            return 0
        await self._dispatch(record)
        return 1

    async def _due(self, index: str) -> list[str]:
        """What an index has that was due before now, by the store's own clock."""
        async with self._store.guard():
            seconds, micros = await self._store.redis.time()
            now = int(seconds) * 1000 + int(micros) // 1000
            members = await self._store.redis.zrangebyscore(index, "-inf", now, start=0, num=LARGEST_SWEEP)
        return [text(member) for member in cast("list[Any]", members)]

    async def _requeue(self, run_id: str, token: str) -> int:
        keys = self._store.keys
        again = await self._store.run(
            REQUEUE,
            [keys.run(run_id), keys.leases, keys.wakeups],
            [run_id, token, int(WAKE_GRACE * 1000), keys.status_indexes],
        )
        if not again:
            return 0
        log.info("run %s %s; it is dispatched", run_id, "lost its worker" if token else "was not woken")
        await self._dispatch(await self._runs.get(run_id))
        return 1

    async def _is_due(self) -> bool:
        """Whether nobody has begun a sweep just now; then it is this process that does."""
        pause = self._settings.sweep_seconds * 1000
        key, remembered = self._store.keys.sweeper, int(max(REMEMBERED * pause, 1000))
        async with self._store.guard():
            if await self._store.redis.pttl(key) > remembered - pause / 2:
                return False
            await self._store.redis.set(key, self._name, px=remembered)
        return True

    async def _trustworthy(self) -> bool:
        """Whether leases can have been renewed: right after Redis was away, they all look expired."""
        try:
            async with self._store.guard():
                info = await self._store.redis.info("server")
        except ResponseError:
            return True  # a server that does not tell (INFO forbidden, or not there): leases are all there is to go by
        return float(info.get("uptime_in_seconds", 1e9)) > self._settings.lease_seconds


class StandIn(Sweeper):
    """What a process that hosts no agents does where nobody sweeps: it ends lost runs that were told to end.

    It leaves no mark, so that nobody takes it for a sweeper.

    Args:
        store: Where the runs are.
        settings: How often.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__(store, settings, _nobody, "")

    async def sweep(self) -> int:
        """Look once. Nothing is dispatched.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        await self._lost()
        return 0

    async def _leave(self) -> None:
        """It has left no mark."""

    async def _is_due(self) -> bool:
        async with self._store.guard():
            return not await self._store.redis.exists(self._store.keys.sweeper)


async def _nobody(record: RunRecord) -> None:
    """There is nobody to execute it."""
