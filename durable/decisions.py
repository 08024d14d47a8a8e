"""Answers from outside to tool calls that wait: who may be asked, what was answered, and that it is answered once.

The first answer stands. A call is judged by its own state, not by its run's: an answer may come while the run still
executes its other calls, and the same answer again is no error, however often and however late it comes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field
from referencing import Registry
from referencing.exceptions import Unresolvable

from durable import ledger
from durable.chunks import (
    Approval,
    Chunk,
    ToolCallDecided,
    ToolCallDecidedPayload,
    ToolOutputDenied,
    ToolOutputDeniedPayload,
    encode_body,
)
from durable.chunks.base import Json, Wire
from durable.errors import AlreadyDecided, InvalidRequest, RequestTooLarge, RunEnded, UnknownCall
from durable.positions import Position, batches
from durable.runs import WAKE_GRACE, RunRecord, Runs
from durable.runs.collection import as_json
from durable.runs.record import RUN_ID
from durable.scripts import DECIDE
from durable.store import Store, text
from durable.suspension import Kind, OnExpiry
from durable.views import DecisionView, InboxCall, PendingCall, RunView

DEADLINE: Final = "deadline"
"""The actor of an answer that nobody gave in time."""
LARGEST_ANSWER: Final = 262_144
"""Bytes of an answer's JSON, at most."""
LONGEST_REASON: Final = 1000
LONGEST_ACTOR: Final = 200
"""Characters of what is said of an answer, at most."""
OUT_OF_TIME: Final = "Nobody answered in time."

_MEMBER: Final = re.compile(rf"{RUN_ID.pattern}:.*", re.ASCII | re.DOTALL)

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


class Decisions:
    """The calls of a deployment that wait, or waited, for an answer."""

    def __init__(self, store: Store, runs: Runs) -> None:
        self._store = store
        self._runs = runs

    async def calls(self, run_ids: Sequence[str]) -> list[list[Call]]:
        """The calls of each run, those that waited first ahead.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        if not run_ids:
            return []
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hgetall(self._store.keys.calls(run_id))
            found = await pipe.execute()
        return [read_calls(fields) for fields in found]

    async def answers(self, run_id: str) -> tuple[dict[str, Answer], int]:
        """The answers of a run under their names in the ledger, and how many there were before these were read.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        keys = self._store.keys
        async with self._store.guard(), self._store.redis.pipeline(transaction=True) as pipe:
            pipe.hget(keys.run(run_id), "decisions")
            pipe.hgetall(keys.ledger(run_id))
            count, entries = await pipe.execute()
        return read_answers({text(name): value for name, value in entries.items()}), int(count or 0)

    async def page(
        self, *, agent: str = "", limit: int = 50, cursor: str | None = None
    ) -> tuple[list[InboxCall], str | None]:
        """Calls of all runs, or of those of an agent, that wait; those that wait longest first, and the cursor of the
        next page. Calls whose run expired leave the index.

        Raises:
            InvalidRequest: The cursor is not one of ours.
            StoreUnavailable: Redis does not answer.
        """
        index = self._store.keys.pending
        found: list[InboxCall] = []
        seen = Position.parse(cursor, _MEMBER)
        async with aclosing(batches(self._store, index, seen, size=limit)) as read:
            async for batch in read:
                places = [_place(position.member) for position in batch]
                calls = await self._each(places)
                await self._forget(index, [at.member for at, call in zip(batch, calls, strict=True) if call is None])
                for position, (run_id, _), call in zip(batch, places, calls, strict=True):
                    if call is not None and call.answer is None and agent in {"", call.question.agent}:
                        found.append(call.inbox(run_id))
                        if len(found) == limit:
                            return found, str(position)
        return found, None

    async def decide(self, run_id: str, tool_call_id: str, answer: Answer, *, due: bool = False) -> RunRecord | None:
        """Answer a call, once. Returns the run when it has to be woken, else None.

        Args:
            run_id: The run.
            tool_call_id: The call.
            answer: What is answered. The same again changes nothing.
            due: Whether this is what a deadline does: nothing happens if it has not passed, or is there no more.

        Raises:
            InvalidRequest: The answer is not one to what is asked, or does not fit its schema. The call still waits.
            RequestTooLarge: It is larger than `LARGEST_ANSWER`.
            UnknownRun, RunExpired, UnknownCall: There is no such run or call.
            AlreadyDecided: It was answered in another way; `details` tell how.
            RunEnded: The run ended before the call was answered.
            StoreUnavailable: Redis does not answer.
        """
        while True:
            call = await self._call(run_id, tool_call_id)
            if call.answer is None and not due:
                _check(call.question, answer)
            verdict, *more = await self._apply(run_id, call, answer, due=due)
            match text(verdict):
                case "applied":
                    return await self._runs.get(run_id) if text(more[0]) == "suspended" else None
                case "same":
                    return None
                case "unknown":
                    raise UnknownCall
                case "ended":
                    raise RunEnded("The run ended before this call was answered.")
                case "changed" if due:
                    return None
                case "decided":
                    decided = await self._call(run_id, tool_call_id)
                    if decided.answer is not None:
                        raise AlreadyDecided(decision=decided.decision().model_dump(mode="json", by_alias=True))

    async def due(self, limit: int) -> list[tuple[str, str, OnExpiry]]:
        """Calls whose deadline has passed: run, call, and what happens then. One that is gone leaves the list.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        keys = self._store.keys
        async with self._store.guard():
            seconds, micros = await self._store.redis.time()
            now = int(seconds) * 1000 + int(micros) // 1000
            members = cast(
                "list[bytes]", await self._store.redis.zrangebyscore(keys.deadlines, "-inf", now, start=0, num=limit)
            )
        places = [_place(text(member)) for member in members]
        calls = await self._each(places)
        gone = [member for member, call in zip(members, calls, strict=True) if call is None or call.answer is not None]
        await self._forget(keys.deadlines, gone)
        return [
            (run_id, call_id, call.question.on_expiry)
            for (run_id, call_id), call in zip(places, calls, strict=True)
            if call is not None and call.answer is None
        ]

    async def _apply(self, run_id: str, call: Call, answer: Answer, *, due: bool) -> list[Any]:
        keys = self._store.keys
        with as_json():
            chunk = encode_body(_chunk(call, answer))
            body, digest = answer.to_json(), answer.digest()
        return cast(
            "list[Any]",
            await self._store.run(
                DECIDE,
                [
                    keys.run(run_id),
                    keys.log(run_id),
                    keys.ledger(run_id),
                    keys.calls(run_id),
                    keys.pending,
                    keys.deadlines,
                    keys.wakeups,
                ],
                [
                    keys.channel(run_id),
                    run_id,
                    call.tool_call_id,
                    f"{call.step} {call.round}",
                    digest,
                    body,
                    ledger.answer_key(call.step, call.tool_call_id, call.round),
                    chunk,
                    keys.status_indexes,
                    int(WAKE_GRACE * 1000),
                    keys.nudges,
                    "1" if due else "0",
                ],
            ),
        )

    async def _call(self, run_id: str, tool_call_id: str) -> Call:
        [call] = await self._each([(run_id, tool_call_id)])
        if call is None:
            await self._runs.get(run_id)
            raise UnknownCall
        return call

    async def _forget(self, index: str, members: Sequence[str | bytes]) -> None:
        if members:
            async with self._store.guard():
                await self._store.redis.zrem(index, *members)

    async def _each(self, places: Sequence[tuple[str, str]]) -> list[Call | None]:
        if not places:
            return []
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id, call in places:
                pipe.hmget(self._store.keys.calls(run_id), [f"s:{call}", f"c:{call}", f"t:{call}", f"d:{call}"])
            rows = await pipe.execute()
        return [
            Call.read(call, *row) if row[0] is not None else None for (_, call), row in zip(places, rows, strict=True)
        ]


def verbs_of(kind: str | None) -> tuple[Verb, ...]:
    """How a call that waits for this can be answered."""
    return _VERBS.get(kind or "", ())


def with_calls(view: RunView, calls: Sequence[Call]) -> RunView:
    """A run with its calls that wait, unless it has ended, and with those that were answered."""
    pending = [] if view.ended else [call.pending() for call in calls if call.answer is None]
    decided = [call.decision() for call in calls if call.answer is not None]
    return view.model_copy(update={"pending": pending or None, "decisions": decided or None})


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


def _chunk(call: Call, answer: Answer) -> Chunk:
    """What tells the run's observers of an answer."""
    names: dict[str, Any] = {"tool_call_id": call.tool_call_id, "tool_name": call.question.tool_name}
    actor = {} if answer.actor is None else {"actor": answer.actor}
    if answer.kind == "decline":
        reason = {} if answer.reason is None else {"reason": answer.reason}
        approval = Approval(id=call.tool_call_id, approved=False, **reason, **actor)
        return ToolOutputDenied(payload=ToolOutputDeniedPayload(**names, args=call.question.args, approval=approval))
    edited = {} if answer.args is None else {"args": answer.args}
    return ToolCallDecided(payload=ToolCallDecidedPayload(**names, decision=answer.kind, **edited, **actor))


