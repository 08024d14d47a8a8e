"""The calls of a deployment that wait, or waited: found, and answered once.

The first answer to a question stands. A question is judged by its own state, not by its run's: an answer may come while
the run still executes its other calls, and the same answer again is no error, however often and however late it comes,
nor an answer to what the call is asked next.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final, cast

import orjson

from durable import ledger
from durable.chunks import (
    Approval,
    Chunk,
    ToolCallDecided,
    ToolCallDecidedPayload,
    ToolOutputDenied,
    ToolOutputDeniedPayload,
    ToolResult,
    ToolResultPayload,
    encode_body,
)
from durable.decisions.answers import check_answer
from durable.decisions.calls import (
    RECENT_ANSWERS,
    Answer,
    Call,
    Place,
    read_answers,
    read_calls,
    read_decisions,
    read_question_id,
    told_of,
)
from durable.errors import AlreadyDecided, LeaseLost, RunEnded, StoreUnavailable, UnknownCall
from durable.positions import Position, batches
from durable.runs import WAKE_GRACE, RunRecord, Runs
from durable.runs.collection import as_json
from durable.runs.record import RUN_ID
from durable.scripts import DECIDE
from durable.store import Store, text
from durable.suspension import OnExpiry
from durable.views import DecisionView, InboxCall, RunView

log = logging.getLogger(__name__)

OUT_OF_TIME: Final = "Nobody answered in time."
RETRY_SECONDS: Final = 0.2
"""How long an attempt waits for Redis before it tries again to store what its own code has decided."""

_MEMBER: Final = re.compile(rf"{RUN_ID.pattern}:.*", re.ASCII | re.DOTALL)


class Unreadable:
    """Stands for a call that this version can't read: it is left to one that can."""


