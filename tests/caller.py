"""A stranger who speaks plain HTTP to an API server: nothing of the project's own client is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from tests.deployment import wait_for

ENDED: Final = frozenset({"completed", "failed", "cancelled"})
STREAM: Final = {"Accept": "text/event-stream"}
_FRAME = re.compile(rb"id: ([0-9]+)\ndata: ([^\n]+)\n\n")

Body = dict[str, Any]
Frame = tuple[int, bytes]


class Caller(httpx.Client):
    """One server's caller.

    Args:
        url: The server.
    """

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, trust_env=False, timeout=30)

    def submit(self, prompt: str, agent: str = "scripted", **fields: Any) -> str:
        """Submit a run; its id."""
        answer = self.post(f"/v1/agents/{agent}/runs", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        run_id: str = answer.json()["runId"]
        return run_id

    def look(self, run_id: str) -> Body:
        """The run as it is now."""
        answer = self.get(f"/v1/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        view: Body = answer.json()
        return view

    def ended(self, run_id: str, *, seconds: float = 20) -> Body:
        """The run, once it has ended."""
        wait_for(lambda: self.look(run_id)["status"] in ENDED, seconds=seconds, what=f"the end of {run_id}")
        return self.look(run_id)

    def result(self, prompt: str, agent: str = "scripted", **fields: Any) -> Body:
        """Submit a run; what became of it."""
        return self.ended(self.submit(prompt, agent, **fields))

    def log(self, run_id: str, after: int = 0) -> list[Body]:
        """All chunks after a cursor that are there now. They have to be numbered without a gap."""
        chunks: list[Body] = []
        while True:
            answer = self.get(f"/v1/runs/{run_id}/chunks", params={"after": after + len(chunks), "limit": 1000})
            assert answer.status_code == 200, answer.text
            page = answer.json()["chunks"]
            chunks += page
            if not page:
                assert_dense(chunks, after)
                return chunks

    def wait_for_text(self, run_id: str, words: str, *, seconds: float = 20) -> None:
        """Wait until the run has said these words."""
        wait_for(lambda: words in said(self.log(run_id)), seconds=seconds, what=f"{run_id} to say {words!r}")

    @contextmanager
    def open_stream(self, run_id: str, after: int = 0, **headers: str) -> Iterator[httpx.Response]:
        """An event stream of a run, with its head read."""
        path = f"/v1/runs/{run_id}/chunks"
        with self.stream("GET", path, params={"after": after}, headers={**STREAM, **headers}) as response:
            yield response

    def frames(self, run_id: str, after: int = 0, **headers: str) -> list[Frame]:
        """All frames of an event stream, to its end."""
        with self.open_stream(run_id, after, **headers) as response:
            assert response.status_code == 200, response.read()
            return list(frames(response))


def frames(response: httpx.Response) -> Iterator[Frame]:
    """The frames of an event stream as they come: the id and the data. Comments are left out; all else is strict."""
    waiting = b""
    for piece in response.iter_bytes():
        waiting += piece
        while b"\n\n" in waiting:
            frame, _, waiting = waiting.partition(b"\n\n")
            if not frame.startswith(b":"):
                match = _FRAME.fullmatch(frame + b"\n\n")
                assert match, frame
                yield int(match[1]), match[2]
    assert waiting == b"", "the stream ended inside of a frame"


def chunks_of(found: list[Frame]) -> list[Body]:
    """The chunks that frames carry; each frame's id has to be its chunk's seq."""
    chunks = [json.loads(data) for _, data in found]
    assert [number for number, _ in found] == [chunk["seq"] for chunk in chunks]
    return chunks


def said(chunks: list[Body]) -> str:
    """All text of a log, also what a later attempt declared void."""
    return "".join(chunk["payload"]["text"] for chunk in chunks if chunk["type"] == "text-delta")


def of_type(chunks: list[Body], kind: str) -> list[Body]:
    """The payloads of one type's chunks."""
    return [chunk["payload"] for chunk in chunks if chunk["type"] == kind]


def assert_dense(chunks: list[Body], after: int = 0) -> None:
    """Chunks are numbered from a cursor on, without a gap."""
    assert [chunk["seq"] for chunk in chunks] == list(range(after + 1, after + len(chunks) + 1))


def assert_problem(answer: httpx.Response, status: int, code: str) -> Body:
    """An error in the one shape; its details."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert {"code", "message"} <= set(body["error"]) <= {"code", "message", "details"}
    assert body["error"]["code"] == code
    assert body["error"]["message"]
    details: Body = body["error"].get("details", {})
    return details
