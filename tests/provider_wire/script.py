"""What a scripted provider answers: blocks that mean the same in every protocol, and the reply they are rendered to.

A reply is a sequence of frames, written one after the other; a `Hold` among them stops the stream until the test lets
it go on, `DROP` cuts the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Hold:
    """A place in a stream where the server waits for the test. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._reached = threading.Event()

    def reached(self, timeout: float = 10) -> bool:
        """Block until the stream stands here; False after `timeout` seconds."""
        return self._reached.wait(timeout)

    def release(self) -> None:
        """Let the stream go on, now or when it comes here."""
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(event.set)

    async def stand(self) -> None:
        """For the server: the stream is here; wait until it may go on."""
        event = asyncio.Event()
        with self._lock:
            if self._open:
                event.set()
            else:
                self._waiting.append((asyncio.get_running_loop(), event))
        self._reached.set()
        await event.wait()


class _Drop(Enum):
    DROP = "drop"


DROP = _Drop.DROP
"""Cuts the connection without a proper end."""

Frame = bytes | Hold | _Drop
Piece = str | Hold


@dataclass(frozen=True, slots=True)
class Page:
    """A web page that a model has found, or cites."""

    url: str
    title: str
    quote: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Text for the user; each piece is one delta. It may cite pages."""

    pieces: tuple[Piece, ...]
    cites: tuple[Page, ...] = ()


@dataclass(frozen=True, slots=True)
class WebSearch:
    """A search that the provider makes itself, and what it finds. Anthropic and OpenAI Responses."""

    id: str
    query: str
    found: tuple[Page, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that the model makes; previews come before it. OpenAI Responses only."""

    id: str
    data: bytes
    previews: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """Readable reasoning with the provider's signature; each piece is one delta."""

    pieces: tuple[Piece, ...]
    signature: str | None


@dataclass(frozen=True, slots=True)
class RedactedThinking:
    """Reasoning that only the provider can read."""

    data: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; the JSON of its arguments comes in two pieces."""

    id: str
    name: str
    args: Mapping[str, Any]

    @property
    def json(self) -> str:
        """The arguments as the model writes them."""
        return json.dumps(self.args, separators=(",", ":"))

    @property
    def pieces(self) -> tuple[str, str]:
        """The two halves of the JSON."""
        middle = len(self.json) // 2
        return self.json[:middle], self.json[middle:]


Block = Text | Thinking | RedactedThinking | ToolCall | WebSearch | Picture


def text(*pieces: Piece) -> Text:
    """Text, one delta a piece."""
    return Text(pieces)


def citing(words: str, *pages: Page) -> Text:
    """Text that cites pages."""
    return Text((words,), pages)


def web_search(id: str, query: str, *found: Page) -> WebSearch:  # noqa: A002 - positional only
    """A search of the provider's own."""
    return WebSearch(id, query, found)


def picture(id: str, data: bytes, *previews: bytes) -> Picture:  # noqa: A002 - positional only
    """A picture of the model's own."""
    return Picture(id, data, previews)


def thinking(*pieces: Piece, signature: str | None = None) -> Thinking:
    """Reasoning, one delta a piece. OpenAI Chat Completions has no signatures and leaves it out."""
    return Thinking(pieces, signature)


def redacted_thinking(data: str) -> RedactedThinking:
    """Hidden reasoning. Anthropic only."""
    return RedactedThinking(data)


def tool_call(id: str, name: str, /, **args: Any) -> ToolCall:  # noqa: A002 - positional only
    """A call of a tool."""
    return ToolCall(id, name, args)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a reply reports."""

    input: int = 11
    output: int = 7
    cached: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a stream reports instead of its end."""

    message: str = "Overloaded"


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer to one request.

    Attributes:
        path: The route that it belongs to.
        frames: What is written, in order.
        status: HTTP status; anything but 200 is a plain JSON answer.
        headers: More HTTP headers.
        delay: Seconds to wait before each frame but the first.
        contains: Only a request whose body holds this text gets the reply; any request when None.
    """

    path: str
    frames: tuple[Frame, ...]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    contains: str | None = None


def plain(text_or_hold: tuple[Piece, ...]) -> str:
    """The whole text of a block's pieces."""
    return "".join(piece for piece in text_or_hold if isinstance(piece, str))


def named_event(data: Mapping[str, Any]) -> bytes:
    """A server-sent event whose name is the `type` of its data."""
    return f"event: {data['type']}\n".encode() + unnamed_event(data)


def unnamed_event(data: Mapping[str, Any]) -> bytes:
    """A server-sent event without a name."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def refusal(path: str, status: int, error: Mapping[str, Any], headers: Mapping[str, str]) -> Reply:
    """An answer that is no stream: an HTTP error with a JSON body."""
    return Reply(path, (json.dumps(error).encode(),), status=status, headers=headers)
