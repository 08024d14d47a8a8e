"""The bytes of the streams, as the parser of Mastra's client needs them: it is none of Server-Sent Events."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.acceptance.mastra_client.conftest import Site
from tests.acceptance.mastra_client.driver import Driver, MastraClient, new_id

pytestmark = pytest.mark.timeout(180)

DONE = b"data: [DONE]\n\n"


def post(client: MastraClient, route: str, **body: Any) -> httpx.Response:
    """A POST to a route of the client's agent, read to the end."""
    url = f"{client.servers[0]}/api/agents/{client.agent}/{route}"
    return httpx.post(url, json=body, trust_env=False, timeout=30)


def chunks_of(body: bytes) -> list[Any]:
    """The chunks of a stream, each block of which has to be such that the client's parser loses nothing."""
    assert body.endswith(b"\n\n"), "the parser of observe forgets a last block without its end"
    assert b"\r" not in body
    chunks = []
    for block in body.removesuffix(b"\n\n").split(b"\n\n"):
        if block.startswith(b":"):
            assert b"\n" not in block, "a comment in the block of a chunk hides it"
            continue
        assert block.startswith(b"data: ")
        assert b"\n" not in block, "the parser takes all of a block for JSON"
        if block + b"\n\n" != DONE:
            chunk = json.loads(block.removeprefix(b"data: "))
            compact = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
            assert len(compact.encode()) == len(block) - len(b"data: ")
            chunks.append(chunk)
    return chunks


def test_every_stream_is_blocks_of_one_line_with_a_marker_at_its_end(client: MastraClient) -> None:
    run_id = new_id()
    stream = post(client, "stream", messages='call refund {"amount": 5}', runId=run_id)
    answer = {"runId": run_id, "toolCallId": "call-0"}
    continued = post(client, "approve-tool-call", **answer)
    observed = post(client, "observe", runId=run_id)
    for response in (stream, continued, observed):
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert "no-cache" in response.headers["cache-control"]
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in response.headers
        assert response.content.endswith(DONE)
        assert response.content.count(DONE) == 1
    assert chunks_of(stream.content) + chunks_of(continued.content) == chunks_of(observed.content)
    ended = post(client, "observe", runId=run_id, offset=len(chunks_of(observed.content)))
    assert chunks_of(ended.content) == []
    assert ended.content.endswith(DONE)


def test_each_chunk_is_a_bare_one_of_the_protocol(client: MastraClient) -> None:
    chunks = chunks_of(post(client, "stream", messages='call add {"a": 1, "b": 2}').content)
    for chunk in chunks:
        assert {"type", "runId", "from", "payload"} <= set(chunk) <= {"type", "runId", "from", "payload", "metadata"}


def test_text_that_looks_like_framing_is_only_text(client: MastraClient) -> None:
    words = "data:[DONE] \\n\\n id:7 event:x :comment \u2028 "
    chunks = chunks_of(post(client, "stream", messages=f"say {words}").content)
    said = "".join(chunk["payload"]["text"] for chunk in chunks if chunk["type"] == "text-delta")
    assert said == " ".join(words.split()) + " "
    assert client.stream(f"say {words}").text == said


def test_heads_come_before_any_chunk_and_silence_is_filled_with_comments_of_their_own(
    driver: Driver, site: Site
) -> None:
    client = MastraClient(driver, "evented-helper", site.servers[:1])
    waiting = client.stream('call refund {"amount": 5}')
    agent = f"{site.servers[0]}/api/agents/{client.agent}"
    with httpx.Client(trust_env=False, timeout=20) as http, ExitStack() as opened:
        silent = [
            http.stream("POST", f"{agent}/observe", json={"runId": waiting.run_id, "offset": len(waiting.chunks)}),
            http.stream("POST", f"{agent}/threads/subscribe", json={"threadId": new_id()}),
            http.stream("GET", f"{site.servers[0]}/api/background-tasks/stream", params={"runId": new_id()}),
        ]
        responses = [opened.enter_context(stream) for stream in silent]
        pieces = [response.iter_raw() for response in responses]
        for response, piece in zip(responses, pieces, strict=True):
            assert response.status_code == 200
            assert next(piece) == b": connected\n\n"
        for piece in pieces:
            assert next(piece) in {b": heartbeat\n\n", b": keep-alive\n\n"}