class Decisions:
    """The calls of a deployment that wait, or waited, for an answer."""

    def __init__(self, store: Store, runs: Runs) -> None:
        self._store = store
        self._runs = runs

    async def calls(self, run_ids: Sequence[str]) -> list[list[Call]]:
        """The calls of each run, those that waited first ahead; each with what it was asked last.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return [read_calls(fields) for fields in await self._fields(run_ids)]

    async def calls_and_answers(self, run_ids: Sequence[str]) -> list[tuple[list[Call], list[DecisionView]]]:
        """The calls of each run, and its newest answers in the order in which they were given.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return [(read_calls(fields), read_decisions(fields)) for fields in await self._fields(run_ids)]

    async def open(self, run_id: str) -> list[Call]:
        """The calls of a run that wait for an answer, or have one with which they are made, and were not.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        [calls] = await self.calls([run_id])
        asked = [call for call in calls if call.answer is None or call.answer.kind in {"approve", "resume"}]
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for call in asked:
                made = ledger.key(call.step, call.tool_call_id, call.round + 1)
                pipe.hexists(self._store.keys.ledger(run_id), made)
            found = await pipe.execute()
        return [call for call, made in zip(asked, found, strict=True) if not made]

    async def answers(self, run_id: str) -> tuple[dict[str, Answer], int]:
        """The answers of a run under their names in the ledger, and how many there were before these were read.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        keys = self._store.keys
        async with self._store.guard():
            async with self._store.redis.pipeline(transaction=True) as pipe:
                pipe.hget(keys.run(run_id), "decisions")
                pipe.hkeys(keys.ledger(run_id))
                count, fields = await pipe.execute()
            # The outcomes beside them may be large, and this is asked while the run is executed.
            names = [name for name in map(text, fields) if ledger.is_answer(name)]
            values = cast("list[bytes]", await self._store.redis.hmget(keys.ledger(run_id), names)) if names else []
        return read_answers(dict(zip(names, values, strict=True))), int(count or 0)

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
                    if isinstance(call, Call) and call.answer is None and agent in {"", call.question.agent}:
                        found.append(call.inbox(run_id))
                        if len(found) == limit:
                            return found, str(position)
        return found, None

    async def decide(
        self, run_id: str, tool_call_id: str, answer: Answer, *, question: str | None = None, due: bool = False
    ) -> RunRecord | None:
        """Answer what is asked about a call, once. Returns the run when it has to be woken, else None.

        Args:
            run_id: The run.
            tool_call_id: The call.
            answer: What is answered. The same again changes nothing.
            question: The question, when the call may have been asked others. Default: what it was asked last.
            due: Whether this is what a deadline does: if it has not passed, the call is none for it.

        Raises:
            InvalidRequest: The answer is not one to what is asked, or does not fit its schema, or `question` is no
                question's id. The call still waits.
            RequestTooLarge: It is larger than `LARGEST_ANSWER`.
            UnknownRun, RunExpired, UnknownCall: There is no such run or call, or the call was not asked this.
            AlreadyDecided: It was answered in another way; `details` tell how.
            RunEnded: The run ended before the call was answered.
            StoreUnavailable: Redis does not answer.
        """
        asked = None if question is None else read_question_id(question)
        while True:
            call = await self._call(run_id, tool_call_id)
            asked = asked or call.place
            if call.place != asked:
                await self._compare(run_id, tool_call_id, asked, answer)
                return None
            if call.answer is None and not due:
                await check_answer(call.question, answer)
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
                    raise UnknownCall("The deadline has not passed, or is there no more.")
                case "decided":
                    await self._compare(run_id, tool_call_id, asked, answer)
                    return None

    async def given(self, run_id: str, tool_call_id: str, answer: Answer) -> Answer | None:
        """The newest answer that a call has had and that is the same as this one, as it is stored; None without one.

        Raises:
            UnknownRun, RunExpired, UnknownCall: There is no such run or call.
            StoreUnavailable: Redis does not answer.
        """
        step, newest = (await self._call(run_id, tool_call_id)).place
        with as_json():
            digest = answer.digest()
        for round_ in range(newest, -1, -1):
            stored = await self._stored(run_id, tool_call_id, (step, round_))
            if stored is not None and stored.digest() == digest:
                return stored
        return None

    async def settle(self, run_id: str, token: int, tool_call_id: str, asked: Place, answer: Answer) -> Answer:
        """What an attempt decides of a call by itself, unless the question has an answer. Returns the one that stands.

        Args:
            run_id: The run.
            token: Of the attempt that executes it.
            tool_call_id: The call.
            asked: The question.
            answer: What is decided.

        Raises:
            LeaseLost: The run has another owner.
            StoreUnavailable: Redis does not answer.
        """
        call = await self._call(run_id, tool_call_id)
        if call.place == asked and call.answer is None:
            verdict, *_ = await self._apply(run_id, call, answer, due=False, token=token)
            if text(verdict) in {"fenced", "ended", "unknown"}:
                raise LeaseLost
        stored = await self._stored(run_id, tool_call_id, asked)
        if stored is None:
            raise LeaseLost  # it was asked something else since
        return stored

    async def due(self, limit: int) -> list[tuple[str, str, str, OnExpiry]]:
        """Calls whose deadline has passed: run, call, question, and what happens then. One that is gone leaves the
        list.

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
        gone = [
            member
            for member, call in zip(members, calls, strict=True)
            if call is None or (isinstance(call, Call) and call.answer is not None)
        ]
        await self._forget(keys.deadlines, gone)
        return [
            (run_id, call_id, call.question_id, call.question.on_expiry)
            for (run_id, call_id), call in zip(places, calls, strict=True)
            if isinstance(call, Call) and call.answer is None
        ]

    async def _apply(
        self, run_id: str, call: Call, answer: Answer, *, due: bool, token: int | None = None
    ) -> list[Any]:
        keys = self._store.keys
        with as_json():
            chunk = encode_body(_chunk(call, answer))
            named = answer.model_copy(update={"tool_name": call.question.tool_name})
            body, digest = named.to_json(), answer.digest()
            told = orjson.dumps(told_of(call.tool_call_id, call.place, named))
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
                    told,
                    RECENT_ANSWERS,
                    "" if token is None else token,
                ],
            ),
        )

    async def _compare(self, run_id: str, tool_call_id: str, asked: Place, answer: Answer) -> None:
        """Judge an answer to a question that was answered before, whatever the call was asked since."""
        given = await self._stored(run_id, tool_call_id, asked)
        if given is None:
            raise UnknownCall("This question about the call neither waits for an answer nor has had one.")
        with as_json():
            same = given.digest() == answer.digest()
        if not same:
            raise AlreadyDecided(decision=told_of(tool_call_id, asked, given))

    async def _stored(self, run_id: str, tool_call_id: str, asked: Place) -> Answer | None:
        """The answer to a question, whatever the call was asked since."""
        step, round_ = asked
        async with self._store.guard():
            stored = await self._store.redis.hget(
                self._store.keys.ledger(run_id), ledger.answer_key(step, tool_call_id, round_)
            )
        return None if stored is None else Answer.model_validate_json(stored)

    async def _call(self, run_id: str, tool_call_id: str) -> Call:
        [call] = await self._each([(run_id, tool_call_id)])
        if isinstance(call, Call):
            return call
        await self._runs.get(run_id)
        raise UnknownCall

    async def _fields(self, run_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        """What is stored of the calls of each run."""
        if not run_ids:
            return []
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hgetall(self._store.keys.calls(run_id))
            return cast("list[dict[bytes, bytes]]", await pipe.execute())

    async def _forget(self, index: str, members: Sequence[str | bytes]) -> None:
        if members:
            async with self._store.guard():
                await self._store.redis.zrem(index, *members)

    async def _each(self, places: Sequence[tuple[str, str]]) -> list[Call | Unreadable | None]:
        if not places:
            return []
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id, call in places:
                pipe.hmget(self._store.keys.calls(run_id), [f"s:{call}", f"c:{call}", f"t:{call}", f"d:{call}"])
            rows = await pipe.execute()
        return [_read(place, row) if row[0] is not None else None for place, row in zip(places, rows, strict=True)]


class RunAnswers:
    """The answers to the calls of one run, as the attempt has them that executes it.

    Args:
        decisions: The calls of the deployment.
        run_id: The run.
        token: Of the attempt.
    """

    def __init__(self, decisions: Decisions, run_id: str, token: int) -> None:
        self._decisions = decisions
        self._run_id = run_id
        self._token = token

    async def read(self) -> tuple[dict[str, Answer], int]:
        """All of them, and how many there were before; see `Decisions.answers`."""
        return await self._decisions.answers(self._run_id)

    async def settle(self, tool_call_id: str, asked: Place, answer: Answer) -> Answer:
        """What the agent's own code decides; waits for Redis. Returns the answer that stands; see `Decisions.settle`.

        Raises:
            LeaseLost: The run has another owner.
        """
        while True:
            try:
                return await self._decisions.settle(self._run_id, self._token, tool_call_id, asked, answer)
            except StoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)  # for as long as the lease lasts: whoever loses it is stopped


def with_calls(
    view: RunView, calls: Sequence[Call], decisions: Sequence[DecisionView], below: Sequence[tuple[str, Call]] = ()
) -> RunView:
    """A run with its calls that wait, and those `below` it, unless it has ended, and with the answers that it was
    given."""
    own = [call.pending() for call in calls if call.answer is None]
    pending = [] if view.ended else [*own, *(call.pending(run_id) for run_id, call in below)]
    return view.model_copy(update={"pending": pending or None, "decisions": list(decisions) or None})


def _chunk(call: Call, answer: Answer) -> Chunk:
    """What tells the run's observers of an answer."""
    names: dict[str, Any] = {
        "tool_call_id": call.tool_call_id,
        "question_id": call.question_id,
        "tool_name": call.question.tool_name,
    }
    actor = {} if answer.actor is None else {"actor": answer.actor}
    if answer.kind == "decline":
        reason = {} if answer.reason is None else {"reason": answer.reason}
        approval = Approval(id=call.tool_call_id, approved=False, **reason, **actor)
        return ToolOutputDenied(payload=ToolOutputDeniedPayload(**names, args=call.question.args, approval=approval))
    if answer.kind == "resume" and call.question.of_caller:
        del names["question_id"]
        return ToolResult(
            payload=ToolResultPayload(**names, result=answer.data, is_error=False, provider_executed=False)
        )
    edited = {} if answer.args is None else {"args": answer.args}
    return ToolCallDecided(payload=ToolCallDecidedPayload(**names, decision=answer.kind, **edited, **actor))


def _read(place: tuple[str, str], row: Sequence[bytes]) -> Call | Unreadable:
    run_id, call = place
    try:
        return Call.read(call, *row)
    except (ValueError, TypeError) as error:  # pydantic's is a ValueError
        log.warning("run %s: a call that waits can't be read: %s", run_id, type(error).__name__)
        return Unreadable()


def _place(member: str) -> tuple[str, str]:
    """The run and the call that a member of an index names."""
    run_id, _, call = member.partition(":")
    return run_id, call
