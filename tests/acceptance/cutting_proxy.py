"""A TCP proxy on loopback that cuts connections in the middle of an event stream."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import struct
import threading
from types import TracebackType
from typing import Final, Self

FRAMES_BEFORE_CUT: Final = 4
_LAST_EVENT_ID = re.compile(rb"\r\nlast-event-id: *([0-9]+)\r\n", re.IGNORECASE)
_KEEP_ALIVE = re.compile(rb"\r\nconnection: *keep-alive\r\n", re.IGNORECASE)


class CuttingProxy:
    """Forwards each connection to one server. The first `cuts` of them are cut after a few frames, inside of the next.

    Attributes:
        cursors: For each connection the `Last-Event-ID` that it came with.
        cut: How many connections were cut.
    """

    def __init__(self, port: int, cuts: int) -> None:
        self.cursors: list[int | None] = []
        self.cut = 0
        self._port = port
        self._cuts = cuts
        self._lock = threading.Lock()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._forward(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="cutting-proxy", daemon=True)

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

    def _forward(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(65_536)
            if not piece:
                return
            head += piece
        cursor = _LAST_EVENT_ID.search(head)
        with self._lock:
            self.cursors.append(int(cursor[1]) if cursor else None)
            allowed = FRAMES_BEFORE_CUT if len(self.cursors) <= self._cuts else None
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            # One request a connection: the server closes it, and the next request is seen.
            server.sendall(_KEEP_ALIVE.sub(b"\r\nconnection: close\r\n", head))
            with contextlib.suppress(ConnectionError):
                self._answer(server, client, allowed)

    def _answer(self, server: socket.socket, client: socket.socket, allowed: int | None) -> None:
        frames = 0
        while piece := server.recv(65_536):
            if allowed is not None and frames >= allowed:
                client.sendall(piece[: len(piece) // 2])
                # No proper end: the reader sees a reset.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                self.cut += 1
                return
            client.sendall(piece)
            frames += piece.count(b"id: ")
