"""Calls that wait, or waited: what is asked, what was answered, and how both are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson
from pydantic import Field

from durable import ledger
from durable.chunks.base import Json, Wire
from durable.store import text
from durable.suspension import Kind, OnExpiry
from durable.views import DecisionView, InboxCall, PendingCall

Verb = Literal["approve", "decline", "resume", "fail"]
_VERBS: Final[dict[str, tuple[Verb, ...]]] = {
    "approval": ("approve", "decline"),
    "resume": ("resume", "decline"),
    "external": ("resume", "decline"),
}


class Answer(Wire):
    """What is answered.

    Attributes:
        kind: `approve` and `decline` a call that waits for approval; `resume` gives a call the data that it waits for,
            or is the result of one that is executed outside. `fail` is what a deadline may do.
        args: With `approve`: arguments to use in place of the model's.
        reason: With `decline`: why, for the model.
        data: With `resume`.
        actor: Who answers. Not part of what is answered.
    """

    kind: Verb
    args: dict[str, Json] | None = None
    reason: str | None = None
    data: Json = None
    actor: str | None = None

    def digest(self) -> str:
        """Equal for equal answers, whoever gives them."""
        value = self.model_dump(mode="json", exclude={"actor"}, exclude_none=True)
        return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]

    def to_json(self) -> bytes:
        """The stored form; `kind` comes first."""
        return orjson.dumps(self.model_dump(mode="json", exclude_none=True))


class Question(Wire):
    """What is stored of a call that waits.

    Attributes:
        tool_name: The tool.
        args: What the model called it with.
        kind: What it waits for.
        payload: What the tool says of it.
        resume_schema: JSON schema of the answer.
        args_schema: JSON schema of the arguments, for edited ones.
        on_expiry: What happens when nobody answers in time.
        agent: The run's agent.
    """

    tool_name: str
    args: Json = None
    kind: Kind
    payload: Json = None
    resume_schema: dict[str, Json] = Field(default_factory=dict)
    args_schema: dict[str, Json] = Field(default_factory=dict)
    on_expiry: OnExpiry = "decline"
    agent: str = ""

    def to_json(self) -> bytes:
        """The stored form."""
        return orjson.dumps(self.model_dump(mode="json", exclude_none=True))


@dataclass(frozen=True)
class Call:
    """A call that waits, or waited, for an answer.

    Attributes:
        tool_call_id: The call.
        step: Its step.
        round: How many answers it has had before this one.
        question: What is asked.
        since: When it began to wait; ms since 1970.
        until: When it is answered by itself; None for never.
        answer: What was answered; None while it waits.
        at: When; ms since 1970.
    """

    tool_call_id: str
    step: int
    round: int
    question: Question
    since: int
    until: int | None
    answer: Answer | None = None
    at: int | None = None

    @classmethod
    def read(cls, tool_call_id: str, state: bytes, question: bytes, times: bytes, answer: bytes | None) -> Call:
        """A call from its stored fields."""
        how, step, place, *decided = state.decode().split(" ")
        since, _, until = times.decode().partition(" ")
        return cls(
            tool_call_id=tool_call_id,
            step=int(step),
            round=int(place),
            question=Question.model_validate_json(question),
            since=int(since),
            until=int(until) if until else None,
            answer=Answer.model_validate_json(answer) if how == "decided" and answer else None,
            at=int(decided[1]) if how == "decided" else None,
        )

    def pending(self) -> PendingCall:
        """The call as callers see it while it waits."""
        return PendingCall(**self._fields())

    def inbox(self, run_id: str) -> InboxCall:
        """The same, in a list over all runs."""
        return InboxCall(run_id=run_id, agent=self.question.agent, **self._fields())

    def decision(self) -> DecisionView:
        """The answer as callers see it."""
        answer = self.answer
        if answer is None or self.at is None:
            raise LookupError("the call still waits")
        return DecisionView(
            tool_call_id=self.tool_call_id,
            tool_name=self.question.tool_name,
            decision=answer.kind,
            reason=answer.reason,
            actor=answer.actor,
            at=_moment(self.at),
        )

    def _fields(self) -> dict[str, Any]:
        asked = self.question
        return {
            "tool_call_id": self.tool_call_id,
            "tool_name": asked.tool_name,
            "args": asked.args,
            "kind": asked.kind,
            "payload": asked.payload,
            "resume_schema": asked.resume_schema or None,
            "since": _moment(self.since),
            "expires_at": None if self.until is None else _moment(self.until),
            "on_expiry": None if self.until is None else asked.on_expiry,
        }


def verbs_of(kind: str | None) -> tuple[Verb, ...]:
    """How a call that waits for this can be answered."""
    return _VERBS.get(kind or "", ())


def read_answers(entries: Mapping[str, bytes]) -> dict[str, Answer]:
    """The answers among the entries of a ledger."""
    return {name: Answer.model_validate_json(value) for name, value in entries.items() if ledger.is_answer(name)}


def read_calls(fields: Mapping[bytes, bytes]) -> list[Call]:
    """The calls of a run from what its hash of calls holds, those that waited first ahead."""
    named = {text(name): value for name, value in fields.items()}
    calls = [
        Call.read(name[2:], value, named["c:" + name[2:]], named["t:" + name[2:]], named.get("d:" + name[2:]))
        for name, value in named.items()
        if name.startswith("s:")
    ]
    return sorted(calls, key=lambda call: (call.since, call.tool_call_id))


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
