"""The parts of one model response, as they stream: text, reasoning, tool-call arguments, files and sources.

Invariant: what is started is ended, once. A part's id is never used again, not even when the provider replaces the
part or adds to one that has ended. The texts of a call's deltas, joined, are the JSON of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_ai.messages import (
    FilePart,
    ModelResponsePart,
    NativeToolCallPart,
    NativeToolReturnPart,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)

from durable.chunks import (
    Chunk,
    File,
    FilePayload,
    PartPayload,
    PartTextPayload,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningSignature,
    ReasoningSignaturePayload,
    ReasoningStart,
    RedactedReasoning,
    RedactedReasoningPayload,
    TextDelta,
    TextEnd,
    TextStart,
)
from durable.translate.arguments import Arguments
from durable.translate.metadata import with_metadata
from durable.translate.outcomes import call_chunk, outcome_chunk
from durable.translate.sources import Sources

# Anthropic's and Bedrock's names for a block that only the provider can read; its signature is the data.
_REDACTED = ("redacted_thinking", "redacted_content")


@dataclass(slots=True)
class _Text:
    id: str
    open: bool = True


@dataclass(slots=True)
class _Reasoning:
    id: str
    open: bool = True
    signature: str | None = None
    provider: str | None = None


class ResponseParts:
    """Follows the parts of one response by their index."""

    def __init__(self, next_id: Callable[[], str]) -> None:
        self._next_id = next_id
        self._parts: dict[int, _Text | _Reasoning | Arguments] = {}
        self._sources = Sources(next_id)
        self._file: tuple[int, FilePart] | None = None
        self._started: set[str] = set()
        self._called: set[str] = set()

    def start(self, index: int, part: ModelResponsePart) -> list[Chunk]:
        """A part begins, or replaces the one at the same index."""
        chunks = self._release_file(unless=index)
        if index in self._parts:
            chunks += self._end(self._parts.pop(index))
        match part:
            case TextPart():
                chunks += self._start_text(index, part.content, with_metadata(part))
                chunks += self._sources.cited(part)
            case ThinkingPart():
                chunks += self._start_thinking(index, part)
            case ToolCallPart() | NativeToolCallPart():
                chunks += self._start_call(index, part)
            case NativeToolReturnPart():
                chunks.append(outcome_chunk(part, provider_executed=True))
                chunks += self._sources.found(part)
            case FilePart():
                # Held back: a provider may send previews of a picture first, each replacing the one before.
                self._file = (index, part)
            case _:
                pass
        return chunks

    def delta(self, index: int, delta: object) -> list[Chunk]:
        """More of a part. What comes after the part's end makes a part of its own, but for citations and signatures."""
        state = self._parts.get(index)
        match delta, state:
            case TextPartDelta(), _Text(open=True):
                chunks: list[Chunk] = []
                if delta.content_delta:
                    payload = PartTextPayload(id=state.id, text=delta.content_delta)
                    chunks.append(TextDelta(payload=payload))
                return chunks + self._sources.cited(delta)
            case TextPartDelta(), _:
                chunks = self._start_text(index, delta.content_delta) if delta.content_delta else []
                return chunks + self._sources.cited(delta)
            case ThinkingPartDelta(), _Reasoning():
                return self._think(index, state, delta)
            case ToolCallPartDelta(), Arguments():
                return state.delta(delta)
            case _:
                return []

    def end(self, index: int, part: ModelResponsePart) -> list[Chunk]:
        """A part is complete."""
        state = self._parts.get(index)
        chunks: list[Chunk] = []
        if isinstance(state, _Reasoning) and isinstance(part, ThinkingPart):
            chunks += self._sign(state, part.signature, part.provider_name)
        if isinstance(part, TextPart):
            chunks += self._sources.cited(part)
        if state is not None:
            chunks += self._end(state, with_metadata(part) if isinstance(part, TextPart) else None)
        if isinstance(part, NativeToolCallPart):
            chunks += self._native_call(part)
        return chunks

    def close(self, parts: Iterable[ModelResponsePart] = ()) -> list[Chunk]:
        """The response has ended, with these parts: end what is still open."""
        chunks = self._release_file()
        for state in self._parts.values():
            chunks += self._end(state)
        for part in parts:
            if isinstance(part, NativeToolCallPart) and part.tool_call_id in self._started:
                chunks += self._native_call(part)
        return chunks

    def _start_text(self, index: int, content: str, metadata: Mapping[str, Any] | None = None) -> list[Chunk]:
        state = self._parts[index] = _Text(self._next_id())
        chunks: list[Chunk] = [TextStart(payload=PartPayload(id=state.id, **(metadata or {})))]
        if content:
            chunks.append(TextDelta(payload=PartTextPayload(id=state.id, text=content)))
        return chunks

    def _start_thinking(self, index: int, part: ThinkingPart) -> list[Chunk]:
        if part.id in _REDACTED and part.signature and not part.content:
            return [RedactedReasoning(payload=RedactedReasoningPayload(id=self._next_id(), data=part.signature))]
        state = self._parts[index] = _Reasoning(self._next_id())
        payload = PartPayload(id=state.id, **with_metadata(part, details=False))
        chunks: list[Chunk] = [ReasoningStart(payload=payload)]
        if part.content:
            chunks.append(ReasoningDelta(payload=PartTextPayload(id=state.id, text=part.content)))
        return chunks + self._sign(state, part.signature, part.provider_name)

    def _think(self, index: int, state: _Reasoning, delta: ThinkingPartDelta) -> list[Chunk]:
        chunks: list[Chunk] = []
        if delta.content_delta:
            if not state.open:
                state = self._parts[index] = _Reasoning(self._next_id(), provider=state.provider)
                chunks.append(ReasoningStart(payload=PartPayload(id=state.id)))
            chunks.append(ReasoningDelta(payload=PartTextPayload(id=state.id, text=delta.content_delta)))
        return chunks + self._sign(state, delta.signature_delta, delta.provider_name)

    def _sign(self, state: _Reasoning, signature: str | None, provider: str | None) -> list[Chunk]:
        state.provider = provider or state.provider
        if not signature or signature == state.signature:
            return []
        state.signature = signature
        fields: dict[str, Any] = {"id": state.id, "signature": signature}
        if state.provider:
            fields["provider_metadata"] = {state.provider: {"signature": signature}}
        return [ReasoningSignature(payload=ReasoningSignaturePayload(**fields))]

    def _start_call(self, index: int, part: ToolCallPart | NativeToolCallPart) -> list[Chunk]:
        if part.tool_call_id in self._started:
            return []  # the same call in another shape; its arguments have streamed already
        self._started.add(part.tool_call_id)
        state = self._parts[index] = Arguments(part)
        return state.start()

    def _native_call(self, part: NativeToolCallPart) -> list[Chunk]:
        if part.tool_call_id in self._called:
            return []
        self._called.add(part.tool_call_id)
        return [call_chunk(part, provider_executed=True)]

    def _end(self, state: _Text | _Reasoning | Arguments, metadata: Mapping[str, Any] | None = None) -> list[Chunk]:
        if isinstance(state, Arguments):
            return state.end()
        if not state.open:
            return []
        state.open = False
        if isinstance(state, _Text):
            return [TextEnd(payload=PartPayload(id=state.id, **(metadata or {})))]
        return [ReasoningEnd(payload=PartPayload(id=state.id))]

    def _release_file(self, *, unless: int | None = None) -> list[Chunk]:
        if self._file is None or self._file[0] == unless:
            return []
        part, self._file = self._file[1], None
        data, mime_type = part.content.base64, part.content.media_type
        return [File(payload=FilePayload(data=data, mime_type=mime_type, **with_metadata(part)))]
