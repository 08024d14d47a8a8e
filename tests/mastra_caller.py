"""A stranger who speaks Mastra's protocol over plain HTTP, and reads streams as strictly as its client does."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.caller import Body

DONE = "[DONE]"


class MastraCaller(httpx.Client):
    """One server's caller.

    Args:
        url: The server.
    """

    def __init__(self, url: str) -> None:
        super().__init__(base_url=f"{url}/api", trust_env=False, timeout=30)

    def ask(self, route: str, body: Body, agent: str = "scripted") -> httpx.Response:
        """Post to a route of an agent."""
        return self.post(f"/agents/{agent}/{route}", json=body)

    def chunks(self, route: str, body: Body, agent: str = "scripted", *, done: bool = True) -> list[Body]:
        """All chunks of a stream, which has to end as it should."""
        with self.open(route, body, agent) as response:
            assert response.status_code == 200, response.read()
            found = list(blocks(response))
        assert (found[-1:] == [DONE]) is done, found[-1:]
        return [json.loads(block) for block in found if block != DONE]

    @contextmanager
    def open(self, route: str, body: Body, agent: str = "scripted") -> Iterator[httpx.Response]:
        """A stream, with its head read."""
        with self.stream("POST", f"/agents/{agent}/{route}", json=body) as response:
            yield response

    def begin(self, messages: Any, agent: str = "scripted", **fields: Any) -> tuple[str, list[Body]]:
        """Begin a run under an id of its own and follow it; the id and the chunks."""
        run_id = new_id()
        return run_id, self.chunks("stream", {"messages": messages, "runId": run_id, **fields}, agent)

    def observed(self, run_id: str, agent: str = "scripted", **fields: Any) -> list[Body]:
        """What `observe` tells of a run."""
        return self.chunks("observe", {"runId": run_id, **fields}, agent)


def new_id() -> str:
    """An id for a run."""
    return f"m-{secrets.token_hex(8)}"


def blocks(response: httpx.Response) -> Iterator[str]:
    """The blocks that this protocol's client takes, as they come. All else has to be a comment of its own."""
    waiting = b""
    for piece in response.iter_bytes():
        waiting += piece
        while b"\n\n" in waiting:
            block, _, waiting = waiting.partition(b"\n\n")
            assert b"\n" not in block, block
            assert b"\r" not in block, block
            if not block.startswith(b":"):
                assert block.startswith(b"data: "), block
                yield block.removeprefix(b"data: ").decode()
    assert waiting == b"", "the stream ended inside of a block"


def text_of(chunks: list[Body]) -> str:
    """The text that a reader assembles."""
    return "".join(chunk["payload"]["text"] for chunk in chunks if chunk["type"] == "text-delta")


def types_of(chunks: list[Body]) -> list[str]:
    """The types of chunks, with neighbouring deltas as one: how these are cut depends on the time."""
    found: list[str] = []
    for chunk in chunks:
        if not (found and found[-1] == chunk["type"] and chunk["type"].endswith("-delta")):
            found.append(chunk["type"])
    return found


def assert_refused(answer: httpx.Response, status: int, *fields: str) -> str:
    """An error in this protocol's shape, that names these fields; its text."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) <= {"error", "issues"}
    assert [issue["field"] for issue in body.get("issues", [])] == list(fields), body
    text: str = body["error"]
    assert text
    return text
