"""The way between a chunk and its bytes."""

from __future__ import annotations

from typing import get_args

from pydantic_core import PydanticSerializationError, from_json, to_json

from durable.chunks.background import (
    BackgroundTaskCancelled,
    BackgroundTaskCompleted,
    BackgroundTaskFailed,
    BackgroundTaskOutput,
    BackgroundTaskProgress,
    BackgroundTaskResumed,
    BackgroundTaskRunning,
    BackgroundTaskStarted,
    BackgroundTaskSuspended,
)
from durable.chunks.base import Chunk, Json
from durable.chunks.completion import GoalChunk, IsTaskComplete, TripwireChunk
from durable.chunks.lifecycle import (
    Abort,
    BudgetRaised,
    BudgetReached,
    Error,
    Finish,
    Start,
    StepFinish,
    StepStart,
    UserMessage,
    Watch,
)
from durable.chunks.output import (
    File,
    ObjectChunk,
    ObjectResult,
    Raw,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningSignature,
    ReasoningStart,
    RedactedReasoning,
    ResponseMetadata,
    Source,
    TextDelta,
    TextEnd,
    TextStart,
)
from durable.chunks.tools import (
    StepOutput,
    ToolCall,
    ToolCallApproval,
    ToolCallDecided,
    ToolCallDelta,
    ToolCallInputStreamingEnd,
    ToolCallInputStreamingStart,
    ToolCallSuspended,
    ToolError,
    ToolOutput,
    ToolOutputDenied,
    ToolResult,
)


class UnknownChunk(Chunk):
    """A chunk of a type that this version does not know. It survives a round trip unchanged."""


_KNOWN = (
    Start | StepStart | StepFinish | Finish | Error | Abort | ResponseMetadata | BudgetReached | BudgetRaised
    | TextStart | TextDelta | TextEnd
    | ReasoningStart | ReasoningDelta | ReasoningEnd | ReasoningSignature | RedactedReasoning
    | ToolCallInputStreamingStart | ToolCallDelta | ToolCallInputStreamingEnd
    | ToolCall | ToolResult | ToolError | ToolOutput | StepOutput
    | ToolCallApproval | ToolCallSuspended | ToolCallDecided | ToolOutputDenied
    | Source | File | Raw
    | ObjectChunk | ObjectResult
    | Watch
    | TripwireChunk | IsTaskComplete | GoalChunk | UserMessage
    | BackgroundTaskStarted | BackgroundTaskRunning | BackgroundTaskProgress | BackgroundTaskOutput
    | BackgroundTaskCompleted | BackgroundTaskFailed | BackgroundTaskCancelled
    | BackgroundTaskSuspended | BackgroundTaskResumed
)  # fmt: skip

KNOWN_TYPES: dict[str, type[Chunk]] = {cls.model_fields["type"].default: cls for cls in get_args(_KNOWN)}


def parse(data: bytes | str) -> Chunk:
    """Read one chunk from its JSON.

    Raises:
        ValueError: It is not a JSON object with a `type`, or the payload does not fit a known type.
    """
    return from_wire(from_json(data))


def from_wire(value: Json) -> Chunk:
    """Read one chunk from a JSON value.

    Raises:
        ValueError: as for `parse`.
    """
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError("a chunk is a JSON object with a type")  # noqa: TRY004
    return KNOWN_TYPES.get(value["type"], UnknownChunk).model_validate(value)


_ENVELOPE_ONLY = {"run_id", "seq", "attempt"}


def encode_body(chunk: Chunk) -> bytes:
    """The chunk's body as compact JSON on one line.

    Text that is not valid Unicode (half of a surrogate pair) is replaced, as a stream may be cut inside a character.
    """
    try:
        text = chunk.model_dump_json(by_alias=True, exclude_unset=True, exclude=_ENVELOPE_ONLY)
    except PydanticSerializationError:
        value = chunk.model_dump(by_alias=True, exclude_unset=True, exclude=_ENVELOPE_ONLY)
        return to_json(without_surrogates(value), inf_nan_mode="null")
    return text.encode()


def without_surrogates(value: Json) -> Json:
    """The value, with text that is not valid Unicode replaced."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
        case list() | tuple():
            return [without_surrogates(item) for item in value]
        case _:
            return value
