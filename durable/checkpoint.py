"""Checkpoints: the conversation of a run up to its last completed model response, and what else carries over.

One is written after each model response, in the same step as the response's last chunk; so it is never ahead of the
log. It holds what the step added: "keep the first n messages, then append these". The bytes written over a run grow
with its length, not with its square, also when a history processor rewrites what was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import Field, TypeAdapter
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from pydantic_ai.usage import RunUsage
from pydantic_core import PydanticSerializationError, to_json

from durable.chunks import Wire
from durable.chunks.base import Json
from durable.chunks.codec import without_surrogates

_USAGE = TypeAdapter(RunUsage)


@dataclass(frozen=True)
class Progress:
    """What an attempt starts from.

    Attributes:
        messages: The conversation, ending with a model response.
        before: The usage before that response.
        usage: The usage with it.
        steps: Model requests so far.
        message_id: Of that response, in the log.
        tool_retries: Failures of each tool since it last did well.
        output_retries: Failures of the output so far.
        seq: The log's last seq when the response was complete.
    """

    messages: list[ModelMessage]
    before: RunUsage
    usage: RunUsage
    steps: int
    message_id: str
    tool_retries: dict[str, int] = field(default_factory=dict)
    output_retries: int = 0
    seq: int = 0


class _Entry(Wire):
    """One element of the stored list. The last one of an ended run has only messages."""

    keep: int
    messages: list[Json]
    before: Json = None
    usage: Json = None
    steps: int | None = None
    message_id: str = ""
    tool_retries: dict[str, int] = Field(default_factory=dict)
    output_retries: int = 0


def encode(progress: Progress, stored: Sequence[ModelMessage]) -> bytes:
    """The entry that takes the stored conversation to the one of `progress`."""
    kept = _common(stored, progress.messages)
    entry = _Entry(
        keep=kept,
        messages=ModelMessagesTypeAdapter.dump_python(progress.messages[kept:], mode="json"),
        before=_USAGE.dump_python(progress.before, mode="json"),
        usage=_USAGE.dump_python(progress.usage, mode="json"),
        steps=progress.steps,
        message_id=progress.message_id,
        tool_retries=progress.tool_retries,
        output_retries=progress.output_retries,
    )
    return _to_bytes(entry)


def encode_end(messages: Sequence[ModelMessage], stored: Sequence[ModelMessage]) -> bytes:
    """The entry that takes the stored conversation to the one that a run ended with; b"" when nothing changed."""
    kept = _common(stored, messages)
    if kept == len(messages) == len(stored):
        return b""
    dumped = ModelMessagesTypeAdapter.dump_python(list(messages[kept:]), mode="json")
    return _to_bytes(_Entry(keep=kept, messages=dumped))


def _to_bytes(entry: _Entry) -> bytes:
    try:
        return entry.model_dump_json(by_alias=True, exclude_unset=True).encode()
    except PydanticSerializationError:
        # Half of a surrogate pair, from a model whose stream was cut inside a character: as in the log.
        return to_json(without_surrogates(entry.model_dump(by_alias=True, exclude_unset=True)))


def decode(history: Sequence[ModelMessage], entries: Iterable[bytes], seq: int) -> Progress | None:
    """What the stored entries amount to; None when there are none.

    Args:
        history: The messages that the run was given.
        entries: As they were written.
        seq: The log's last seq at the newest of them.
    """
    messages, newest = _replay(history, entries)
    if newest is None or newest.steps is None:
        return None
    return Progress(
        messages=messages,
        before=_USAGE.validate_python(newest.before),
        usage=_USAGE.validate_python(newest.usage),
        steps=newest.steps,
        message_id=newest.message_id,
        tool_retries=newest.tool_retries,
        output_retries=newest.output_retries,
        seq=seq,
    )


def decode_messages(history: Sequence[ModelMessage], entries: Iterable[bytes]) -> list[ModelMessage]:
    """The conversation that the stored entries amount to."""
    return _replay(history, entries)[0]


def _replay(history: Sequence[ModelMessage], entries: Iterable[bytes]) -> tuple[list[ModelMessage], _Entry | None]:
    """The conversation after all entries, and the newest of them that is a response's."""
    messages: list[ModelMessage] = list(history)
    newest: _Entry | None = None
    for data in entries:
        entry = _Entry.model_validate_json(data)
        del messages[entry.keep :]
        messages += ModelMessagesTypeAdapter.validate_python(entry.messages)
        newest = entry if entry.steps is not None else newest
    return messages, newest


def _common(stored: Sequence[ModelMessage], messages: Sequence[ModelMessage]) -> int:
    """How many leading messages are the same."""
    count = 0
    for old, new in zip(stored, messages, strict=False):
        if old is not new and old != new:
            break
        count += 1
    return count
