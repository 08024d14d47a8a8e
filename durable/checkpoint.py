"""Checkpoints: the conversation of a run up to its last completed model response, and what else carries over.

One is written after each model response, in the same step as the response's last chunk; so it is never ahead of the
log. It holds what the step added: "keep the first n messages, then append these". The bytes written over a run grow
with its length, not with its square, also when a history processor rewrites what was there.

A message counts as the same only if nothing in it has been changed since it was stored, in place or by putting another
in its place; so what is stored is what the run has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, is_dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
from pydantic_ai.usage import RunUsage
from pydantic_core import PydanticSerializationError, to_json

from durable.chunks import Wire
from durable.chunks.base import Json
from durable.chunks.codec import without_surrogates

_USAGE = TypeAdapter(RunUsage)
_UNCHANGEABLE: Final = frozenset({str, type(None), int, float, bool, bytes, datetime, type})


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
        tools: The tools that the model was given at first: of any other it is told in the conversation. None before
            any request.
        enqueued: Messages that wait to be told to the model, as JSON.
        told: The background tasks whose results the model was told of, by the names of their calls in the ledger; and
            the messages that it was told.
        first: The seq of the chunk that began the response.
        seq: The log's last seq when the response was complete.
    """

    messages: list[ModelMessage]
    before: RunUsage
    usage: RunUsage
    steps: int
    message_id: str
    tool_retries: dict[str, int] = field(default_factory=dict)
    output_retries: int = 0
    tools: frozenset[str] | None = None
    enqueued: list[Json] = field(default_factory=list)
    told: tuple[str, ...] = ()
    first: int = 0
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
    tools: list[str] | None = None  # only where they have changed
    enqueued: list[Json] = Field(default_factory=list)
    told: list[str] = Field(default_factory=list)  # only those that are new
    first: int = 0


class _Content:
    """What a message holds, at every depth, and a shallow copy of each.

    Comparing them finds any change, and reads no text that is still the same object. A digest of each message would
    read the whole conversation again with each step.
    """

    def __init__(self, message: ModelMessage) -> None:
        self.live: list[Any] = []
        self._find(message)
        self.copies = [copy(holder) for holder in self.live]

    def _find(self, value: Any) -> None:
        if isinstance(value, (dict, list, tuple, set)):
            holder: Any = value
        elif isinstance(value, BaseModel) or (is_dataclass(value) and hasattr(value, "__dict__")):
            holder = vars(value)
        else:
            return
        self.live.append(holder)
        for item in holder.values() if isinstance(holder, dict) else holder:
            if type(item) not in _UNCHANGEABLE:
                self._find(item)


class Stored:
    """What the checkpoints of a run have, as it was when it was written.

    Args:
        messages: The conversation that they amount to.
        tools: The tools that they have.
        told: The background tasks that they have.
    """

    def __init__(
        self, messages: Sequence[ModelMessage], tools: frozenset[str] | None = None, told: Sequence[str] = ()
    ) -> None:
        self._told = len(told)
        self._messages: list[ModelMessage] = []
        self._contents: list[_Content] = []
        self._tools = tools
        self._replace(0, messages)

    def encode(self, progress: Progress) -> bytes:
        """The entry that takes what is stored to `progress`, which counts as stored from now on."""
        kept = self._common(progress.messages)
        entry = _Entry(
            keep=kept,
            messages=ModelMessagesTypeAdapter.dump_python(progress.messages[kept:], mode="json"),
            before=_USAGE.dump_python(progress.before, mode="json"),
            usage=_USAGE.dump_python(progress.usage, mode="json"),
            steps=progress.steps,
            message_id=progress.message_id,
            tool_retries=progress.tool_retries,
            output_retries=progress.output_retries,
            first=progress.first,
        )
        if progress.tools is not None and progress.tools != self._tools:
            entry.tools = sorted(progress.tools)
        if progress.enqueued:
            entry.enqueued = progress.enqueued
        if len(progress.told) > self._told:
            entry.told = list(progress.told[self._told :])
        encoded = _to_bytes(entry)
        self._tools, self._told = progress.tools, len(progress.told)
        self._replace(kept, progress.messages)
        return encoded

    def encode_end(self, messages: Sequence[ModelMessage]) -> bytes:
        """The entry that takes what is stored to the conversation that a run ended with; b"" when nothing changed."""
        kept = self._common(messages)
        if kept == len(messages) == len(self._messages):
            return b""
        dumped = ModelMessagesTypeAdapter.dump_python(list(messages[kept:]), mode="json")
        return _to_bytes(_Entry(keep=kept, messages=dumped))

    def _common(self, messages: Sequence[ModelMessage]) -> int:
        """How many leading messages are stored as they are."""
        count = 0
        for old, content, new in zip(self._messages, self._contents, messages, strict=False):
            if content.live != content.copies or (old is not new and old != new):
                break
            count += 1
        return count

    def _replace(self, kept: int, messages: Sequence[ModelMessage]) -> None:
        self._messages = list(messages)
        self._contents[kept:] = [_Content(message) for message in messages[kept:]]


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
    messages, newest, tools, told = _replay(history, entries)
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
        tools=tools,
        enqueued=newest.enqueued,
        told=told,
        first=newest.first,
        seq=seq,
    )


def decode_messages(history: Sequence[ModelMessage], entries: Iterable[bytes]) -> list[ModelMessage]:
    """The conversation that the stored entries amount to."""
    return _replay(history, entries)[0]


def usage_at(entry: bytes) -> RunUsage | None:
    """The usage at a stored entry; None for the last one of an ended run, and for one that can't be read."""
    try:
        usage = _Entry.model_validate_json(entry).usage
        return None if usage is None else _USAGE.validate_python(usage)
    except ValidationError:
        return None


def _replay(
    history: Sequence[ModelMessage], entries: Iterable[bytes]
) -> tuple[list[ModelMessage], _Entry | None, frozenset[str] | None, tuple[str, ...]]:
    """The conversation after all entries, the newest of them that is a response's, the tools, and the tasks told of."""
    messages: list[ModelMessage] = list(history)
    newest: _Entry | None = None
    tools: frozenset[str] | None = None
    told: list[str] = []
    for data in entries:
        entry = _Entry.model_validate_json(data)
        del messages[entry.keep :]
        messages += ModelMessagesTypeAdapter.validate_python(entry.messages)
        newest = entry if entry.steps is not None else newest
        tools = frozenset(entry.tools) if entry.tools is not None else tools
        told += entry.told
    return messages, newest, tools, tuple(told)
