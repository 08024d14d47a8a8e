"""The HTTP server of the provider wire: loopback only, in a thread with an event loop of its own.

Each request is answered with the first scripted reply that fits; one that nothing fits gets 400, which no SDK repeats.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from tests.provider_wire.script import DROP, Frame, Hold, Reply


@dataclass(slots=True)
class ReceivedRequest:
    """What a model sent."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    answered: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set when the client closed the connection before the reply had ended."""


class ProviderWire:
    """A scripted provider. Used as a context manager; its methods may be called from any thread."""

    def __init__(self) -> None:
        self.requests: list[ReceivedRequest] = []
        self.port = 0
        self._replies: list[Reply] = []
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="provider-wire", daemon=True)

    @property
    def base_url(self) -> str:
        """Without a path; what `PROVIDER_WIRE_URL` holds for other processes."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def left(self) -> int:
        """How many scripted replies nobody asked for yet."""
        with self._lock:
            return len(self._replies)

    def script(self, *replies: Reply) -> None:
        """Answer the coming requests with these, in this order for each route."""
        with self._lock:
            self._replies.extend(replies)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The bodies that a route received, in order."""
        with self._lock:
            return [request.body for request in self.requests if request.path == path]

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the provider wire did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        streams = asyncio.all_tasks() - {asyncio.current_task()}
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader)
            reply = self._take(request)
            leaving = asyncio.ensure_future(reader.read())
            writing = asyncio.ensure_future(_write(writer, reply))
            try:
                await asyncio.wait((leaving, writing), return_when=asyncio.FIRST_COMPLETED)
                if writing.done() and not writing.exception():
                    request.answered.set()
                else:
                    request.abandoned.set()
            finally:
                for task in (leaving, writing):
                    task.cancel()
                await asyncio.gather(leaving, writing, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client that goes away says no more than that
        finally:
            writer.close()

    def _take(self, request: ReceivedRequest) -> Reply:
        text = json.dumps(request.body, ensure_ascii=False)
        with self._lock:
            self.requests.append(request)
            for index, reply in enumerate(self._replies):
                if reply.path == request.path and (reply.contains is None or reply.contains in text):
                    return self._replies.pop(index)
        return Reply(request.path, (b'{"error":{"message":"no reply is scripted for this request"}}',), status=400)


async def _read(reader: asyncio.StreamReader) -> ReceivedRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    path = head[0].split(" ")[1].partition("?")[0]
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
    return ReceivedRequest(path, headers, body)


async def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    stream = reply.status == HTTPStatus.OK
    headers = {
        "Content-Type": "text/event-stream" if stream else "application/json",
        "Connection": "close",
        "Transfer-Encoding": "chunked",
        **reply.headers,
    }
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    for index, frame in enumerate(reply.frames):
        if index and reply.delay:
            await asyncio.sleep(reply.delay)
        if frame is DROP:
            await writer.drain()
            writer.transport.abort()
            return
        await _write_frame(writer, frame)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _write_frame(writer: asyncio.StreamWriter, frame: Frame) -> None:
    if isinstance(frame, Hold):
        await frame.stand()
    elif isinstance(frame, bytes):
        writer.write(b"%x\r\n%b\r\n" % (len(frame), frame))
        await writer.drain()
