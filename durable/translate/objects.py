"""A structured output, as far as it has streamed: the JSON of one response's output, told as ever larger objects.

Each `object` is whole, so telling one for each piece of JSON would cost the square of its size. Invariant: the JSON is
looked at again only when it has grown by an eighth, and by `LEAST` characters, and once more at its end. So all that is
told of an output is less than ten times its size, and a small one is told often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_ai.messages import (
    FinalResultEvent,
    NativeToolCallPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_core import from_json, to_json

from durable.chunks import Chunk, Json, ObjectChunk
from durable.translate.values import to_json_value

LEAST: Final = 32
"""Characters."""
SHARE: Final = 8
"""The JSON is looked at again when it has grown by one part in so many."""

Path = tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """Where a response has its output, and where in the JSON there the output is: Pydantic AI puts what is no object,
    and one of several types, into an object of its own.

    Attributes:
        tools: The output tools, by name: the arguments of a call are the output.
        text: The text is the output.
        may_be_text: Whether it is, only the model decides: Pydantic AI says so of each response.
    """

    tools: Mapping[str, Path] = field(default_factory=dict)
    text: Path | None = None
    may_be_text: bool = False


class Objects:
    """Follows the output of one response at a time.

    Args:
        shape: What to follow.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._is_text = shape.text is not None and not shape.may_be_text
        self._idle = shape.text is None and not shape.tools
        self.begin()

    def begin(self) -> None:
        """Another response begins."""
        self._pieces: list[str] = []
        self._size = self._looked = 0
        self._told: Json = None
        self._index: int | None = None
        self._in_text = False
        self._path: Path = ()

    def event(self, event: object) -> list[Chunk]:
        """What an event of the response tells of the output, if that is enough."""
        if self._idle:
            return []
        match event:
            case PartStartEvent(index=index, part=ToolCallPart() as call) if call.tool_name in self._shape.tools:
                if self._index in (None, index):  # the first call counts, also where it is told anew
                    self.begin()
                    self._index, self._path = index, self._shape.tools[call.tool_name]
                    return self._add(call.args)
            case PartDeltaEvent(index=index, delta=ToolCallPartDelta() as more) if index == self._index:
                return self._add(more.args_delta)
            case PartEndEvent(index=index) if index == self._index:
                return self.end()
            case _ if self._shape.text is not None and self._index is None:
                return self._text(event, self._shape.text)
        return []

    def end(self) -> list[Chunk]:
        """The response has ended."""
        return self._look() if self._size > self._looked else []

    def _text(self, event: object, path: Path) -> list[Chunk]:
        self._path = path
        match event:
            case PartStartEvent(part=TextPart() as part):
                self._in_text = True
                return self._add(part.content)
            case PartDeltaEvent(delta=TextPartDelta() as more):
                return self._add(more.content_delta)
            case PartStartEvent(part=NativeToolCallPart()):
                self.begin()  # what was said before it is no output
            case FinalResultEvent(tool_name=None) if self._in_text:
                self._is_text = True
                return self._grown()
        return []

    def _add(self, piece: str | dict[str, Any] | None) -> list[Chunk]:
        if isinstance(piece, dict):  # some providers send objects
            piece = to_json(to_json_value(piece)).decode()
            self._pieces, self._size = [], 0
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
        return self._grown()

    def _grown(self) -> list[Chunk]:
        grown = self._size - self._looked
        return self._look() if grown >= LEAST and grown * SHARE >= self._looked else []

    def _look(self) -> list[Chunk]:
        if self._index is None and not self._is_text:
            return []
        text = "".join(self._pieces)
        self._pieces, self._looked = [text], self._size
        value = _within(text, self._path)
        if not isinstance(value, dict | list) or value == self._told:
            return []
        self._told = value
        return [ObjectChunk(object=value)]


def _within(text: str, path: Path) -> Json:
    """What the JSON has at a path so far; None when it has nothing there. Words and fences around it are left out."""
    begin = text.find("{")
    if begin < 0:
        return None
    try:
        value = from_json(text[begin:], allow_partial="trailing-strings")
    except ValueError:
        return None
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