def _check(asked: Question, answer: Answer) -> None:
    """Refuse what is no answer to what is asked, or what nobody outside may say."""
    verbs = verbs_of(asked.kind)
    if answer.kind not in verbs:
        raise InvalidRequest(f"This call can be answered by: {', '.join(verbs)}.")
    if len(answer.actor or "") > LONGEST_ACTOR or len(answer.reason or "") > LONGEST_REASON:
        raise InvalidRequest(f"A reason has {LONGEST_REASON} characters, at most, and an actor {LONGEST_ACTOR}.")
    if answer.actor == DEADLINE:
        raise InvalidRequest("This actor stands for nobody's answer.", field="actor")
    with as_json():
        stored = answer.to_json()
    if len(stored) > LARGEST_ANSWER:
        raise RequestTooLarge(f"An answer has {LARGEST_ANSWER} bytes, at most.")
    # What is stored is looked at: it may differ from what was given, as a number that JSON does not have.
    values = orjson.loads(stored)
    if answer.kind == "approve" and answer.args is not None:
        _fits(values["args"], asked.args_schema, "args")
    if answer.kind == "resume":
        _fits(values.get("data"), asked.resume_schema, "data")


def _fits(value: Json, schema: dict[str, Json], name: str) -> None:
    """Refuse a value that does not fit its schema, without repeating the value."""
    try:
        # A registry of its own: nothing is fetched from anywhere.
        problems = list(Draft202012Validator(schema, registry=Registry()).iter_errors(value))[:20]
    except (SchemaError, Unresolvable, RecursionError) as error:
        raise InvalidRequest("The schema of the answer can't be used.") from error
    if problems:
        issues = [
            {
                "field": ".".join([name, *(str(part)[:50] for part in problem.absolute_path)]),
                "message": f"does not fit {problem.validator!r}",
            }
            for problem in problems
        ]
        raise InvalidRequest("The answer does not fit its schema.", issues=issues)


def _place(member: str) -> tuple[str, str]:
    """The run and the call that a member of an index names."""
    run_id, _, call = member.partition(":")
    return run_id, call


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
