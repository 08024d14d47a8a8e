"""The chunk envelope and what payloads share. On the wire everything is camelCase JSON.

A chunk is written as its *body*: `type`, `payload` (or `object` in its place) and, rarely, `from`, `metadata`, `final`.
The rest of the envelope (`runId`, `seq`, `attempt`) is what the journal knows of it, and is added when the chunk is
read.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Origin = Literal["AGENT", "USER", "SYSTEM", "WORKFLOW", "NETWORK"]
FinishReason = Literal[
    "stop", "length", "content-filter", "tool-calls", "error", "other", "unknown", "tripwire", "retry", "abort"
]
Json = Any
_CURSOR = "_cursor"


class Wire(BaseModel):
    """A camelCase JSON object. Fields that this version does not know survive a round trip."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow", protected_namespaces=())


class Chunk(Wire):
    """The smallest observed unit of a run.

    Attributes:
        run_id: The run; empty until the chunk is in a journal.
        origin: Who speaks (`from` on the wire).
        seq: Position in the run's log, from 1; 0 until the chunk is in a journal.
        attempt: The attempt that wrote it, from 1; 0 for what happened outside of any attempt.
        metadata: Anything that travels along.
        final: True for the one chunk that ends the run.
    """

    __slots__ = ("_cursor",)  # no field, and no private attribute of Pydantic's: these cost each chunk a third more

    type: str
    run_id: str = ""
    origin: Origin = Field("AGENT", alias="from")
    seq: int = 0
    attempt: int = 0
    payload: Any = None
    metadata: dict[str, Json] | None = None
    final: bool | None = None

    @property
    def cursor(self) -> str:
        """Where a reader goes on after this chunk: its seq, or what also tells of the other runs that are read with its
        own."""
        return getattr(self, _CURSOR, None) or str(self.seq)

    def at(self, cursor: str) -> Self:
        """The same chunk, of a reader that stands there."""
        object.__setattr__(self, _CURSOR, cursor)
        return self

    def model_post_init(self, context: Any, /) -> None:  # noqa: ARG002
        """Count `type` as given, so that a dump of what was set has it."""
        self.__pydantic_fields_set__.add("type")

    def to_wire(self) -> dict[str, Json]:
        """The JSON object as every reader sees it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Usage(Wire):
    """Tokens of one model response, or of a run."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class StepResult(Wire):
    """How a step or a turn ended."""

    reason: FinishReason
    raw_reason: str | None = None
    warnings: list[Json] | None = None
    is_continued: bool | None = None
    total_usage: Usage | None = None


class ErrorInfo(Wire):
    """An error as an observer may see it: a stable code and a message without secrets."""

    code: str
    message: str
    name: str | None = None


class Issue(Wire):
    """What is wrong with something that was given: where, and by which check. It never repeats what was given."""

    field: str
    message: str
