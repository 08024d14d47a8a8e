"""Why a run stands where it stands: what the store knows of it, and what that amounts to in words.

Invariant: what is told was true at one moment; nothing is changed by asking. Moments are by the store's own clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

from durable.announcements import Announcement, Announcements
from durable.chunks.base import Json
from durable.decisions import Call, read_calls
from durable.errors import UnknownAgent
from durable.runs import BUDGET_REACHED, RETRYING, TASK, THREAD_BUSY, RunRecord, Runs
from durable.settings import Settings
from durable.store import Store, text
from durable.suspension import Kind, OnExpiry
from durable.views import Diagnosis, Fact, RunStatus, RunView

LIMIT_REACHED: Final = "limit_reached"
"""The reason of a background task that waits for a place under a limit."""
NO_WORKER: Final = "no_worker"
"""The reason of a queued run whose agent no live worker serves."""
MOST_COUNTED: Final = 1000
"""Older queued runs that are looked at, at most."""
_WAITED_FOR: Final[dict[Kind, str]] = {
    "approval": "an approval",
    "resume": "data",
    "external": "its result from outside",
}
_EXPIRES: Final[dict[OnExpiry, str]] = {
    "decline": "it is declined",
    "approve": "it is approved",
    "fail": "the run fails",
    "cancel": "the run is cancelled",
}
_UNITS: Final = {"max_tokens": ("tokens", "--max-tokens"), "max_seconds": ("seconds", "--max-seconds")}
_SPECIAL_ENDS: Final = {
    "max_steps": " The step limit ended it.",
    BUDGET_REACHED: " A budget ended it.",
    "tripwire": " A guardrail stopped it.",
    "max_iterations": " Its scorers never passed.",
    "goal_stopped": " Its goal was given up.",
}
# Workers show themselves every 2.5 seconds, or more often.
_SILENT_SECONDS: Final = 4.0
_NOBODY_LOOKS: Final = "Nobody looks for lost runs until a worker starts."


@dataclass(frozen=True)
class Circumstances:
    """What the store knows of a run at one moment. Moments are ms since 1970.

    Attributes:
        record: The run.
        now: The store's clock.
        workers: Live workers that serve its agent.
        silences: For each of them that has not shown itself for longer than usual, for how many seconds.
        lease_until: Until when the lease of its newest attempt holds; None without a lease.
        wakeup_at: When a wake-up that is lost is repeated; None without one.
        ahead: Older queued runs of the same queue, counted up to a limit.
        swept: Whether some process looks for lost runs.
        thread_run: The run of its thread that it waits for; None when it waits for none.
        max_attempts: Claims without progress after which it fails.
        calls: Its tool calls that wait, or waited, for an answer.
        agent: What is known of its agent, if it is a background task.
        held: Whether it waits for a place under a limit.
    """

    record: RunRecord
    now: int
    workers: int = 0
    silences: Sequence[float] = ()
    lease_until: int | None = None
    wakeup_at: int | None = None
    ahead: int = 0
    swept: bool = True
    thread_run: str | None = None
    max_attempts: int = 5
    calls: Sequence[Call] = ()
    agent: Announcement | None = None
    held: bool = False

    @property
    def unserved(self) -> bool:
        """Whether nobody is there to execute it. Who executes a `durable` agent need not be a worker."""
        return self.workers == 0 and _needs_worker(self.record, self.agent)

    @property
    def at_last_attempt(self) -> bool:
        """Whether its next attempt without progress is the last one, after others that were lost."""
        claims = self.record.claims
        return claims > 0 and claims + 1 == self.max_attempts


async def views(store: Store, announcements: Announcements, records: Sequence[RunRecord]) -> list[RunView]:
    """Runs as callers see them; one that waits because nobody serves its agent, or for a place under a limit, says so.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    waiting = [record for record in records if record.status is RunStatus.QUEUED]
    kinds = {record.kind for record in waiting}
    workers = await announcements.workers() if kinds & {"evented", TASK} else []
    known = {item.name: item for item in await announcements.all()} if TASK in kinds else {}
    without_place = await held(store, waiting)
    found = []
    for record in records:
        view = record.view()
        served = any(worker.serves(record.agent, record.queue) for worker in workers)
        waits = record.status is RunStatus.QUEUED and _needs_worker(record, known.get(record.agent))
        reason = LIMIT_REACHED if record.run_id in without_place else view.reason
        if waits and not served and reason in {None, LIMIT_REACHED}:
            reason = NO_WORKER
        found.append(view if reason == view.reason else view.model_copy(update={"reason": reason}))
    return found


