"""An HTTP proxy on loopback that spoils answers.

Invariant: each connection carries one request, so that what becomes of it says nothing about any other.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_CONNECTION = re.compile(rb"\r\nconnection: *[^\r\n]*(?=\r\n)", re.IGNORECASE)
_OF_THE_CONNECTION: Final = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Exchange:
    """One request and what the client gets for it.

    Attributes:
        request: The request's bytes.
    """

    def __init__(self, request: bytes, port: int, client: socket.socket) -> None:
        self.request = request
        self._port = port
        self._client = client

    @contextlib.contextmanager
    def answer(self) -> Iterator[http.client.HTTPResponse]:
        """Have the server answer; the answer, with its head read."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as server:
            # The server closes the connection after one answer, so that the client has to make a new one.
            server.sendall(_CONNECTION.sub(b"", self.request).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            with http.client.HTTPResponse(server) as answer:
                answer.begin()
                yield answer

    def pass_head(self, answer: http.client.HTTPResponse) -> None:
        """Give the client the head of an answer. What is passed then is a body in chunks."""
        kept = [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() not in _OF_THE_CONNECTION]
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *kept, "connection: close", "transfer-encoding: chunked"]
        self._client.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def pass_on(self, piece: bytes) -> None:
        """Give the client a piece of the body."""
        if piece:
            self._client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))

    def pass_all(self, answer: http.client.HTTPResponse) -> None:
        """Give the client the whole answer, as it comes."""
        self.pass_head(answer)
        while piece := answer.read1():
            self.pass_on(piece)
        self._client.sendall(b"0\r\n\r\n")

    def refuse(self, status: str) -> None:
        """Give the client an answer of ours that has only a status."""
        self._client.sendall(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
        self._client.shutdown(socket.SHUT_WR)
        self._client.recv(1)


Fault = Callable[[Exchange], None]
"""What becomes of an exchange. When it returns the connection is reset, whatever the client was given until then."""


class FaultyProxy:
    """Forwards requests to one server. The first ones meet the faults, each one; those that follow pass unharmed.

    Attributes:
        requests: The bytes of each request, in the order in which they came.
    """

    def __init__(self, port: int, *faults: Fault) -> None:
        self.requests: list[bytes] = []
        self._port = port
        self._faults = iter(faults)
        self._lock = threading.Lock()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="faulty-proxy", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, client: socket.socket) -> None:
        request = _read_request(client)
        if not request:
            return
        with self._lock:
            self.requests.append(request)
            fault = next(self._faults, None)
        exchange = Exchange(request, self._port, client)
        # Who has left, client or server, is no fault of the proxy.
        with contextlib.suppress(OSError, http.client.HTTPException):
            if fault is None:
                with exchange.answer() as answer:
                    exchange.pass_all(answer)
                return
            fault(exchange)
        # No proper end: the client sees a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


def _read_request(client: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        piece = client.recv(65_536)
        if not piece:
            return b""
        request += piece
    head, _, body = request.partition(b"\r\n\r\n")
    length = _CONTENT_LENGTH.search(head + b"\r\n")
    missing = (int(length[1]) if length else 0) - len(body)
    while missing > 0:
        piece = client.recv(missing)
        if not piece:
            return b""
        request += piece
        missing -= len(piece)
    return request


def lost_request(_exchange: Exchange) -> None:
    """The request never reaches the server."""


def lost_answer(exchange: Exchange) -> None:
    """The server answers, and the client gets nothing of it."""
    with exchange.answer():
        pass


def answered_with(status: str) -> Fault:
    """Something between the two answers instead, once the server has taken the request."""

    def fault(exchange: Exchange) -> None:
        with exchange.answer():
            exchange.refuse(status)

    return fault


def cut_after(blocks: int, *, inside: int = 0, held: Callable[[], object] = lambda: None) -> Fault:
    """The stream is cut after so many blocks and, `inside`, that many bytes of the next one.

    Args:
        blocks: How many are passed. A comment counts for nothing.
        inside: Bytes of the next block that are passed.
        held: Called before the connection breaks, to wait until the client has read what it got.
    """

    def fault(exchange: Exchange) -> None:
        with exchange.answer() as answer:
            exchange.pass_head(answer)
            if not (blocks or inside):
                held()
                return
            waiting, left = b"", blocks
            while piece := answer.read1():
                waiting += piece
                while left and b"\n\n" in waiting:
                    block, _, waiting = waiting.partition(b"\n\n")
                    exchange.pass_on(block + b"\n\n")
                    left -= not block.startswith(b":")
                if not left and len(waiting) >= inside:
                    break
            exchange.pass_on(waiting[:inside])
            held()

    return fault
