"""The runs of a deployment: the operations that need no lease.

A run's record is the truth; the sorted sets of runs are its indexes, changed in the same scripts.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, cast

import orjson

from durable.checkpoint import usage_at
from durable.chunks import encode_body
from durable.chunks.base import StepResult, Usage
from durable.chunks.lifecycle import Abort, AbortPayload, Finish, FinishPayload, TurnOutput
from durable.errors import (
    InvalidRequest,
    LeaseLost,
    LimitReached,
    RunConflict,
    RunEnded,
    RunExpired,
    ThreadBusy,
    ThreadConflict,
    UnknownFile,
    UnknownRun,
)
from durable.files import RunFile
from durable.positions import Position, batches
from durable.runs.record import (
    RUN_ID,
    TASK,
    NewRun,
    RunRecord,
    RunRequest,
    check_run_id,
    check_terms,
    check_thread,
    new_run_id,
)
from durable.runs.reports import Report
from durable.scripts import CANCEL, CREATE, IDLE
from durable.settings import Settings
from durable.store import Store, text
from durable.translate.steps import usage_of
from durable.views import RunStatus

WAKE_GRACE = 2.0
"""Seconds after which a queued run's wake-up is taken for lost."""

PARENT_CANCELLED = "The run that started it was cancelled."

_OF_CANCEL = ("lastSeq", "usage", "cancelRequested", "parentRunId", "parentCall", "toolName", "agent")

_BRIEF = (
    "agent", "status", "reason", "token", "lastSeq", "createdAt", "startedAt", "finishedAt", "usage", "error",
    "tripwire", "metadata", "retryOf", "parentRunId", "threadId", "kind", "queue", "retention", "cancelRequested",
    "resourceId", "notBefore", "asked", "maxTokens", "maxSeconds", "msUsed", "budget", "behind", "begat",
    "toolName", "parentCall", "disposition", "limits", "retriesUsed",
)  # fmt: skip


