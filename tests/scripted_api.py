"""A server that speaks the wire of the API on the loopback address and misbehaves as a test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

DEADLINE_SECONDS = 20.0


def chunk(seq: int, kind: str, payload: Any, *, attempt: int = 1, final: bool = False) -> dict[str, Any]:
    """One chunk as it is on the wire."""
    value = {"type": kind, "runId": "run-1", "from": "AGENT", "seq": seq, "attempt": attempt, "payload": payload}
    return {**value, "final": True} if final else value


def text_log(*texts: str, reason: str = "stop") -> list[dict[str, Any]]:
    """The log of a run of one step that writes these deltas."""
    usage = {"inputTokens": 3, "outputTokens": len(texts), "totalTokens": 3 + len(texts)}
    step = {"stepId": "step-1", "messageId": "m-1", "startedAt": 0, "request": {}}
    output = {"text": "".join(texts), "usage": usage, "steps": []}
    events: list[tuple[str, Any]] = [
        ("start", {"id": "echo", "messageId": "m-1"}),
        ("step-start", step),
        ("text-start", {"id": "t-1"}),
        *(("text-delta", {"id": "t-1", "text": text}) for text in texts),
        ("text-end", {"id": "t-1"}),
        ("finish", {"output": output, "stepResult": {"reason": reason}}),
    ]
    return [chunk(seq, *event, final=seq == len(events)) for seq, event in enumerate(events, 1)]


def sse(value: dict[str, Any]) -> bytes:
    """The frame of a chunk."""
    return f"id: {value.get('cursor', value['seq'])}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def run_object(**fields: Any) -> dict[str, Any]:
    """A run as it is on the wire."""
    started = {"createdAt": "2026-01-02T03:04:05Z", "startedAt": "2026-01-02T03:04:05.5Z"}
    return {"runId": "run-1", "agent": "echo", "status": "running", "attempt": 1, "lastSeq": 0} | started | fields


def problem(status: int, code: str, message: str = "No.", **headers: str) -> Response:
    """An error answer."""
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers=headers)


class Cut(Exception):
    """Raised inside of a response: the connection breaks in its middle."""


@dataclass
class Stream:
    """What one SSE connection does: sends the log after the cursor up to `until`, then `tail`, then ends.

    Attributes:
        until: The last seq to send; None sends all.
        edit: Changes what is sent; by default nothing.
        tail: Bytes sent at the end.
        cut: Break the connection at the end, not close it.
        hold: Stay open at the end until the test calls `release()`.
    """

    until: int | None = None
    edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list
    tail: bytes = b""
    cut: bool = False
    hold: bool = False


class ScriptedApi:
    """The server. Each list of answers is used up one by one; then it behaves.

    Attributes:
        log: The chunks of the one run that there is.
        run: The run object.
        streams: What the next SSE connections do, or what they answer instead.
        feeds: What the next connections to the stream of all background tasks are sent, or are answered instead.
        submits: What the next submits answer.
        gets: What the next looks at the run answer.
        answers: What the next answers to tool calls are answered.
        pending: The calls that wait.
        diagnosis: Why the run stands where it stands. To ask ends the streams that hold.
        cursors: The cursors that SSE connections asked for.
        requests: All requests: method, path with query, headers, body.
    """

    def __init__(self) -> None:
        self.log = text_log("Hel", "lo ", "wörld")
        self.run = run_object(status="completed", lastSeq=len(self.log), output="Hello wörld")
        self.streams: deque[Stream | Response] = deque()
        self.feeds: deque[bytes | Response] = deque()
        self.submits: deque[Response] = deque()
        self.gets: deque[Response] = deque()
        self.cancels: deque[Response] = deque()
        self.answers: deque[Response] = deque()
        self.pending: list[dict[str, Any]] = []
        self.diagnosis: dict[str, Any] = {}
        self.cursors: list[int] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self._released = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens; the same after a restart."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.stop()

    def start(self) -> None:
        """Listen. Returns when connections are taken."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        listener.listen()  # from here on clients can connect, even before the loop runs
        config = uvicorn.Config(
            self._app(), log_level="critical", ws="none", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        """Close the port and all connections. Returns when that is done."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()
        self._server = self._thread = None

    def release(self) -> None:
        """End the streams that hold."""
        self._released.set()

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/agents", self._agents),
                Route("/v1/agents/{agent}/runs", self._submit, methods=["POST"]),
                Route("/v1/runs", self._runs),
                Route("/v1/runs/{run_id}", self._get),
                Route("/v1/runs/{run_id}/chunks", self._chunks),
                Route("/v1/runs/{run_id}/diagnosis", self._diagnosis),
                Route("/v1/runs/{run_id}/retry", self._submit_again, methods=["POST"]),
                Route("/v1/runs/{run_id}/cancel", self._cancel, methods=["POST"]),
                Route("/v1/runs/{run_id}/tool-calls/{call:path}/{verb}", self._answer, methods=["POST"]),
                Route("/v1/pending", self._pending),
                Route("/v1/background-tasks/stream", self._feed),
            ]
        )

    async def _note(self, request: Request) -> None:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self.requests.append((request.method, target, dict(request.headers), await request.body()))

    async def _agents(self, request: Request) -> Response:
        await self._note(request)
        tool = {"name": "add", "description": "Adds."}
        return JSONResponse({"agents": [{"name": "echo", "description": "Says it.", "tools": [tool], "workers": 1}]})

    async def _submit(self, request: Request) -> Response:
        await self._note(request)
        if self.submits:
            return self.submits.popleft()
        run_id = json.loads(await request.body()).get("runId") or "run-1"
        return JSONResponse(run_object(runId=run_id, status="queued", attempt=0), 202)

    async def _feed(self, request: Request) -> Response:
        await self._note(request)
        given = self.feeds.popleft()
        return given if isinstance(given, Response) else Response(given, media_type="text/event-stream")

    async def _submit_again(self, request: Request) -> Response:
        await self._note(request)
        return JSONResponse(run_object(status="queued", attempt=0, retryOf=request.path_params["run_id"]), 202)

    async def _diagnosis(self, request: Request) -> Response:
        await self._note(request)
        self.release()
        return JSONResponse(self.diagnosis)

    async def _runs(self, request: Request) -> Response:
        await self._note(request)
        return JSONResponse({"runs": [self.run], "next": None})

    async def _get(self, request: Request) -> Response:
        await self._note(request)
        return self.gets.popleft() if self.gets else JSONResponse(self.run)

    async def _cancel(self, request: Request) -> Response:
        await self._note(request)
        return self.cancels.popleft() if self.cancels else JSONResponse(self.run, 202)

    async def _answer(self, request: Request) -> Response:
        await self._note(request)
        return self.answers.popleft() if self.answers else JSONResponse(self.run)

    async def _pending(self, request: Request) -> Response:
        await self._note(request)
        return JSONResponse({"pending": self.pending, "next": None})

    def _places(self) -> list[tuple[int, dict[str, Any]]]:
        """The chunks with their places: the seqs, but for a log that has the chunks of several runs."""
        several = any("cursor" in each for each in self.log)
        return [(place if several else each["seq"], each) for place, each in enumerate(self.log, 1)]

    async def _chunks(self, request: Request) -> Response:
        await self._note(request)
        asked = request.query_params.get("after", "0")
        cursors = [str(each.get("cursor", each["seq"])) for each in self.log]
        after = 0 if asked == "0" else cursors.index(asked) + 1 if "tree" in request.query_params else int(asked)
        if "text/event-stream" not in request.headers.get("accept", ""):
            page = [each for each in self.log if each["seq"] > after]
            return JSONResponse({"runId": "run-1", "chunks": page, "next": len(self.log), "final": True})
        self.cursors.append(after)
        plan = self.streams.popleft() if self.streams else Stream()
        if isinstance(plan, Response):
            return plan
        if after >= len(self.log):
            return Response(status_code=204)
        return StreamingResponse(self._body(plan, after), media_type="text/event-stream")

    async def _body(self, plan: Stream, after: int) -> AsyncIterator[bytes]:
        until = len(self.log) if plan.until is None else plan.until
        yield b": hello\n\n"
        for value in plan.edit([each for place, each in self._places() if after < place <= until]):
            frame = sse(value)
            for start in range(0, len(frame), 7):  # cuts lines and characters
                yield frame[start : start + 7]
        if plan.tail:
            yield plan.tail
        while plan.hold and not self._released.is_set():  # noqa: ASYNC110  another thread sets it
            await asyncio.sleep(0.01)
        if plan.cut:
            raise Cut
