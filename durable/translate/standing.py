"""What stands of a model response while it streams, and when the provider begins it anew.

A stream may start a part at an index that has one already: a model was asked again in mid-stream, another model went on
where one failed, or a background job was read again. That part and those after it are then superseded; those before it
stand. Invariant: the same call in another shape, the next preview of a picture, or a part that said nothing yet is not
a new beginning.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic_ai.messages import (
    FilePart,
    ModelResponsePart,
    NativeToolCallPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
)


class Standing:
    """Follows one response."""

    def __init__(self) -> None:
        self._parts: dict[int, ModelResponsePart] = {}
        self._spoken: set[int] = set()

    def begins_anew(self, event: object) -> bool:
        """Whether what was said of this response, from the event's part on, is superseded by the event."""
        if not isinstance(event, PartStartEvent) or event.index not in self._spoken:
            return False
        known, part = self._parts[event.index], event.part
        match known:
            case TextPart() | ThinkingPart():
                return True
            case ToolCallPart() | NativeToolCallPart():
                same = isinstance(part, ToolCallPart | NativeToolCallPart) and part.tool_call_id == known.tool_call_id
                return not same
            case FilePart():
                return not isinstance(part, FilePart)
            case _:
                return type(part) is not type(known)

    def take(self, event: object) -> None:
        """Take the next event."""
        match event:
            case PartStartEvent():
                self._parts[event.index] = event.part
                self._spoken.discard(event.index)
                if not isinstance(event.part, TextPart | ThinkingPart) or event.part.content:
                    self._spoken.add(event.index)
            case PartDeltaEvent():
                if getattr(event.delta, "content_delta", None):
                    self._spoken.add(event.index)
            case PartEndEvent():
                self._parts[event.index] = event.part

    def before(self, index: int) -> Iterator[tuple[int, ModelResponsePart]]:
        """The parts before an index, whole."""
        return ((place, part) for place, part in sorted(self._parts.items()) if place < index)
