"""A run's conversation as callers read it, from its checkpoints.

Invariant: a model response that is under way, or was torn with its worker, is not part of it, so no text is ever there
twice. A response that ended with its run, because that was cancelled or failed, is its last message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    UserPromptPart,
)

from durable.checkpoint import decode_messages
from durable.chunks import ToolCall, ToolError, ToolResult
from durable.chunks.base import Json
from durable.runs import Runs
from durable.threads import given
from durable.translate import call_chunk, outcome_chunk, to_json_value
from durable.views import MessageView


async def transcript(runs: Runs, run_id: str) -> list[ModelMessage]:
    """The conversation of a run, up to its last completed model response; when it has ended, to its end.

    Raises:
        UnknownRun, RunExpired: There is no such run.
        StoreUnavailable: Redis does not answer.
    """
    record = await runs.get(run_id)
    conversation = await given(runs, record, await runs.request(run_id))
    entries = await runs.checkpoints(run_id)
    messages = decode_messages(conversation.history, entries)
    if not entries and conversation.prompt is not None:
        # Only a checkpoint has the prompt as a message; before the first one it is all that was said.
        messages.append(ModelRequest(parts=[UserPromptPart(content=conversation.prompt)]))
    return messages


def folded(messages: Sequence[ModelMessage]) -> list[MessageView]:
    """The conversation by roles. What only the model's provider understands is left out."""
    return [view for message in messages for view in _views(message)]


def _views(message: ModelMessage) -> Iterator[MessageView]:
    if isinstance(message, ModelResponse):
        yield from _said(message)
        return
    outcomes: list[dict[str, Json]] = []
    for part in message.parts:
        if part.part_kind in {"tool-return", "retry-prompt"} and getattr(part, "tool_name", None):
            outcomes.append(_wire(outcome_chunk(part)))
            continue
        if isinstance(part, SystemPromptPart):
            told: MessageView | None = MessageView(role="system", content=part.content)
        elif isinstance(part, UserPromptPart):
            told = MessageView(role="user", content=_user_content(part))
        elif part.part_kind in {"retry-prompt", "retry-feedback"}:
            # What the framework, not a person, told the model about its response.
            told = MessageView(role="system", content=part.model_response())
        else:
            told = None
        if told is not None:
            yield from _results(outcomes)
            outcomes = []
            yield told
    yield from _results(outcomes)


def _said(response: ModelResponse) -> Iterator[MessageView]:
    """What the model said, and what the provider's own tools returned to it meanwhile."""
    text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    calls = [
        _wire(call_chunk(part, provider_executed=isinstance(part, NativeToolCallPart)))
        for part in response.parts
        if isinstance(part, ToolCallPart | NativeToolCallPart)
    ]
    if text or calls:
        # A field that is set is on the wire, so it is only set where there is something.
        yield MessageView(role="assistant", content=text, **({"tool_calls": calls} if calls else {}))
    returns = [part for part in response.parts if part.part_kind == "builtin-tool-return"]
    yield from _results([_wire(outcome_chunk(part, provider_executed=True)) for part in returns])


def _results(outcomes: list[dict[str, Json]]) -> Iterator[MessageView]:
    if outcomes:
        yield MessageView(role="tool", tool_results=outcomes)


def _user_content(part: UserPromptPart) -> str | list[Json]:
    """Text as text; what has more than text as a list."""
    if isinstance(part.content, str):
        return part.content
    if all(isinstance(item, str) for item in part.content):
        return "\n".join(item for item in part.content if isinstance(item, str))
    return [{"type": "text", "text": item} if isinstance(item, str) else to_json_value(item) for item in part.content]


def _wire(chunk: ToolCall | ToolResult | ToolError) -> dict[str, Json]:
    value: dict[str, Json] = chunk.payload.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return value