class Runs:
    """The runs of a deployment."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    async def create(self, new: NewRun) -> tuple[RunRecord, bool]:
        """Create a run, once. Returns its record and whether this call created it.

        Raises:
            InvalidRequest: The run id is not one, or a value can't be stored as JSON.
            RunConflict: The id or key belongs to another request.
            RunExpired: The id belongs to a run that has expired.
            ThreadBusy: Its thread has a run that it is not to wait for; `details` tell which.
            ThreadConflict: Its thread belongs to another resource.
            StoreUnavailable: Redis does not answer. Repeating with the same id or key is safe.
        """
        check_thread(new.request)
        check_terms(new.request)
        keys, run_id = self._store.keys, check_run_id(new_run_id() if new.run_id is None else new.run_id)
        idempotency = (
            keys.idempotency(new.agent, hashlib.sha256(new.idempotency_key.encode()).hexdigest())
            if new.idempotency_key
            else keys.run(run_id)
        )
        fields, of_task = _fields(new, run_id), new.kind == TASK
        if new.idempotency_key:
            fields["idempotency"] = idempotency  # it is forgotten with the run
        with as_json():
            digest, request = new.request.digest(new.agent, new.metadata), new.request.to_json()
            if new.metadata:
                fields["metadata"] = orjson.dumps(dict(new.metadata))
        verdict, found, *made = await self._store.run(
            CREATE,
            [
                keys.run(run_id),
                keys.request(run_id),
                keys.tombstone(run_id),
                keys.tasks() if of_task else keys.runs(),
                keys.tasks(agent=new.agent) if of_task else keys.runs(agent=new.agent),
                keys.wakeups,
                idempotency,
                keys.checkpoints(run_id),
                keys.ledger(run_id),
                *(
                    [
                        keys.checkpoints(new.retry_of),
                        keys.ledger(new.retry_of),
                        keys.run(new.retry_of),
                        keys.calls(new.retry_of),
                        keys.calls(run_id),
                    ]
                    if new.retry_of
                    else []
                ),
            ],
            [
                run_id,
                digest,
                request,
                int(WAKE_GRACE * 1000),
                keys.task_status_indexes if of_task else keys.status_indexes,
                *_flat(fields),
            ],
        )
        match text(verdict):
            case "conflict":
                raise RunConflict("This run id or idempotency key was used for a different request.")
            case "expired":
                raise RunExpired
            case "foreign":
                raise ThreadConflict
            case "orphan":
                raise LeaseLost
            case "full":
                raise LimitReached(limit=text(found))
            case "busy":
                raise ThreadBusy(runId=text(found), status=text(made[0]))
            case "created" if not (new.retry_of or new.request.thread_id or "watched" in fields):
                return RunRecord(run_id, _as_created(fields, digest, *made)), True
            case outcome:
                return await self.get(text(found)), outcome == "created"

    async def get(self, run_id: str) -> RunRecord:
        """The record of a run.

        Raises:
            UnknownRun: There is none.
            RunExpired: There was one.
            StoreUnavailable: Redis does not answer.
        """
        if not RUN_ID.fullmatch(run_id):
            raise UnknownRun
        keys = self._store.keys
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.run(run_id))
            pipe.exists(keys.tombstone(run_id))
            fields, tombstone = await pipe.execute()
        if fields:
            return RunRecord(run_id, {name.decode(): value for name, value in fields.items()})
        raise RunExpired if tombstone else UnknownRun

    async def request(self, run_id: str) -> RunRequest:
        """What a run was asked to do.

        Raises:
            UnknownRun: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            data = await self._store.redis.get(self._store.keys.request(run_id))
        if data is None:
            raise UnknownRun
        return RunRequest.model_validate_json(data)

    async def checkpoints(self, run_id: str) -> list[bytes]:
        """The entries of a run's checkpoints, as they were written.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            entries = await self._store.redis.lrange(self._store.keys.checkpoints(run_id), 0, -1)
        return cast("list[bytes]", entries)

    async def ledger(self, run_id: str) -> dict[str, bytes]:
        """The recorded outcomes of a run's tool calls.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            entries = await self._store.redis.hgetall(self._store.keys.ledger(run_id))
        return {text(field): value for field, value in cast("dict[bytes, bytes]", entries).items()}

    async def file(self, run_id: str, file_id: str) -> RunFile:
        """A file that a chunk of a run names.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            UnknownFile: The run has no file of this name.
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            value = await cast("Any", self._store.redis.hget(self._store.keys.files(run_id), file_id))
        if value is None:
            await self.get(run_id)
            raise UnknownFile
        return RunFile.decode(file_id, value)

    async def exchanges(self, thread_id: str, count: int, *, start: int = 0) -> list[bytes]:
        """What the runs of a thread have said, as it was written: `count` of them at most, from a place on.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        if count == 0:
            return []
        async with self._store.guard():
            found = await self._store.redis.lrange(self._store.keys.exchanges(thread_id), start, start + count - 1)
        return cast("list[bytes]", found)

    async def exchange_count(self, thread_id: str) -> int:
        """How many runs of a thread have said something.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            return int(await cast("Any", self._store.redis.llen(self._store.keys.exchanges(thread_id))))

    async def thread(self, thread_id: str) -> dict[str, str]:
        """What is known of a thread: `resource` and, while it has a run that has not ended, `live`; nothing when there
        is none.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            found = await self._store.redis.hgetall(self._store.keys.thread(thread_id))
        return {text(name): text(value) for name, value in cast("dict[bytes, bytes]", found).items()}

    async def retry(self, run_id: str, *, idempotency_key: str | None = None) -> tuple[RunRecord, bool]:
        """Start a new run where a failed or cancelled one stopped: from its last checkpoint, with its tool outcomes and
        what was decided of its calls. Returns the new run's record and whether this call created it.

        Args:
            run_id: The ended run. It does not change.
            idempotency_key: The same key for the same run finds the run that is there.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            RunConflict: It is neither failed nor cancelled.
            ThreadBusy: See `create`.
            StoreUnavailable: Redis does not answer.
        """
        old = await self.get(run_id)
        if old.status not in {RunStatus.FAILED, RunStatus.CANCELLED}:
            raise RunConflict("Only a failed or cancelled run can be retried.")
        if old.kind == TASK:
            raise RunConflict("A background task is made again by a retry of the run that has started it.")
        request = await self.request(run_id)
        new = NewRun(
            agent=old.agent,
            kind=old.fields["kind"].decode(),
            queue=old.queue,
            request=request.model_copy(update=_as_changed(old, request)),
            retention=int(old.fields["retention"]),
            # No header of a submit can hold this character, so its keys are others.
            idempotency_key=f"retry\0{run_id}\0{idempotency_key}" if idempotency_key else None,
            metadata=old.json("metadata"),
            retry_of=run_id,
        )
        return await self.create(new)

    async def cancel(self, run_id: str, *, reason: str | None = None, actor: str | None = None) -> bool:
        """Ask a run to end as cancelled; False when it already is. One that nobody executes ends at once. What was said
        by whoever asked first stands.

        Raises:
            InvalidRequest: The reason or the actor can't be stored as JSON.
            UnknownRun, RunExpired: There is no such run.
            RunEnded: It has completed or failed.
            StoreUnavailable: Redis does not answer.
        """
        payload = AbortPayload(**{k: v for k, v in (("reason", reason), ("actor", actor)) if v is not None})
        verdict = "changed"
        while verdict == "changed":
            verdict = await self._cancel(run_id, payload)
        if verdict == "cancelled":
            await self._cancel_children(run_id)
        if verdict == "unknown":
            await self.get(run_id)
            raise UnknownRun
        if verdict == "ended":
            raise RunEnded
        return verdict != "already"

    async def _cancel_children(self, run_id: str) -> None:
        """Cancel what a cancelled run has started. They are told in any case; those that nobody executes end here."""
        async with self._store.guard():
            children = await self._store.redis.hgetall(self._store.keys.children(run_id))
        for child, state in cast("dict[bytes, bytes]", children).items():
            if state == b"live":
                with suppress(UnknownRun, RunExpired, RunEnded):
                    await self.cancel(text(child), reason=PARENT_CANCELLED)

    async def _cancel(self, run_id: str, payload: AbortPayload) -> str:
        """Cancel a run, unless it gets on meanwhile."""
        keys = self._store.keys
        record, usage = await self._used(run_id)
        asked, last_seq = record.fields.get("cancelRequested", b""), record.fields.get("lastSeq", b"0")
        if asked:
            payload = AbortPayload.model_validate_json(asked)
        output = TurnOutput(text="", usage=usage or Usage(), steps=[])
        with as_json():
            bodies = [encode_body(chunk) for chunk in cancelled_chunks(payload, output)]
        return text(
            await self._store.run(
                CANCEL,
                [
                    keys.run(run_id),
                    keys.log(run_id),
                    keys.checkpoints(run_id),
                    keys.ledger(run_id),
                    keys.request(run_id),
                    keys.tombstone(run_id),
                    keys.leases,
                    keys.wakeups,
                    keys.calls(run_id),
                    keys.pending,
                    keys.deadlines,
                ],
                [
                    keys.channel(run_id),
                    run_id,
                    len(bodies),
                    b"\n".join(bodies),
                    keys.status_indexes,
                    self._settings.tombstone_seconds,
                    payload.model_dump_json(exclude_none=True),
                    keys.nudges,
                    last_seq,
                    "" if usage is None else usage.model_dump_json(by_alias=True, exclude_none=True),
                    asked,
                    *_flat({} if record.parent_run_id is None else Report(record).cancelled()),
                ],
            )
        )

    async def _used(self, run_id: str) -> tuple[RunRecord, Usage | None]:
        """What its cancel has to know of a run, and what it has used: as it was suspended, or by a checkpoint that is
        newer."""
        keys = self._store.keys
        async with self._store.guard(), self._store.redis.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.run(run_id), list(_OF_CANCEL))
            pipe.lindex(keys.checkpoints(run_id), -1)
            values, entry = await pipe.execute()
        record = RunRecord(run_id, {name: value for name, value in zip(_OF_CANCEL, values, strict=True) if value})
        suspended = record.fields.get("usage")
        found = [] if suspended is None else [Usage.model_validate_json(suspended)]
        if entry is not None and (used := usage_at(entry)) is not None:
            found.append(usage_of(used))
        return record, max(found, key=lambda usage: usage.total_tokens, default=None)

    async def page(
        self, *, status: str = "", agent: str = "", thread: str = "", limit: int = 50, cursor: str | None = None
    ) -> tuple[list[RunRecord], str | None]:
        """Runs, newest first, and the cursor of the next page.

        Raises:
            InvalidRequest: The cursor is not one of ours.
            StoreUnavailable: Redis does not answer.
        """
        keys = self._store.keys
        narrowest = {"thread": thread} if thread else {"status": status} if status else {"agent": agent}
        index, seen = keys.runs(**narrowest), Position.parse(cursor, RUN_ID)
        places = batches(self._store, index, seen, size=limit, newest_first=True)
        return await self.select(
            places,
            lambda record: agent in {"", record.agent} and status in {"", record.status},
            limit=limit,
            index=index,
        )

    async def wait_for_tasks(self, run_id: str, seconds: float) -> None:
        """Let a run go on when its background tasks end after its turn, and wait for them for at least so many seconds
        in a row. Nothing changes when it has ended.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        keys = self._store.keys
        verdict = await self._store.run(IDLE, [keys.run(run_id), keys.wakeups], [run_id, int(seconds * 1000)])
        if text(verdict) == "unknown":
            await self.get(run_id)

    async def idling(self, run_id: str) -> tuple[float | None, bool]:
        """For how many seconds a run waits for its tasks, if somebody has said so since it was submitted; and whether
        it has waited for so long, and none of them has ended since.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            ms, idled_out = await self._store.redis.hmget(self._store.keys.run(run_id), ["maxIdle", "idledOut"])
        return None if ms is None else int(ms) / 1000, idled_out is not None

    async def take_woken(self, most: int = 20) -> list[RunRecord]:
        """Runs that scripts have woken and that nobody has dispatched since: whoever takes them does.

        Raises:
            StoreUnavailable: Redis does not answer. The sweeper wakes what is lost here.
        """
        async with self._store.guard():
            found = cast("list[bytes] | None", await self._store.redis.lpop(self._store.keys.woken, most))
        records = []
        for run_id in found or []:
            with suppress(UnknownRun, RunExpired):
                records.append(await self.get(text(run_id)))
        return records

    async def select(
        self,
        places: AsyncGenerator[list[Position]],
        fits: Callable[[RunRecord], bool],
        *,
        limit: int,
        index: str | None = None,
    ) -> tuple[list[RunRecord], str | None]:
        """The first runs that fit, without their outputs, and the cursor of the next ones.

        Args:
            places: Where they are, in order.
            fits: Whether a run does.
            limit: Runs, at most.
            index: The key that the places are from: runs that have expired leave it.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        found: list[RunRecord] = []
        async with aclosing(places):
            async for batch in places:
                records = await self._brief([place.member for place in batch], index)
                for place, record in zip(batch, records, strict=True):
                    if record is not None and fits(record):
                        found.append(record)
                        if len(found) == limit:
                            return found, str(place)
        return found, None

    async def _brief(self, run_ids: Sequence[str], index: str | None) -> list[RunRecord | None]:
        """Records without their outputs. Expired runs leave the index."""
        if not run_ids:
            return []
        keys = self._store.keys
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hmget(keys.run(run_id), list(_BRIEF))
            rows = await pipe.execute()
        records: list[RunRecord | None] = []
        for run_id, values in zip(run_ids, rows, strict=True):
            fields = {name: value for name, value in zip(_BRIEF, values, strict=True) if value is not None}
            records.append(RunRecord(run_id, fields) if fields else None)
        expired = [run_id for run_id, record in zip(run_ids, records, strict=True) if record is None]
        if expired and index is not None:
            async with self._store.guard():
                await self._store.redis.zrem(index, *expired)
        return records


def cancelled_chunks(payload: AbortPayload, output: TurnOutput | None = None) -> tuple[Abort, Finish]:
    """The last two chunks of a cancelled run."""
    output = output or TurnOutput(text="", usage=Usage(), steps=[])
    finish = FinishPayload(output=output, step_result=StepResult(reason="abort", is_continued=False))
    return Abort(payload=payload), Finish(payload=finish, final=True)


@contextmanager
def as_json() -> Iterator[None]:
    """Refuse what our JSON can't hold: half a surrogate pair, an integer of more than 64 bits, deepest nesting."""
    try:
        yield
    except (TypeError, ValueError, RecursionError):
        # The cause stays behind: its text holds the value.
        raise InvalidRequest("The request holds a value that can't be stored as JSON.") from None