async def held(store: Store, records: Sequence[RunRecord]) -> set[str]:
    """Those of some runs that wait for a place under a limit.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    asked = [(record.run_id, name) for record in records if record.status is RunStatus.QUEUED for name in record.limits]
    if not asked:
        return set()
    async with store.guard(), store.redis.pipeline(transaction=False) as pipe:
        for run_id, name in asked:
            pipe.zscore(store.keys.limit_waiting(name), run_id)
        found = await pipe.execute()
    return {run_id for (run_id, _), score in zip(asked, found, strict=True) if score is not None}


async def examine(
    store: Store, runs: Runs, announcements: Announcements, settings: Settings, run_id: str
) -> Circumstances:
    """Look at a run and what surrounds it.

    Raises:
        UnknownRun, RunExpired: There is no such run.
        StoreUnavailable: Redis does not answer.
    """
    keys = store.keys
    record = await runs.get(run_id)
    while True:
        async with store.guard(), store.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.run(run_id))
            pipe.zscore(keys.leases, f"{run_id}:{record.token}")
            pipe.zscore(keys.wakeups, run_id)
            pipe.exists(keys.sweeper)
            pipe.hgetall(keys.calls(run_id))
            pipe.time()
            fields, lease, wakeup, swept, calls, (seconds, micros) = await pipe.execute()
        if not fields:
            record = await runs.get(run_id)  # it has just expired
            continue
        token, record = record.token, RunRecord(run_id, {text(name): value for name, value in fields.items()})
        if record.token == token:
            break  # else the lease is that of an attempt before
    silences = await announcements.silences(record.agent, record.queue)
    return Circumstances(
        record,
        now=int(seconds) * 1000 + int(micros) // 1000,
        workers=len(silences),
        silences=[silence for silence in silences if silence > _SILENT_SECONDS],
        lease_until=None if lease is None else int(lease),
        wakeup_at=None if wakeup is None else int(wakeup),
        ahead=await _ahead(store, record) if record.status is RunStatus.QUEUED else 0,
        swept=bool(swept),
        thread_run=(await runs.thread(record.thread_id)).get("live") if record.behind and record.thread_id else None,
        max_attempts=settings.max_attempts,
        calls=read_calls(calls),
        agent=await _agent_of(announcements, record),
        held=run_id in await held(store, [record]),
    )


async def _agent_of(announcements: Announcements, record: RunRecord) -> Announcement | None:
    if record.kind != TASK:
        return None
    try:
        return await announcements.get(record.agent)
    except UnknownAgent:
        return None


async def _ahead(store: Store, record: RunRecord) -> int:
    """How many queued runs of the same queue are older."""
    keys, created = store.keys, int(record.fields["createdAt"])
    async with store.guard():
        index = keys.runs(status=RunStatus.QUEUED)
        older = await store.redis.zrangebyscore(index, "-inf", f"({created}", start=0, num=MOST_COUNTED)
        async with store.redis.pipeline(transaction=False) as pipe:
            for run_id in cast("list[bytes]", older):
                pipe.hget(keys.run(text(run_id)), "queue")
            queues = await pipe.execute()
    return sum(1 for queue in queues if queue is not None and text(queue) == record.queue)


def diagnose(found: Circumstances) -> Diagnosis:
    """What the circumstances amount to."""
    match found.record.status:
        case RunStatus.QUEUED:
            reason, summary, facts = _queued(found)
        case RunStatus.RUNNING:
            reason, summary, facts = _running(found)
        case RunStatus.SUSPENDED:
            reason, summary, facts = _suspended(found)
        case _:
            reason, summary, facts = _ended(found)
    record = found.record
    return Diagnosis(
        run_id=record.run_id, agent=record.agent, status=record.status, reason=reason, summary=summary, facts=facts
    )


_Findings = tuple[str, str, list[Fact]]


def _queued(found: Circumstances) -> _Findings:
    record, view = found.record, found.record.view()
    if record.behind:
        since = _fact("queued", f"It was submitted {_ago(found, 'createdAt')}.", since=_moment(record, "createdAt"))
        before = _fact("thread_run", f"Now it is the turn of run {found.thread_run}.", runId=found.thread_run)
        return THREAD_BUSY, "It waits until the runs before it in its thread have ended.", [before, since]
    facts = [
        _fact("queued", f"It was submitted {_ago(found, 'createdAt')}.", since=_moment(record, "createdAt")),
        _workers(found),
    ]
    if found.ahead:
        count = f"{found.ahead}{' or more' if found.ahead >= MOST_COUNTED else ''}"
        facts.append(_fact("ahead", f"Queued runs of {record.queue!r} that are older: {count}.", count=found.ahead))
    facts += [*_pending(found), *_wakeup(found), *_attempts(found), *_cancel(found), *_unswept(found)]
    if found.unserved:
        reads = f" and reads {record.queue!r}" if record.kind == TASK else ""
        return NO_WORKER, f"It waits: no live worker serves the agent {record.agent!r}{reads}.", facts
    if found.held:
        return LIMIT_REACHED, "It waits for a place: as many background tasks are executed as may be.", facts
    if view.reason == RETRYING:
        return RETRYING, "Its model's provider failed; it waits until it is tried again.", facts
    if not found.swept:
        return "waiting", f"It waits for a worker to take it up. {_NOBODY_LOOKS}", facts
    if found.at_last_attempt:
        words = "Its workers were lost again and again; its last attempt waits until a worker executes nothing else."
        return "last_attempt", words, facts
    if found.ahead:
        return "behind_others", "It waits for a worker to have room; older runs of its queue wait, too.", facts
    return "waiting", "It waits for a worker to take it up.", facts


def _running(found: Circumstances) -> _Findings:
    record = found.record
    after = [*_pending(found), _workers(found), *_attempts(found), *_cancel(found), *_unswept(found)]
    if found.lease_until is not None and found.lease_until > found.now:
        until, owner = _iso(found.lease_until), text(record.fields.get("owner", b"?"))
        lease = _fact("lease", f"{owner} holds its lease until {until}.", owner=owner, until=until)
        if record.cancel_requested:
            return "cancelling", "It was told to end as cancelled, and its worker is about to.", [lease, *after]
        if not found.swept:
            words = f"It is being executed (attempt {record.token}), unless its worker was lost just now."
            return "executing", words, [lease, *after]
        return "executing", f"It is being executed (attempt {record.token}).", [lease, *after]
    lost = "Its lease is gone."
    details: dict[str, Json] = {}
    if found.lease_until is not None:
        details["since"] = _iso(found.lease_until)
        lost = f"The lease of attempt {record.token} ran out at {details['since']}."
    facts = [_fact("lease_lost", lost, **details), *after]
    if record.cancel_requested:
        # Nobody needs to have its agent for that, and where nobody sweeps an API server does it.
        facts = [fact for fact in facts if fact.code != "unswept"]
        return "cancelling", "Its worker fell silent; it was told to end, and is about to be cancelled.", facts
    if found.unserved:
        return NO_WORKER, f"Its worker was lost, and no live worker serves the agent {record.agent!r}.", facts
    if not found.swept:
        return "lease_lost", f"Its worker fell silent. {_NOBODY_LOOKS}", facts
    return "lease_lost", "Its worker fell silent; it is about to be taken over.", facts


def _suspended(found: Circumstances) -> _Findings:
    reason = found.record.reason or "suspended"
    if reason == BUDGET_REACHED:
        return _spent(found)
    waiting = _pending(found)
    facts = [*waiting, *_wakeup(found), *_attempts(found), *_cancel(found)]
    if any(fact.details and "until" in fact.details for fact in waiting):
        facts += _unswept(found)
    if not waiting:
        return reason, f"It waits for something from outside: {reason}.", facts
    calls = "a tool call" if len(waiting) == 1 else f"{len(waiting)} tool calls"
    return reason, f"It waits for somebody to answer {calls}.", facts


def _spent(found: Circumstances) -> _Findings:
    """A run that waits until a budget is raised."""
    reached = found.record.json("budget") or {}
    unit, option = _UNITS.get(reached.get("budget", ""), ("", "--max-…"))
    limit, used = reached.get("limit", 0), reached.get("used", 0)
    words = f"It may use {limit:g} {unit}, and has used {used:g}."
    facts = [
        _fact("budget", words, **reached),
        _fact("raise", f"It goes on once that is raised: durable raise {found.record.run_id} {option} N."),
        *_attempts(found),
        *_cancel(found),
    ]
    return BUDGET_REACHED, f"It has used up its budget of {limit:g} {unit}, and waits until that is raised.", facts


def _ended(found: Circumstances) -> _Findings:
    view = found.record.view()
    facts = [_fact("ended", f"It ended {_ago(found, 'finishedAt')}.", at=_moment(found.record, "finishedAt"))]
    if view.error is not None:
        facts.append(_fact("error", f"{view.error.code}: {view.error.message}", errorCode=view.error.code))
    facts += [*_attempts(found), *_cancel(found)]
    match view.status:
        case RunStatus.FAILED:
            code = view.error.code if view.error is not None else "failed"
            facts.append(_fact("retry", "A retry starts a new run from its last checkpoint."))
            return "failed", f"It failed: {code}.", facts
        case RunStatus.CANCELLED:
            facts.append(_fact("retry", "A retry starts a new run from its last checkpoint."))
            return "cancelled", "It was cancelled.", facts
        case _:
            return "completed", f"It completed.{_SPECIAL_ENDS.get(view.reason or '', '')}", facts


def _pending(found: Circumstances) -> list[Fact]:
    """The calls that wait: since when, and what happens when."""
    facts = []
    for call in found.calls:
        if call.answer is not None:
            continue
        asked, since = call.question, _iso(call.since)
        words = f"{asked.tool_name} (call {call.tool_call_id}) waits for {_WAITED_FOR[asked.kind]} since {since}"
        details: dict[str, Json] = {
            **call.named,
            "kind": asked.kind,
            "since": since,
        }
        if call.until is None:
            words += ", and has no deadline."
        else:
            until = _iso(call.until)
            details |= {"until": until, "onExpiry": asked.on_expiry}
            words += f"; if nobody answers until {until}, {_EXPIRES[asked.on_expiry]}."
        facts.append(_fact("pending_call", words, **details))
    return facts


def _workers(found: Circumstances) -> Fact:
    agent, count = found.record.agent, found.workers
    if count and not found.swept:
        # A worker that was killed is counted for some seconds more; the mark of who sweeps runs out sooner.
        words = f"Workers that served {agent!r} a moment ago: {count}."
        return _fact("workers", words, count=count)
    if count:
        silent = ", ".join(f"one was silent for {seconds:.0f} s" for seconds in found.silences)
        words = f"Live workers that serve {agent!r}: {count}{f' ({silent})' if silent else ''}."
        return _fact("workers", words, count=count)
    if found.record.fields.get("kind") == b"durable":
        words = f"No worker serves {agent!r}; the process that took the request executes it, if it lives."
        return _fact("workers", words, count=0)
    return _fact("workers", f"No live worker serves {agent!r}. Start one that has this agent.", count=0)


def _wakeup(found: Circumstances) -> list[Fact]:
    if found.wakeup_at is None:
        return []
    again, at = int(found.record.fields.get("wakes", b"0")), _iso(found.wakeup_at)
    if not found.swept:
        words = f"It was to be woken again at {at}; that waits until a worker starts."
    else:
        words = f"It is woken again at {at}" + (f"; that happened {again} times so far." if again else ".")
    return [_fact("wakeup", words, at=at, repeats=again), *_retries(found)]


def _retries(found: Circumstances) -> list[Fact]:
    """What a run waits for whose model's provider failed."""
    record = found.record
    if "notBefore" not in record.fields:
        return []
    at, used = _moment(record, "notBefore"), record.retries_used
    when = f"at {at}" if found.swept else "once a worker has started"
    facts = [_fact("retrying", f"It is tried again {when}; that is retry {used} in a row.", at=at, retry=used)]
    error = record.json("lastError")
    if error:
        facts.append(_fact("last_error", f"{error['code']}: {error['message']}", errorCode=error["code"]))
    return facts


