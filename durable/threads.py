"""Threads: what a run is given of its conversation, what it adds to it, and what all of its runs have said.

Each run of a thread has one exchange, in the place that was its own when it began. What it has said takes that place
when it is suspended and when it ends, so nothing is ever there twice. Exchanges before it never change: every attempt
at a run is given the same history.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Self, TypeVar

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_core import PydanticSerializationError, from_json, to_json

from durable.chunks.codec import without_surrogates
from durable.conversation import Conversation, read_conversation
from durable.errors import InvalidRequest, ThreadConflict, UnknownThread
from durable.runs import RunRecord, RunRequest, Runs, check_thread_id
from durable.runs.record import RUN_ID

T = TypeVar("T")

READ_AT_ONCE: Final = 20
"""Exchanges that are read at a time, at most: one has all that a run has said."""
_CURSOR: Final = re.compile(rf"([0-9]{{1,9}})\.({RUN_ID.pattern})\.([0-9]{{1,9}})", re.ASCII)

UNFINISHED = "This call has no result: its run ended before."


async def given(runs: Runs, record: RunRecord, request: RunRequest) -> Conversation:
    """What a run starts from: the history of its thread, and what it was asked.

    Raises:
        InvalidRequest: The request is not of the right shape.
        StoreUnavailable: Redis does not answer.
    """
    conversation = read_conversation(request)
    if record.thread_id is None:
        return conversation
    history = _history(await runs.exchanges(record.thread_id, record.given))
    return replace(conversation, history=[*history, *conversation.history], inherited=len(history))


@dataclass(frozen=True)
class Place:
    """A place in a thread: the last message that was seen.

    Attributes:
        exchange: Which of the thread's exchanges it is in, from 0.
        run_id: Whose that was: a retry may have taken its place since.
        number: Which message of the run it is, from 1.
    """

    exchange: int
    run_id: str
    number: int

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """The place that a cursor names.

        Raises:
            InvalidRequest: The cursor is not one of ours.
        """
        found = _CURSOR.fullmatch(cursor)
        if found is None:
            raise InvalidRequest("The cursor is not one that this server gave.")
        return cls(int(found[1]), found[2], int(found[3]))

    def __str__(self) -> str:
        """The cursor."""
        return f"{self.exchange}.{self.run_id}.{self.number}"


async def thread_page(
    runs: Runs,
    thread_id: str,
    as_told: Callable[[list[ModelMessage]], Sequence[T]],
    *,
    resource_id: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    newest_first: bool = False,
) -> tuple[list[tuple[Place, T]], str | None]:
    """Messages of a thread with their places, and the cursor of the next page.

    Args:
        runs: Of the deployment.
        thread_id: The thread.
        as_told: Makes of what a run has said the messages as they are told.
        resource_id: Whose it has to be, if that matters.
        limit: Messages, at most.
        cursor: Of a page of the same order and the same messages.
        newest_first: Whether to read from the end.

    Raises:
        InvalidRequest: The id, or the cursor, is not one.
        UnknownThread: There is no such thread.
        ThreadConflict: It belongs to another resource.
        StoreUnavailable: Redis does not answer.
    """
    known = await runs.thread(check_thread_id(thread_id))
    if not known:
        raise UnknownThread
    if resource_id is not None and resource_id != known["resource"]:
        raise ThreadConflict
    seen, size = None if cursor is None else Place.parse(cursor), min(limit, READ_AT_ONCE)
    found: list[tuple[Place, T]] = []
    async with aclosing(_exchanges(runs, thread_id, seen, size, newest_first=newest_first)) as read:
        async for index, (run_id, said) in read:
            told = [(Place(index, run_id, number), message) for number, message in enumerate(as_told(said), 1)]
            if seen is not None and (index, run_id) == (seen.exchange, seen.run_id):
                told = told[: seen.number - 1] if newest_first else told[seen.number :]
            found += reversed(told) if newest_first else told
            if len(found) >= limit:
                return found[:limit], str(found[limit - 1][0])
    return found, None


async def _exchanges(
    runs: Runs, thread_id: str, seen: Place | None, size: int, *, newest_first: bool
) -> AsyncGenerator[tuple[int, tuple[str, list[ModelMessage]]]]:
    """What each run has said, with its place; from that of the last message seen, some at a time."""
    if not newest_first:
        start = 0 if seen is None else seen.exchange
        while batch := await runs.exchanges(thread_id, size, start=start):
            for index, value in enumerate(batch, start):
                yield index, _read(value)
            start += len(batch)
        return
    end = await runs.exchange_count(thread_id)
    end = end if seen is None else min(end, seen.exchange + 1)
    while end > 0:
        start = max(0, end - size)
        batch = await runs.exchanges(thread_id, end - start, start=start)
        for index in reversed(range(len(batch))):
            yield start + index, _read(batch[index])
        end = start


def exchange(run_id: str, conversation: Conversation, messages: Sequence[ModelMessage], *, whole: bool) -> bytes:
    """What a run adds to its thread, as it is stored; b"" when that is nothing.

    Args:
        run_id: The run.
        conversation: What it was given.
        messages: The whole conversation.
        whole: Whether it counts. A run that failed adds nothing; nor does one to which no model has answered.
    """
    own = _own(conversation, messages) if whole else []
    if not any(isinstance(message, ModelResponse) for message in own):
        return b""
    value = {"runId": run_id, "messages": ModelMessagesTypeAdapter.dump_python(own, mode="json")}
    try:
        return to_json(value)
    except PydanticSerializationError:
        return to_json(without_surrogates(value))  # as in a checkpoint


def closed(messages: Iterable[ModelMessage]) -> list[ModelMessage]:
    """Messages as a history that a model accepts: calls of a response that was cut off are left out, and any other call
    without a result has one that says so."""
    found: list[ModelMessage] = []
    missing: list[ToolReturnPart] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            if missing:
                found.append(ModelRequest(parts=[*missing]))
            response = _without_torn_calls(message)
            missing = [_unfinished(response, call) for call in response.tool_calls]
            if response.parts or not message.parts:
                found.append(response)
            continue
        answered = {part.tool_call_id for part in message.parts if isinstance(part, ToolReturnPart | RetryPromptPart)}
        missing = [part for part in missing if part.tool_call_id not in answered]
        found.append(replace(message, parts=[*missing, *message.parts]) if missing else message)
        missing = []
    return [*found, ModelRequest(parts=[*missing])] if missing else found


def _history(exchanges: Iterable[bytes]) -> list[ModelMessage]:
    return closed(message for exchange in exchanges for message in _read(exchange)[1])


def _read(exchange: bytes) -> tuple[str, list[ModelMessage]]:
    value = from_json(exchange)
    return value["runId"], ModelMessagesTypeAdapter.validate_python(value["messages"])


def _own(conversation: Conversation, messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """The messages beyond the thread's history. Where that was rewritten (by a history processor, or a dynamic system
    prompt), they are told by Pydantic AI's mark of the run that they are of."""
    before = conversation.history
    count = conversation.inherited
    if list(messages[:count]) == before[:count]:
        return list(messages[count:])
    known = {None, *(message.run_id for message in before)}
    first = next((i for i, message in enumerate(messages) if message.run_id not in known), len(messages))
    told = before[count:] if conversation.prompt is not None else before[count:-1]
    return [*told, *messages[first:]]


def _without_torn_calls(response: ModelResponse) -> ModelResponse:
    if response.state == "complete" or not response.tool_calls:
        return response
    return replace(response, parts=[part for part in response.parts if not isinstance(part, ToolCallPart)])


def _unfinished(response: ModelResponse, call: ToolCallPart) -> ToolReturnPart:
    return ToolReturnPart(
        tool_name=call.tool_name,
        content=UNFINISHED,
        tool_call_id=call.tool_call_id,
        outcome="failed",
        timestamp=response.timestamp,  # the same at every reading
    )
