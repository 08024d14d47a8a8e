"""Calls that wait, or waited: what is asked, what was answered, and how both are stored.

A call may be asked about more than once. Each question has an id within its call, made of the call's step and round: it
is the same for every attempt at the run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson
from pydantic import Field

from durable import exact_json, ledger
from durable.chunks.base import Issue, Json, Wire
from durable.errors import InvalidRequest
from durable.store import text
from durable.suspension import Kind, OnExpiry
from durable.views import DecisionView, InboxCall, PendingCall

Verb = Literal["approve", "decline", "resume", "fail", "outcome", "message"]
_VERBS: Final[dict[str, tuple[Verb, ...]]] = {
    "approval": ("approve", "decline"),
    "resume": ("resume", "decline"),
    "external": ("resume", "decline"),
}
_QUESTION: Final = re.compile(r"([1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")

RECENT_ANSWERS: Final = 500
"""How many answers a run tells of, at most: its newest. What was answered to each question is kept all the same."""


class Answer(Wire):
    """What is answered.

    Attributes:
        kind: `approve` and `decline` a call that waits for approval; `resume` gives a call the data that it waits for,
            or is the result of one that is executed outside. `fail` is what a deadline may do; `outcome` is what a
            background task came to. `message` answers nothing: its `data` is what somebody tells the model.
        args: With `approve`: arguments to use in place of the model's.
        reason: With `decline`: why, for the model.
        data: With `resume`.
        actor: Who answers. Not part of what is answered, and neither is what follows.
        tool_name: The tool of the call. Set when it is stored.
        at: When it was stored; ms since 1970.
        seq: The chunk that tells of it.
    """

    kind: Verb
    args: dict[str, Json] | None = None
    reason: str | None = None
    data: Json = None
    actor: str | None = None
    tool_name: str | None = None
    at: int | None = None
    seq: int | None = None

    def digest(self) -> str:
        """Equal for equal answers, whoever gives them, before they are stored and after."""
        stored = exact_json.loads(
            self.model_copy(update={"actor": None, "tool_name": None, "at": None, "seq": None}).to_json()
        )
        value = {name: given for name, given in stored.items() if given is not None}
        return hashlib.sha256(exact_json.dumps(value, sort_keys=True)).hexdigest()[:32]

    def to_json(self) -> bytes:
        """The stored form; `kind` comes first."""
        return exact_json.dumps(self.model_dump(mode="json", exclude_none=True))


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
        issues: What was wrong with the answer before.
        agent: The run's agent.
        of_caller: Whether the run's caller executes the tool: the answer is the call's result.
    """

    tool_name: str
    args: Json = None
    kind: Kind
    payload: Json = None
    resume_schema: dict[str, Json] = Field(default_factory=dict)
    args_schema: dict[str, Json] = Field(default_factory=dict)
    on_expiry: OnExpiry = "decline"
    issues: list[Issue] | None = None
    agent: str = ""
    of_caller: bool = False

    def to_json(self) -> bytes:
        """The stored form."""
        return exact_json.dumps(self.model_dump(mode="json", exclude_none=True))


Place = tuple[int, int]
"""Which of the questions about a call: the call's step, and how many answers it has had before."""


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
    """

    tool_call_id: str
    step: int
    round: int
    question: Question
    since: int
    until: int | None
    answer: Answer | None = None

    @classmethod
    def read(cls, tool_call_id: str, state: bytes, question: bytes, times: bytes, answer: bytes | None) -> Call:
        """A call from its stored fields."""
        how, step, place, *_ = state.decode().split(" ")
        since, _, until = times.decode().partition(" ")
        return cls(
            tool_call_id=tool_call_id,
            step=int(step),
            round=int(place),
            question=Question.model_validate_json(question),
            since=int(since),
            until=int(until) if until else None,
            answer=Answer.model_validate_json(answer) if how == "decided" and answer else None,
        )

    def pending(self, run_id: str | None = None) -> PendingCall:
        """The call as callers see it while it waits; `run_id` when it is told of as a call below another run."""
        return PendingCall(run_id=run_id, **self._fields())

    def inbox(self, run_id: str) -> InboxCall:
        """The same, in a list over all runs."""
        return InboxCall(run_id=run_id, agent=self.question.agent, **self._fields())

    @property
    def place(self) -> Place:
        """Which of the questions about the call this is."""
        return self.step, self.round

    @property
    def question_id(self) -> str:
        """The name of that question, as callers see it."""
        return question_id(*self.place)

    @property
    def named(self) -> dict[str, Json]:
        """What tells it from others, as callers see it."""
        return {
            "toolCallId": self.tool_call_id,
            "questionId": self.question_id,
            "toolName": self.question.tool_name,
        }

    def _fields(self) -> dict[str, Any]:
        asked = self.question
        return {
            "tool_call_id": self.tool_call_id,
            "question_id": self.question_id,
            "tool_name": asked.tool_name,
            "args": asked.args,
            "kind": asked.kind,
            "payload": asked.payload,
            "resume_schema": asked.resume_schema or None,
            "issues": asked.issues,
            "since": _moment(self.since),
            "expires_at": None if self.until is None else _moment(self.until),
            "on_expiry": None if self.until is None else asked.on_expiry,
        }


def question_id(step: int, round_: int) -> str:
    """The name of a question about a call, as callers see it."""
    return f"{step}.{round_}"


def read_question_id(value: str) -> Place:
    """The step and the round of a question.

    Raises:
        InvalidRequest: It names none.
    """
    found = _QUESTION.fullmatch(value)
    if found is None:
        raise InvalidRequest("A question's id is the questionId of a call that waits.", field="questionId")
    return int(found[1]), int(found[2])


def verbs_of(kind: str | None) -> tuple[Verb, ...]:
    """How a call that waits for this can be answered."""
    return _VERBS.get(kind or "", ())


def read_answers(entries: Mapping[str, bytes]) -> dict[str, Answer]:
    """The answers among the entries of a ledger."""
    return {name: Answer.model_validate_json(value) for name, value in entries.items() if ledger.is_answer(name)}


def told_of(tool_call_id: str, place: Place, answer: Answer) -> dict[str, Json]:
    """What callers are told of an answer: a `DecisionView` on the wire, as far as it is known."""
    told: dict[str, Json] = {
        "toolCallId": tool_call_id,
        "questionId": question_id(*place),
        "toolName": answer.tool_name,
        "decision": answer.kind,
        "reason": answer.reason,
        "actor": answer.actor,
        "at": None if answer.at is None else _moment(answer.at).isoformat().replace("+00:00", "Z"),
    }
    return {name: value for name, value in told.items() if value is not None}


def read_decisions(fields: Mapping[bytes, bytes]) -> list[DecisionView]:
    """The newest answers of a run from what its hash of calls holds, in the order in which they were given."""
    values = [value.split(b" ", 2) for name, value in fields.items() if name.startswith(b"a:")]
    values.sort(key=lambda value: int(value[0]))
    return [DecisionView.model_validate({**orjson.loads(told), "at": _moment(int(at))}) for _, at, told in values]


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
