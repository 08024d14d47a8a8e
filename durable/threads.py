"""Threads: what a run is given of its conversation, what it adds to it, and what all of its runs have said.

Each run of a thread has one exchange, in the place that was its own when it began. What it has said takes that place
when it is suspended and when it ends, so nothing is ever there twice. Exchanges before it never change: every attempt
at a run is given the same history.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

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
    """What a run starts from: the history of its thread, and what it was asked. Where that begins with results of calls
    of the last response, the other calls of this response are closed, and no more.

    Raises:
        InvalidRequest: The request is not of the right shape.
        StoreUnavailable: Redis does not answer.
    """
    conversation = read_conversation(request)
    if record.thread_id is None:
        told = conversation.history
        answer = _answer(told[:-1], told[-1] if told else None)
        return (
            conversation
            if answer is None
            else replace(conversation, history=[*told[: answer.place + 1], answer.request])
        )
    said = [message for each in await runs.exchanges(record.thread_id, record.given) for message in _read(each)[1]]
    asked = conversation.history
    answer = _answer(said, asked[0] if asked else None)
    if answer is None:
        history = closed(said)
        return replace(conversation, history=[*history, *asked], inherited=len(history))
    history = [*closed(said[: answer.place]), said[answer.place]]
    return replace(
        conversation,
        history=[*history, answer.request, *asked[1:]],
        inherited=len(history),
        carried=answer.carried,
    )


@dataclass(frozen=True)
class _Answer:
    """Results of calls with which a run begins.

    Attributes:
        place: Where the response is that has made the calls.
        request: The results of all of its calls, and what else the run begins with.
        carried: How many of its parts the run was not given.
    """

    place: int
    request: ModelRequest
    carried: int


def _answer(said: Sequence[ModelMessage], given: ModelMessage | None) -> _Answer | None:
    """What a run begins with that is given results of calls of the last response; None when it is not."""
    place = next((i for i in reversed(range(len(said))) if isinstance(said[i], ModelResponse)), None)
    if place is None or not isinstance(given, ModelRequest):
        return None
    response: Any = said[place]
    known = {call_id for message in said[place + 1 :] for call_id in _answered(message)}
    new = _answered(given) & {call.tool_call_id for call in _without_torn_calls(response).tool_calls} - known
    if not new:
        return None
    missing = [_unfinished(response, call) for call in response.tool_calls if call.tool_call_id not in known | new]
    carried: list[Any] = [*missing, *(part for message in said[place + 1 :] for part in message.parts)]
    parts: list[Any] = list(given.parts)
    own = [part for part in parts if not (_is_result(part) and part.tool_call_id in known)]
    return _Answer(place, replace(given, parts=[*carried, *own]), len(carried))


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
    given = list(messages)
    found: list[ModelMessage] = []
    missing: list[ToolReturnPart] = []
    for index, message in enumerate(given):
        if isinstance(message, ModelResponse):
            if missing:
                found.append(ModelRequest(parts=[*missing]))
            response = _without_torn_calls(message)
            answered = {call for each in _requests(given[index + 1 :]) for call in _answered(each)}
            missing = [_unfinished(response, call) for call in response.tool_calls if call.tool_call_id not in answered]
            if response.parts or not message.parts:
                found.append(response)
            continue
        if found and not missing and isinstance(found[-1], ModelRequest) and _answered(message):
            # The results of a response come in one request, whichever run they came in.
            found[-1] = replace(found[-1], parts=[*found[-1].parts, *message.parts])
            continue
        found.append(replace(message, parts=[*missing, *message.parts]) if missing else message)
        missing = []
    return [*found, ModelRequest(parts=[*missing])] if missing else found


def _requests(messages: Iterable[ModelMessage]) -> Iterator[ModelRequest]:
    """The requests before the next response."""
    for message in messages:
        if not isinstance(message, ModelRequest):
            return
        yield message


def _is_result(part: Any) -> bool:
    return isinstance(part, ToolReturnPart | RetryPromptPart)


def _answered(message: ModelMessage) -> set[str]:
    """The calls that have a result in a message."""
    parts: list[Any] = list(message.parts)
    return {part.tool_call_id for part in parts if _is_result(part)}


def _read(exchange: bytes) -> tuple[str, list[ModelMessage]]:
    value = from_json(exchange)
    return value["runId"], ModelMessagesTypeAdapter.validate_python(value["messages"])


def _own(conversation: Conversation, messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """The messages beyond the thread's history. Where that was rewritten (by a history processor, or a dynamic system
    prompt), they are told by Pydantic AI's mark of the run that they are of."""
    before = conversation.history
    count = conversation.inherited
    if list(messages[:count]) == before[:count]:
        return _without_carried(conversation, messages[count:])
    known = {None, *(message.run_id for message in before)}
    first = next((i for i, message in enumerate(messages) if message.run_id not in known), len(messages))
    told = before[count:] if conversation.prompt is not None else before[count:-1]
    return _without_carried(conversation, [*told, *messages[first:]])


def _without_carried(conversation: Conversation, own: Sequence[ModelMessage]) -> list[ModelMessage]:
    """What a run has said without what its first request has of the thread."""
    count, first = conversation.carried, own[0] if own else None
    if not count or not isinstance(first, ModelRequest):
        return list(own)
    carried = conversation.history[conversation.inherited].parts[:count]
    parts = [part for part in first.parts if part not in carried]
    return [replace(first, parts=parts), *own[1:]]


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
