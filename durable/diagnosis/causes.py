"""Why a run stands where it stands: what its circumstances amount to, in words. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from durable.chunks.base import Json
from durable.diagnosis.circumstances import MOST_COUNTED, Circumstances
from durable.diagnosis.standing import LIMIT_REACHED, NO_WORKER
from durable.runs import BACKGROUND, BUDGET_REACHED, RETRYING, TASK, THREAD_BUSY, RunRecord
from durable.store import text
from durable.suspension import Kind, OnExpiry
from durable.views import Diagnosis, Fact, RunStatus

MOST_TOLD: Final = 20
"""Background tasks that are told one by one, at most."""
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
    "client_tools": " Its caller is to make the calls that are left.",
}
_NOBODY_LOOKS: Final = "Nobody looks for lost runs until a worker starts."


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
        failed = "Its tool raised" if record.kind == TASK else "Its model's provider failed"
        return RETRYING, f"{failed}; it waits until it is tried again.", facts
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
    facts = [*waiting, *_tasks(found), *_wakeup(found), *_attempts(found), *_cancel(found)]
    if any(fact.details and "until" in fact.details for fact in facts):
        facts += _unswept(found)
    calls = "a tool call" if len(waiting) == 1 else f"{len(waiting)} tool calls"
    tasks = "a background task" if len(found.children) == 1 else f"{len(found.children)} background tasks"
    awaited = [f"for somebody to answer {calls}"] if waiting else []
    awaited += [f"for {tasks}"] if found.children else []
    if awaited:
        return reason, f"It waits {', and '.join(awaited)}.", facts
    if reason == BACKGROUND:
        return reason, "It waits for background tasks, and has none that is under way.", facts
    return reason, f"It waits for something from outside: {reason}.", facts


def _tasks(found: Circumstances) -> list[Fact]:
    """What it waits for of what it has started; and until when, if its turn has ended."""
    facts = []
    for child in found.children[:MOST_TOLD]:
        what = child.named
        words = f"{what['toolName']} (call {what['toolCallId']}, task {what['taskId']}) "
        facts.append(_fact("task", f"{words}{child.words(_moment(child.record, 'notBefore'))}.", **what))
    if len(found.children) > MOST_TOLD:
        more = len(found.children) - MOST_TOLD
        facts.append(_fact("more_tasks", f"It waits for {more} more background tasks.", count=more))
    until = _moment(found.record, "idleUntil")
    if until is not None:
        facts.append(_fact("idle", f"If none of them ends until {until}, it ends with what it has.", until=until))
    return facts


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
    if found.wakeup_at is None or "idleUntil" in found.record.fields:
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