def _attempts(found: Circumstances) -> list[Fact]:
    record, facts = found.record, []
    if record.token:
        claims = record.claims
        words = f"Attempts so far: {record.token}; without progress: {claims} of at most {found.max_attempts}."
        if record.status.ended:
            words = f"Attempts: {record.token}."
        facts.append(
            _fact("attempts", words, attempt=record.token, withoutProgress=claims, maxAttempts=found.max_attempts)
        )
    if "lostAt" in record.fields:
        at = _moment(record, "lostAt")
        facts.append(_fact("lost_before", f"An attempt lost its lease at {at}.", at=at))
    if record.token and not record.status.ended:
        words = f"Its log has {record.last_seq} chunks; its last checkpoint is at {record.checkpoint_seq}."
        facts.append(_fact("progress", words, lastSeq=record.last_seq, checkpointSeq=record.checkpoint_seq))
    return facts


def _cancel(found: Circumstances) -> list[Fact]:
    if not found.record.cancel_requested:
        return []
    told = {name: value for name, value in (found.record.json("cancelRequested") or {}).items() if value}
    words = "A cancel was requested" + "".join(f", {name}: {value}" for name, value in told.items()) + "."
    return [_fact("cancel", words, **told)]


def _unswept(found: Circumstances) -> list[Fact]:
    if found.swept:
        return []
    return [_fact("unswept", _NOBODY_LOOKS)]


def _needs_worker(record: RunRecord, agent: Announcement | None) -> bool:
    """Whether only a worker executes a run: also the task of an agent that workers execute, or one in a queue of its
    own."""
    if record.kind != TASK or agent is None:
        return record.kind == "evented"
    return agent.kind == "evented" or agent.queue != record.queue


def _fact(code: str, message: str, **details: Json) -> Fact:
    return Fact(code=code, message=message, **({"details": details} if details else {}))


def _moment(record: RunRecord, name: str) -> str | None:
    value = record.fields.get(name)
    return None if value is None else _iso(int(value))


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ago(found: Circumstances, name: str) -> str:
    value = found.record.fields.get(name)
    if value is None:
        return "some time ago"
    return f"{max(0, found.now - int(value)) / 1000:.1f} s ago"
