"""Threads: what a run is given of its conversation, what it adds to it, and what all of its runs have said.

Each run of a thread has one exchange, in the place that was its own when it began. What it has said takes that place
when it is suspended and when it ends, so nothing is ever there twice. Exchanges before it never change: every attempt
at a run is given the same history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

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
from durable.errors import ThreadConflict, UnknownThread
from durable.runs import RunRecord, RunRequest, Runs, check_thread_id

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


async def thread_messages(
    runs: Runs, thread_id: str, resource_id: str | None = None
) -> list[tuple[str, list[ModelMessage]]]:
    """What each run of a thread has said, in order, with the run's id.

    Args:
        runs: Of the deployment.
        thread_id: The thread.
        resource_id: Whose it has to be, if that matters.

    Raises:
        InvalidRequest: The id is not one.
        UnknownThread: There is no such thread.
        ThreadConflict: It belongs to another resource.
        StoreUnavailable: Redis does not answer.
    """
    known = await runs.thread(check_thread_id(thread_id))
    if not known:
        raise UnknownThread
    if resource_id is not None and resource_id != known["resource"]:
        raise ThreadConflict
    return [_read(exchange) for exchange in await runs.exchanges(thread_id)]


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
