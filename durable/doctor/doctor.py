"""Going through all runs of a deployment.

Invariant: nothing is written, memory is bounded, and what is told is so: a run is judged by a snapshot of one moment,
and what looks wrong is looked at again before it is told, as workers go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final, cast

from durable import ledger
from durable.doctor.finding import Finding
from durable.doctor.log import LogReview, Recorded
from durable.doctor.record import Snapshot, Upward, Wait, is_whole, judge
from durable.doctor.strays import PAGE, Strays
from durable.errors import LedgerCorrupt
from durable.journal import Entry, Rows
from durable.runs import RunRecord
from durable.runs.record import RUN_ID, TASK
from durable.store import Store, text
from durable.views import RunStatus

_LIVE: Final = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.SUSPENDED)
PAUSE: Final = 0.3
"""Seconds before a run that looks wrong is looked at again."""


class Doctor:
    """Looks at the runs of a deployment.

    Args:
        store: Where they are.

    Attributes:
        examined: Runs that were looked at so far.
    """

    def __init__(self, store: Store) -> None:
        self.examined = 0
        self._store = store

    async def findings(self) -> AsyncGenerator[Finding]:
        """Look at everything once, and tell what is wrong, as it is found.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async for run_id in self._run_ids():
            self.examined += 1
            for finding in await self._confirmed(run_id):
                yield finding
        async for finding in Strays(self._store).findings():
            yield finding

    async def examine(self, run_id: str) -> set[Finding]:
        """What is wrong with one run now; nothing when there is none.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        snapshot = await self._snapshot(run_id)
        if snapshot is None:
            return set()
        found = set(judge(snapshot))
        if not is_whole(snapshot.record):
            return found
        review = LogReview(snapshot.record, snapshot.files)
        async for entry in self._entries(run_id, snapshot.record.last_seq):
            found |= set(review.take(entry))
        found |= set(review.end())
        for call in snapshot.calls:
            if ledger.is_judgement(call):
                continue
            found |= set(review.compare(call, await self._recorded(run_id, call)))
        found |= set(review.compare_answers())
        if found and not await self._exists(run_id):
            return set()  # it expired meanwhile
        return found

    async def _confirmed(self, run_id: str) -> list[Finding]:
        found = await self.examine(run_id)
        if found:
            await asyncio.sleep(PAUSE)
            found &= await self.examine(run_id)
        return sorted(found)

    async def _run_ids(self) -> AsyncIterator[str]:
        """All runs that have a record. A run may come twice."""
        start, end = self._store.keys.run("\0").split("\0")
        cursor = 0
        while True:
            async with self._store.guard():
                cursor, names = await self._store.redis.scan(cursor, match=f"{start}*{end}", count=PAGE, _type="HASH")
            for name in names:
                run_id = text(name).removeprefix(start).removesuffix(end)
                if RUN_ID.fullmatch(run_id):
                    yield run_id
            if not cursor:
                return

    async def _snapshot(self, run_id: str) -> Snapshot | None:
        keys, token, names = self._store.keys, b"", set[str]()
        own = {
            "run": keys.run(run_id),
            "request": keys.request(run_id),
            "log": keys.log(run_id),
            "checkpoints": keys.checkpoints(run_id),
            "ledger": keys.ledger(run_id),
            "calls": keys.calls(run_id),
            "files": keys.files(run_id),
            "tombstone": keys.tombstone(run_id),
        }
        while True:
            async with self._store.guard():
                agent, created, thread, kind, parent, place = await self._store.redis.hmget(
                    own["run"], ["agent", "createdAt", "threadId", "kind", "parentRunId", "parentCall"]
                )
                above = text(parent or b"?")
                runs = keys.tasks if text(kind or b"") == TASK else keys.runs
                async with self._store.redis.pipeline(transaction=True) as pipe:
                    pipe.hgetall(own["run"])
                    pipe.zscore(keys.leases, f"{run_id}:{text(token)}")
                    pipe.zscore(keys.wakeups, run_id)
                    pipe.zscore(runs(), run_id)
                    pipe.zscore(runs(agent=text(agent or b"?")), run_id)
                    pipe.hget(keys.thread(text(thread or b"?")), "live")
                    pipe.lpos(keys.thread_queue(text(thread or b"?")), run_id)
                    pipe.llen(own["checkpoints"])
                    pipe.hkeys(own["ledger"])
                    pipe.hgetall(own["calls"])
                    pipe.hkeys(own["files"])
                    pipe.hvals(keys.children(run_id))
                    pipe.hmget(keys.run(above), ["status", "createdAt"])
                    pipe.hget(keys.children(above), run_id)
                    pipe.hexists(keys.ledger(above), _told_as(cast("bytes | None", place)))
                    for index in (keys.pending, keys.deadlines):
                        for call in sorted(names):
                            pipe.zscore(index, f"{run_id}:{call}")
                    for status in RunStatus:
                        pipe.zscore(runs(status=status), run_id)
                    for name in own.values():
                        pipe.ttl(name)
                    replies = await pipe.execute()
            fields = {text(name): value for name, value in replies[0].items()}
            if not fields:
                return None
            asked, files = {text(name): value for name, value in replies[9].items()}, replies[10]
            called = {name[2:] for name in asked if name.startswith("s:")}
            if fields.get("token", b"") == token and called == names and fields.get("parentRunId") == parent:
                break
            # The lease was looked for under another token, or calls that wait, or its parent, were not looked for.
            token, names = fields.get("token", b""), called
        lease, wakeup, listed, listed_for_agent, live, queued_at, checkpoints, calls = replies[1:9]
        count = len(names)
        children, (parent_status, parent_created), counted, is_told = replies[11:15]
        places = replies[15 : 15 + count], replies[15 + count : 15 + 2 * count]
        rest = replies[15 + 2 * count :]
        scores, lifetimes = rest[: len(RunStatus)], rest[len(RunStatus) :]
        score = float(created or -1)
        return Snapshot(
            record=RunRecord(run_id, fields),
            leased=lease is not None,
            woken=wakeup is not None,
            statuses=frozenset(status for status, found in zip(RunStatus, scores, strict=True) if found is not None),
            listed=listed == score,
            listed_for_agent=listed_for_agent == score,
            lifetimes=dict(zip(own, lifetimes, strict=True)),
            checkpoints=checkpoints,
            calls=tuple(text(call) for call in calls),
            files=frozenset(text(name) for name in files),
            waits=tuple(_wait(call, asked, *found) for call, *found in zip(sorted(names), *places, strict=True)),
            thread_live=live is not None and text(live) == run_id,
            thread_queued=queued_at is not None,
            begun=len(children),
            under_way=children.count(b"live"),
            upward=None
            if parent_status is None
            else Upward(
                live=text(parent_status) in _LIVE,
                # A retry goes on with what was begun before it, and was given what that had come to by then.
                adopted=int(parent_created or 0) > int(created or 0),
                under_way=counted == b"live",
                told=bool(is_told),
            ),
        )

    async def _entries(self, run_id: str, last_seq: int) -> AsyncIterator[Entry]:
        """The log as it was when its last seq was this one."""
        after, key = "-", self._store.keys.log(run_id)
        while True:
            async with self._store.guard():
                rows = cast("Rows", await self._store.redis.xrange(key, after, "+", count=PAGE))
            for entry_id, fields in rows:
                entry = Entry.of_stream(run_id, entry_id, fields)
                if entry.first > last_seq:
                    return
                yield entry
                after = f"({text(entry_id)}"
            if len(rows) < PAGE:
                return

    async def _recorded(self, run_id: str, call: str) -> Recorded:
        async with self._store.guard():
            entry = cast("bytes | None", await self._store.redis.hget(self._store.keys.ledger(run_id), call))
        if ledger.is_answer(call):
            return Recorded.ANSWERED
        try:
            outcome = None if entry is None else ledger.decode(entry)
        except LedgerCorrupt:
            return Recorded.UNREADABLE
        if outcome is None:
            return Recorded.STARTED
        if outcome.task is not None:
            return Recorded.ASKED
        if outcome.suspended is None:
            return Recorded.ENDED
        return Recorded.ASKED if outcome.suspended.announced else Recorded.TO_BE_ASKED

    async def _exists(self, run_id: str) -> bool:
        async with self._store.guard():
            return bool(await self._store.redis.exists(self._store.keys.run(run_id)))


def _wait(call: str, fields: Mapping[str, bytes], inbox: float | None, deadline: float | None) -> Wait:
    """A call, from its fields."""
    state = text(fields[f"s:{call}"]).split(" ")
    since, _, due = text(fields[f"t:{call}"]).partition(" ")
    step, place = int(state[1]), int(state[2])
    return Wait(
        call=call,
        pending=state[0] == "pending",
        asked=ledger.key(step, call, place),
        answered=ledger.answer_key(step, call, place),
        since=int(since),
        due=int(due) if due else None,
        inbox=inbox,
        deadline=deadline,
    )


def _told_as(place: bytes | None) -> str:
    """The name in the ledger of its parent of what a run came to."""
    if place is None:
        return "?"
    step, round_, call = text(place).split(" ", 2)
    return ledger.answer_key(int(step), call, int(round_))