def _fields(new: NewRun, run_id: str) -> dict[str, Any]:
    """What a run's record has from its beginning on, its metadata aside."""
    given = {
        "agent": new.agent,
        "kind": new.kind,
        "queue": new.queue,
        "retention": new.retention,
        "retryOf": new.retry_of,
        "threadId": new.request.thread_id,
        "resourceId": new.request.resource_id,
        "onBusy": new.request.on_busy,
        "watched": 0 if "watch" in (new.request.include or ()) else None,
    }
    given |= _of_parent(new, run_id)
    return {name: value for name, value in given.items() if value is not None} | new.request.budgets()


def _as_created(fields: Mapping[str, Any], digest: str, at: int, limited: int) -> dict[str, bytes]:
    """A record as its creation has left it: `at` ms, and waiting for a place if it is `limited`."""
    known = {"status": "queued", "createdAt": at, "token": 0, "lastSeq": 0, "requestHash": digest, **fields}
    known.pop("parentToken", None)  # it is checked, not stored
    if limited:
        known["limited"] = "1"
    return {name: value if isinstance(value, bytes) else str(value).encode() for name, value in known.items()}


def _as_changed(record: RunRecord, request: RunRequest) -> dict[str, Any]:
    """What was changed of a request since: budgets as they were raised, and for how long it waits for its tasks."""
    idle = [seconds for seconds in (record.max_idle, request.max_idle) if seconds is not None]
    return {
        "max_tokens": record.max_tokens,
        "max_seconds": record.max_seconds,
        "max_idle": max(idle, default=None),
    }


def _of_parent(new: NewRun, run_id: str) -> dict[str, Any]:
    parent = new.parent
    if parent is None:
        return {}
    limits = " ".join(f"{name}={most}" for name, most in (new.limits or {}).items())
    names = {"toolCallId": parent.tool_call_id, "toolName": parent.tool_name, "taskId": run_id}
    return {
        "parentRunId": parent.run_id,
        "parentToken": parent.token,
        "parentCall": f"{parent.step} {parent.round} {parent.tool_call_id}",
        "toolName": parent.tool_name,
        "disposition": parent.disposition,
        "retentionFailed": new.retention_failed,
        "limits": limits or None,
        "nested": orjson.dumps(names)[1:] + b"}" if new.nested else None,  # the end of each chunk: `lib.lua`
        "onLimit": new.on_limit,
    }


def _flat(fields: Mapping[str, Any]) -> Iterable[Any]:
    for name, value in fields.items():
        yield name
        yield value
