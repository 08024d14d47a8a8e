"""What the indexes of a deployment have, and no run.

Invariant: nothing is written, memory is bounded; what looks wrong is looked at again, with what says so, before it is
told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, cast

from durable.doctor.finding import Finding
from durable.store import Store, text
from durable.views import RunStatus

PAGE: Final = 200
"""Keys, entries or members that are read at once."""
PAUSE: Final = 0.3
"""Seconds before what is about to be done is looked at again."""

_LIVE: Final = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SUSPENDED)


class Strays:
    """Looks for what belongs to no run.

    Args:
        store: Where the indexes are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def findings(self) -> AsyncIterator[Finding]:
        """Look at all indexes once.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        for look in (self._runs, self._calls, self._places, self._woken):
            async for finding in look():
                yield finding

    async def _runs(self) -> AsyncIterator[Finding]:
        """What the indexes of living runs have, and no record has. (Expired runs leave the others when those are
        read.)"""
        keys = self._store.keys
        for status in _LIVE:
            for index in (keys.runs(status=status), keys.tasks(status=status)):
                async for run_id in self._members(index):
                    if not await self._fits(index, run_id, run_id, {status}):
                        yield Finding(run_id, "index", f"It is in the index of {status} runs, and its record is not.")
        async for member in self._members(keys.leases):
            run_id, _, token = member.rpartition(":")
            if not await self._fits(keys.leases, member, run_id, {RunStatus.RUNNING}, token):
                yield Finding(run_id, "state", f"There is a lease of attempt {token}, which is not running.")
        async for run_id in self._members(keys.wakeups):
            if not await self._fits(keys.wakeups, run_id, run_id, {RunStatus.QUEUED, RunStatus.SUSPENDED}):
                yield Finding(run_id, "state", "There is a wake-up, and no run that waits for it.")

    async def _calls(self) -> AsyncIterator[Finding]:
        """What the indexes of calls that wait have, and no run has."""
        for index in (self._store.keys.pending, self._store.keys.deadlines):
            async for member in self._members(index):
                run_id, _, call = member.partition(":")
                if not await self._waits(index, member, run_id, call):
                    yield Finding(run_id, "calls", f"An index has the call {call}, which does not wait.")

    async def _places(self) -> AsyncIterator[Finding]:
        """Tasks that have a place under a limit, or wait for one, and are not there any more: nobody else is given
        it."""
        start = self._store.keys.limit("")
        async for name, kind in self._named(start):
            limit = name.removeprefix(start)
            if kind == "set":
                async for run_id in self._members_of_set(name):
                    if not await self._holds(name, run_id):
                        yield Finding(run_id, "limit", f"It has a place under the limit {limit}, and is not executed.")
            else:
                async for run_id in self._members(name):
                    if not await self._fits(name, run_id, run_id, {RunStatus.QUEUED, RunStatus.RUNNING}):
                        yield Finding(run_id, "limit", f"It waits under {limit}, and is not there to take a place.")

    async def _woken(self) -> AsyncIterator[Finding]:
        """Runs that are to be dispatched, and are gone."""
        gone = await self._gone()
        if gone:
            await asyncio.sleep(PAUSE)
            gone &= await self._gone()
        for run_id in sorted(gone):
            yield Finding(run_id, "state", "It is to be dispatched at once, and there is no such run.")

    async def _gone(self) -> set[str]:
        """The runs of the list of those to be dispatched that have no record."""
        found: set[str] = set()
        keys, at = self._store.keys, 0
        while True:
            async with self._store.guard():
                rows = cast("list[bytes]", await self._store.redis.lrange(keys.woken, at, at + PAGE - 1))
                async with self._store.redis.pipeline(transaction=False) as pipe:
                    for run_id in rows:
                        pipe.exists(keys.run(text(run_id)))
                    there = await pipe.execute()
            found |= {text(run_id) for run_id, exists in zip(rows, there, strict=True) if not exists}
            at += PAGE
            if len(rows) < PAGE:
                return found

    async def _holds(self, places: str, run_id: str) -> bool:
        """Whether a run may have a place under a limit; also when it has none any more."""
        async with self._store.guard(), self._store.redis.pipeline(transaction=True) as pipe:
            pipe.sismember(places, run_id)
            pipe.hget(self._store.keys.run(run_id), "status")
            member, status = await pipe.execute()
        # One that is not to wait has its place from the beginning; the place of a lost worker stays its task's.
        return not member or (status is not None and text(status) in {RunStatus.QUEUED, RunStatus.RUNNING})

    async def _named(self, start: str) -> AsyncIterator[tuple[str, str]]:
        """Keys whose names start so, with their types. One may come twice."""
        for kind in ("set", "zset"):
            cursor = 0
            while True:
                async with self._store.guard():
                    cursor, names = await self._store.redis.scan(cursor, match=f"{start}*", count=PAGE, _type=kind)
                for name in names:
                    yield text(name), kind
                if not cursor:
                    break

    async def _members_of_set(self, name: str) -> AsyncIterator[str]:
        """The members of a set. One may come twice."""
        cursor = 0
        while True:
            async with self._store.guard():
                cursor, rows = await self._store.redis.sscan(name, cursor, count=PAGE)
            for member in rows:
                yield text(member)
            if not cursor:
                return

    async def _waits(self, index: str, member: str, run_id: str, call: str) -> bool:
        """Whether a call waits as an index says; also when the index does not say so any more."""
        async with self._store.guard(), self._store.redis.pipeline(transaction=True) as pipe:
            pipe.zscore(index, member)
            pipe.hget(self._store.keys.run(run_id), "status")
            pipe.hget(self._store.keys.calls(run_id), f"s:{call}")
            score, status, state = await pipe.execute()
        waits = state is not None and state.startswith(b"pending ") and status is not None
        return score is None or (waits and text(status) in _LIVE)

    async def _fits(
        self, index: str, member: str, run_id: str, statuses: set[RunStatus], token: str | None = None
    ) -> bool:
        """Whether a run is as an index says; also when the index does not say so any more."""
        async with self._store.guard(), self._store.redis.pipeline(transaction=True) as pipe:
            pipe.zscore(index, member)
            pipe.hmget(self._store.keys.run(run_id), ["status", "token"])
            score, values = await pipe.execute()
        status, newest = (None if value is None else text(value) for value in values)
        return score is None or (status in statuses and token in {None, newest})

    async def _members(self, index: str) -> AsyncIterator[str]:
        """The members of a sorted set. One may come twice."""
        cursor = 0
        while True:
            async with self._store.guard():
                cursor, rows = await self._store.redis.zscan(index, cursor, count=PAGE)
            for member, _ in rows:
                yield text(member)
            if not cursor:
                return
