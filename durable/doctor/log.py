"""What has to hold of a run's log, and of its ledger beside it. Pure: is fed entry by entry, keeps only what became of
calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import orjson

from durable import ledger
from durable.chunks.background import TASK_ENDS
from durable.chunks.base import Json
from durable.doctor.finding import Finding
from durable.journal import Entry
from durable.runs import TASK, RunRecord

_OUTCOMES: Final = frozenset({"tool-result", "tool-error", "tool-output-denied"})
# A call that a background task makes waits for it, also if the run goes on meanwhile.
_ASKING: Final = frozenset({"tool-call-approval", "tool-call-suspended", "background-task-started"})
_ANSWERS: Final = frozenset(
    {
        "tool-call-decided",
        "tool-output-denied",
        *TASK_ENDS,
    }
)
_OF_CALLS: Final = _OUTCOMES | _ASKING | _ANSWERS


class Recorded(Enum):
    """What the ledger says of a call, or of its answer."""

    STARTED = "started"
    ASKED = "asked"
    TO_BE_ASKED = "to be asked"
    ANSWERED = "answered"
    ENDED = "ended"
    UNREADABLE = "unreadable"


@dataclass
class LogReview:
    """Goes through one log, up to its record's last seq.

    Attributes:
        record: The run.
        files: The files that it has.
        outcomes: The type of the first outcome of each call, under the name of its first round in the ledger.
        asked: How often each call began to wait for an answer.
        answered: How often it got one.
    """

    record: RunRecord
    files: frozenset[str] = frozenset()
    outcomes: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    _recorded: Counter[tuple[str, Recorded]] = field(default_factory=Counter)
    _last: int = 0
    _finals: list[int] = field(default_factory=list)
    _step: int | None = None
    _first_step: int | None = None
    _delegated: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.record.kind == TASK:
            self._step = 1  # it begins where a model has made a call

    def take(self, entry: Entry) -> Iterator[Finding]:
        """Take the next entry."""
        if entry.first != self._last + 1:
            yield self._finding("log", f"After chunk {self._last} comes chunk {entry.first}.")
        self._last = entry.last
        for seq, body in enumerate(entry.bodies, entry.first):
            try:
                chunk = orjson.loads(body)
                yield from self._chunk(seq, chunk, outside=entry.attempt == 0)
            except (ValueError, TypeError, AttributeError, KeyError):
                yield self._finding("log", f"Chunk {seq} can't be read.")

    def end(self) -> Iterator[Finding]:
        """The log ends here."""
        record = self.record
        if self._last != record.last_seq:
            yield self._finding("log", f"It ends with chunk {self._last}; its record says {record.last_seq}.")
        expected = [record.last_seq] if record.status.ended else []
        if self._finals != expected:
            named = ", ".join(map(str, self._finals)) or "none"
            yield self._finding("final", f"It is {record.status} with {record.last_seq} chunks; final ones: {named}.")

    def compare(self, entry: str, recorded: Recorded) -> Iterator[Finding]:
        """Compare what the ledger says of a round of a call."""
        call = ledger.key(ledger.step_of(entry), entry.partition(":")[2])
        outcome = self.outcomes.get(call)
        self._recorded[call, recorded] += 1
        if recorded is Recorded.UNREADABLE:
            yield self._finding("ledger", f"The entry of the call {entry} can't be read.")
        elif recorded is Recorded.ENDED and outcome is None and not self._inherited(call):
            yield self._finding("ledger", f"The outcome of the call {call} is recorded, and the log does not have it.")
        elif recorded is Recorded.STARTED and outcome == "tool-result":
            yield self._finding("ledger", f"The log has a result of the call {call}, and the ledger has none.")

    def compare_answers(self) -> Iterator[Finding]:
        """Compare how often calls waited and were answered, once all of the ledger was compared."""
        sides = (
            (self.asked, Recorded.ASKED, "began to wait"),
            (self.answered, Recorded.ANSWERED, "was answered"),
        )
        for told, recorded, what in sides:
            for call in sorted({*told, *(call for call, kind in self._recorded if kind is recorded)}):
                stored = self._recorded[call, recorded]
                if told[call] != stored and not self._inherited(call):
                    message = f"The call {call} {what} {told[call]} times by the log, and {stored} times by the ledger."
                    yield self._finding("ledger", message)

    def _chunk(self, seq: int, chunk: dict[str, Json], *, outside: bool) -> Iterator[Finding]:
        kind, payload = chunk["type"], chunk.get("payload") or {}
        if chunk.get("final"):
            self._finals.append(seq)
        if kind == "step-start":
            self._step = int(payload["stepId"].rpartition("-")[2])
            self._first_step = self._first_step or self._step
        if kind == "file" and payload.get("fileId") not in {None, *self.files}:
            yield self._finding("file", f"Chunk {seq} names a file that is not there.")
        # What the provider's own tools return is part of the model's response: it may be torn and come again.
        if kind not in _OF_CALLS or self._step is None or payload.get("providerExecuted"):
            return
        if kind == "background-task-started":
            self._delegated[payload["toolCallId"]] = self._step
        # What a task comes to may be told in a later step.
        step = self._delegated.get(payload["toolCallId"], self._step)
        call = ledger.key(step, payload["toolCallId"])
        if ledger.is_judgement(call):
            return  # a goal that was paused: no tool was called
        if kind in _OUTCOMES:
            if call in self.outcomes:
                yield self._finding("outcome", f"Chunk {seq} is another outcome of the call {call}.")
            self.outcomes.setdefault(call, kind)
        self.asked[call] += kind in _ASKING
        # What the caller's own tool returned is told with its answer, by no attempt.
        self.answered[call] += kind in _ANSWERS or (outside and kind == "tool-result")

    def _inherited(self, call: str) -> bool:
        """Whether a retry has the outcome from the run that it repeats, whose log has it."""
        step = ledger.step_of(call)
        return "retryOf" in self.record.fields and (self._first_step is None or step < self._first_step)

    def _finding(self, check: str, message: str) -> Finding:
        return Finding(self.record.run_id, check, message)
