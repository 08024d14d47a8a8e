"""Chunks of a model's response: text, reasoning, sources, files, its output as an object, and what the provider says of
itself."""

from __future__ import annotations

from typing import Literal

from durable.chunks.base import Chunk, Json, Wire


class PartPayload(Wire):
    """`id` names the part; it is unique within the run."""

    id: str
    provider_metadata: dict[str, Json] | None = None


class PartTextPayload(PartPayload):
    """A piece of the part's text."""

    text: str


class TextStart(Chunk):
    """A block of text begins."""

    type: Literal["text-start"] = "text-start"
    payload: PartPayload


class TextDelta(Chunk):
    """More text of a block. Neighbours may have been merged."""

    type: Literal["text-delta"] = "text-delta"
    payload: PartTextPayload


class TextEnd(Chunk):
    """A block of text has ended."""

    type: Literal["text-end"] = "text-end"
    payload: PartPayload


class ReasoningStart(Chunk):
    """A block of reasoning begins."""

    type: Literal["reasoning-start"] = "reasoning-start"
    payload: PartPayload


class ReasoningDelta(Chunk):
    """More reasoning of a block. Neighbours may have been merged."""

    type: Literal["reasoning-delta"] = "reasoning-delta"
    payload: PartTextPayload


class ReasoningEnd(Chunk):
    """A block of reasoning has ended."""

    type: Literal["reasoning-end"] = "reasoning-end"
    payload: PartPayload


class ReasoningSignaturePayload(PartPayload):
    """The provider's proof that the reasoning is its own."""

    signature: str


class ReasoningSignature(Chunk):
    """The signature of a block of reasoning."""

    type: Literal["reasoning-signature"] = "reasoning-signature"
    payload: ReasoningSignaturePayload


class RedactedReasoningPayload(PartPayload):
    """Reasoning that only the provider can read."""

    data: str


class RedactedReasoning(Chunk):
    """A block of reasoning that the provider hides."""

    type: Literal["redacted-reasoning"] = "redacted-reasoning"
    payload: RedactedReasoningPayload


class ResponseMetadataPayload(Wire):
    """`timestamp` is ISO 8601, UTC."""

    id: str | None = None
    timestamp: str | None = None
    model_id: str | None = None


class ResponseMetadata(Chunk):
    """What the provider says of a response."""

    type: Literal["response-metadata"] = "response-metadata"
    payload: ResponseMetadataPayload


class SourcePayload(Wire):
    """A citation."""

    id: str
    source_type: Literal["url", "document"]
    title: str
    url: str | None = None
    mime_type: str | None = None
    filename: str | None = None
    provider_metadata: dict[str, Json] | None = None


class Source(Chunk):
    """The model cites a source."""

    type: Literal["source"] = "source"
    payload: SourcePayload


class FilePayload(Wire):
    """`data` is base64; of a file that is stored apart, its path on the server, as `url`. `size` is in bytes."""

    data: str
    base64: str | None = None
    mime_type: str
    filename: str | None = None
    url: str | None = None
    file_id: str | None = None
    size: int | None = None
    provider_metadata: dict[str, Json] | None = None


class File(Chunk):
    """The model made a file."""

    type: Literal["file"] = "file"
    payload: FilePayload


class RawPayload(Wire):
    """The provider's event, as it came."""


class Raw(Chunk):
    """What the model's provider has sent. Only told when it is asked for."""

    type: Literal["raw"] = "raw"
    payload: RawPayload


class ObjectChunk(Chunk):
    """The structured output, as far as it has streamed, and before it is validated. It stands where other chunks have
    `payload`, and takes the place of the one before."""

    type: Literal["object"] = "object"
    object: Json


class ObjectResult(Chunk):
    """The structured output, validated. It stands where other chunks have `payload`; `finish` follows."""

    type: Literal["object-result"] = "object-result"
    object: Json
