"""The arguments of one tool call, as they stream.

The start waits until the first piece of the arguments, empty or not, says that the name is complete: some providers
send names in pieces. Arguments that come as objects are merged and told at the end, as one piece of JSON.
"""

from __future__ import annotations

from typing import Any

from pydantic_ai.messages import NativeToolCallPart, ToolCallPart, ToolCallPartDelta
from pydantic_core import to_json

from durable.chunks import (
    Chunk,
    Json,
    ToolCallDelta,
    ToolCallDeltaPayload,
    ToolCallEndPayload,
    ToolCallInputStreamingEnd,
    ToolCallInputStreamingStart,
    ToolPayload,
)
from durable.translate.values import to_json_value


class Arguments:
    """Turns the pieces of one call's arguments into chunks."""

    def __init__(self, part: ToolCallPart | NativeToolCallPart) -> None:
        self._id = part.tool_call_id
        self._name = part.tool_name
        self._native = isinstance(part, NativeToolCallPart)
        self._first = part.args
        self._object: dict[str, Json] | None = None
        self._started = False
        self._ended = False

    def start(self) -> list[Chunk]:
        """What the part already holds when it begins."""
        return self._add(self._first)

    def delta(self, delta: ToolCallPartDelta) -> list[Chunk]:
        """More of the name or of the arguments. Nothing comes after the end."""
        if self._ended:
            return []
        renamed = bool(delta.tool_name_delta) and self._started
        self._name += delta.tool_name_delta or ""
        return self._add(delta.args_delta, renamed=renamed)

    def end(self) -> list[Chunk]:
        """The arguments are complete."""
        if self._ended:
            return []
        chunks = self._begin()
        if self._object is not None:
            chunks.append(self._piece(to_json(to_json_value(self._object)).decode()))
        self._ended = True
        chunks.append(ToolCallInputStreamingEnd(payload=ToolCallEndPayload(tool_call_id=self._id)))
        return chunks

    def _add(self, args: str | dict[str, Any] | None, *, renamed: bool = False) -> list[Chunk]:
        chunks = self._begin() if args is not None else []
        if isinstance(args, dict):
            self._object = {**(self._object or {}), **args}
        elif args or renamed:
            chunks.append(self._piece(args or "", renamed=renamed))
        return chunks

    def _begin(self) -> list[Chunk]:
        if self._started:
            return []
        self._started = True
        fields: dict[str, Any] = {"tool_call_id": self._id, "tool_name": self._name}
        if self._native:
            fields["provider_executed"] = True
        return [ToolCallInputStreamingStart(payload=ToolPayload(**fields))]

    def _piece(self, text: str, *, renamed: bool = False) -> ToolCallDelta:
        fields: dict[str, Any] = {"tool_call_id": self._id, "args_text_delta": text}
        if renamed:
            fields["tool_name"] = self._name
        return ToolCallDelta(payload=ToolCallDeltaPayload(**fields))
