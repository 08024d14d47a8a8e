"""Server-Sent Events, read as they arrive.

`Parser` turns bytes, cut anywhere, into frames by the rules of the HTML standard. The frames depend on the bytes
alone, never on where the network cut them, and a frame is given out as soon as its blank line is here.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Frame:
    """One event.

    Attributes:
        data: Its data; several data lines are joined by line feeds.
        event: Its type.
        id: The last id that the stream has named, in this frame or before it; empty when none was.
    """

    data: str
    event: str = "message"
    id: str = ""


class Parser:
    """Reads one stream.

    Attributes:
        retry_ms: The pause before reconnecting that the server asked for, in milliseconds, if it did.
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._after_cr = False
        self._line: list[str] = []
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the next bytes; returns the frames that they complete. What the stream's end cuts is no frame."""
        text = self._decoder.decode(piece)
        if not text:
            return []
        if self._at_start:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        return [frame for line in self._lines(text) if (frame := self._take(line)) is not None]

    def _lines(self, text: str) -> Iterator[str]:
        """The lines that `text` completes. A CR ends its line at once; an LF right after it belongs to it."""
        if self._after_cr and text:
            self._after_cr = False
            text = text.removeprefix("\n")
        *complete, rest = _LINE_END.split(text)
        self._after_cr = text.endswith("\r")
        for piece in complete:
            yield "".join((*self._line, piece))
            self._line.clear()
        if rest:
            self._line.append(rest)

    def _take(self, line: str) -> Frame | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)
            case _:  # a comment (its name is empty), or a field that the standard tells to ignore
                pass
        return None

    def _dispatch(self) -> Frame | None:
        frame = Frame("\n".join(self._data), self._event or "message", self._id) if self._data else None
        self._data.clear()
        self._event = ""
        return frame
