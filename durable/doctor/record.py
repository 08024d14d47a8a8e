"""What has to hold of a run's record and of all that points to it. Pure: judges a snapshot of one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from durable import ledger
from durable.doctor.finding import Finding
from durable.runs import BACKGROUND, RunRecord
from durable.store import text
from durable.views import RunStatus

FOREVER = -1
MISSING = -2
"""What Redis tells as the time to live of a key that has none, and of one that is not there."""

DECISION = "decision"
"""The reason of a run that is suspended until somebody answers a call."""

_FIELDS = ("status", "agent", "kind", "queue", "retention", "token", "lastSeq", "createdAt", "requestHash")


@dataclass(frozen=True)
class Wait:
    """A call that waits, or waited, for an answer from outside.

    Attributes:
        call: Its id.
        pending: Whether it still waits.
        asked: The name of its round in the ledger.
        answered: The name of that round's answer in the ledger.
        since: Since when it waits, in ms.
        due: When it is answered by itself; None for never.
        inbox: Since when it waits by the index of all calls that wait; None when that does not have it.
        deadline: When it is answered by itself by the index of deadlines.
    """

    call: str
    pending: bool
    asked: str
    answered: str
    since: int
    due: int | None
    inbox: float | None
    deadline: float | None


@dataclass(frozen=True)
class Upward:
    """What the store has of the run that has started one.

    Attributes:
        live: Whether that has not ended.
        adopted: Whether that is a retry, which goes on with what another run had started.
        under_way: Whether it counts the one that it has started as under way.
        told: Whether its ledger has what that one came to.
    """

    live: bool
    adopted: bool
    under_way: bool
    told: bool


@dataclass(frozen=True)
class Snapshot:
    """What the store has of a run at one moment.

    Attributes:
        record: Its record.
        leased: Whether its newest token is in the index of leases.
        woken: Whether it is in the index of wake-ups.
        thread_live: Whether it is the live run of its thread.
        thread_queued: Whether it is in the queue of its thread.
        statuses: The statuses in whose indexes it is.
        listed: Whether it is in the index of all runs, at its creation time.
        listed_for_agent: Whether it is in the index of its agent's runs, at its creation time.
        lifetimes: Seconds to live of its keys, by name: `run`, `request`, `log`, `checkpoints`, `ledger`, `calls`,
            `files`, `tombstone`.
        checkpoints: Entries of its checkpoints.
        calls: The calls that its ledger has.
        waits: The calls that wait, or waited, for an answer.
        files: The files that it has.
        begun: Runs that it has started.
        under_way: Those of them that it counts as under way.
        upward: The run that has started it, if there is one.
    """

    record: RunRecord
    leased: bool
    woken: bool
    statuses: frozenset[str]
    listed: bool
    listed_for_agent: bool
    lifetimes: Mapping[str, int]
    checkpoints: int
    calls: tuple[str, ...]
    waits: tuple[Wait, ...] = ()
    thread_live: bool = False
    thread_queued: bool = False
    files: frozenset[str] = frozenset()
    begun: int = 0
    under_way: int = 0
    upward: Upward | None = None


def is_whole(record: RunRecord) -> bool:
    """Whether a record can be read at all."""
    return all(name in record.fields for name in _FIELDS) and text(record.fields["status"]) in set(RunStatus)


def judge(found: Snapshot) -> Iterator[Finding]:
    """What is wrong with a run, its log and ledger aside."""
    run_id = found.record.run_id
    fields = found.record.fields
    if not is_whole(found.record):
        missing = ", ".join(name for name in _FIELDS if name not in fields) or "none"
        yield Finding(run_id, "record", f"Its record is not whole; fields that are missing: {missing}.")
        return
    checks = (_state, _thread, _indexes, _lifetimes, _checkpoint, _waits, _family)
    for check, message in [found_wrong for look in checks for found_wrong in look(found)]:
        yield Finding(run_id, check, message)


def _state(found: Snapshot) -> Iterator[tuple[str, str]]:
    """Each run is leased, queued, suspended or has ended; and only one of these."""
    record, status = found.record, found.record.status
    if status is RunStatus.RUNNING and not found.leased:
        yield "state", "It is running and has no lease: nobody would notice that it is lost."
    if status is RunStatus.QUEUED and not found.woken and not record.behind and "limits" not in record.fields:
        yield "state", "It is queued and has no wake-up: nobody would execute it if its message is lost."
    if status is not RunStatus.RUNNING and found.leased:
        yield "state", f"It is {status} and has a lease."
    idles = status is RunStatus.SUSPENDED and "idleUntil" in record.fields
    if status is not RunStatus.QUEUED and found.woken and not idles:
        yield "state", f"It is {status} and has a wake-up."
    if status is RunStatus.SUSPENDED and "reason" not in record.fields:
        yield "state", "It is suspended, and nothing says until what."
    if (status is RunStatus.RUNNING) != ("owner" in record.fields):
        yield "state", f"It is {status} and has {'an' if 'owner' in record.fields else 'no'} owner."
    if status.ended != ("finishedAt" in record.fields):
        yield "state", f"It is {status} and has {'a' if 'finishedAt' in record.fields else 'no'} moment of its end."
    if (status is RunStatus.FAILED) != ("error" in record.fields):
        yield "state", f"It is {status} and has {'an' if 'error' in record.fields else 'no'} error."


def _thread(found: Snapshot) -> Iterator[tuple[str, str]]:
    """A run of a thread that has not ended is the live one, or waits for it; and only one of these."""
    record = found.record
    if record.thread_id is None:
        return
    live = not record.status.ended and not record.behind
    if found.thread_live != live:
        yield "thread", f"It is {record.status} and is {'' if found.thread_live else 'not '}its thread's live run."
    if found.thread_queued != record.behind:
        yield (
            "thread",
            f"Its thread's queue {'has' if found.thread_queued else 'does not have'} it; its record differs.",
        )
    if record.behind and (found.woken or record.status is not RunStatus.QUEUED):
        yield "thread", f"It waits for its thread, and is {record.status}{' with a wake-up' if found.woken else ''}."


def _indexes(found: Snapshot) -> Iterator[tuple[str, str]]:
    status = found.record.status
    if found.statuses != {status}:
        named = ", ".join(sorted(found.statuses)) or "none"
        yield "index", f"It is {status}; the indexes by status that have it: {named}."
    if not found.listed:
        yield "index", "The index of all runs does not have it at its creation time."
    if not found.listed_for_agent:
        yield "index", "The index of its agent's runs does not have it at its creation time."


def _lifetimes(found: Snapshot) -> Iterator[tuple[str, str]]:
    """An ended run expires, as a whole; any other stays."""
    ended, lifetimes = found.record.status.ended, found.lifetimes
    for name, seconds in lifetimes.items():
        if name == "tombstone" or seconds == MISSING:
            continue
        if ended and seconds == FOREVER:
            yield "retention", f"It has ended and its {name} never expires."
        if not ended and seconds != FOREVER:
            yield "retention", f"It is {found.record.status} and its {name} expires."
    if lifetimes["request"] == MISSING:
        yield "request", "What it was asked to do is not there."
    if ended and lifetimes["tombstone"] == MISSING:
        yield "retention", "It has ended and has no tombstone."
    if ended and lifetimes["run"] > lifetimes["tombstone"] >= 0:
        yield "retention", "Its tombstone expires before it does."


def _checkpoint(found: Snapshot) -> Iterator[tuple[str, str]]:
    record = found.record
    if record.checkpoint_seq > record.last_seq:
        yield "checkpoint", f"Its checkpoint is at {record.checkpoint_seq}, ahead of its log at {record.last_seq}."
    if record.checkpoint_seq and not found.checkpoints:
        yield "checkpoint", "Its record tells of a checkpoint, and there is none."


def _waits(found: Snapshot) -> Iterator[tuple[str, str]]:
    """Calls that wait are in the indexes; those that were answered, and those of ended runs, are not."""
    record = found.record
    ended, reason = record.status.ended, text(record.fields.get("reason", b""))
    if record.status is RunStatus.SUSPENDED and reason == DECISION and not any(wait.pending for wait in found.waits):
        yield "calls", "It is suspended until a call is answered, and no call waits."
    if found.waits and not record.asked:
        yield "calls", "It has calls that wait, or waited, and its record does not say so."
    for wait in found.waits:
        waits = wait.pending and not ended
        if wait.inbox != (wait.since if waits else None):
            yield "calls", f"The call {wait.call} {_waiting(waits)}, and the index of calls that wait says otherwise."
        if wait.deadline != (wait.due if waits else None):
            yield "calls", f"The call {wait.call} {_waiting(waits)}, and the index of deadlines says otherwise."
        for entry in (wait.asked, *(() if wait.pending else (wait.answered,))):
            if entry not in found.calls:
                yield "ledger", f"The ledger does not have {entry}, by which the call {wait.call} {_waiting(waits)}."
    answers = sum(map(ledger.is_answer, found.calls))
    # A retry counts on from the run that it repeats, and has not all of its answers.
    if record.decisions != answers and "retryOf" not in record.fields:
        yield "calls", f"Its record counts {record.decisions} answers; its ledger has {answers}."


def _family(found: Snapshot) -> Iterator[tuple[str, str]]:
    """What a run came to is known to the one that has started it; and one that waits for what it has started has
    something to wait for."""
    record, upward = found.record, found.upward
    if record.status is RunStatus.SUSPENDED and record.reason == BACKGROUND and not found.under_way:
        yield "tasks", f"It waits for its background tasks, and none of its {found.begun} is under way."
    if upward is None or not record.status.ended:
        return
    if upward.under_way:
        yield "tasks", "It has ended, and the run that has started it counts it as under way."
    if upward.live and not (upward.told or upward.adopted):
        yield "tasks", "It has ended, and the run that has started it never hears what it came to."


def _waiting(waits: bool) -> str:  # noqa: FBT001 - the one thing that it says
    return "waits" if waits else "does not wait any more"
