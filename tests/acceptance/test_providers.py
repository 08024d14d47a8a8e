"""The real provider models against real event streams, through API, Celery and Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from durable.cli import app
from tests.caller import Caller, assert_problem, chunks_of, frames, of_type, said
from tests.deployment import Deployment
from tests.provider_wire import (
    Failure,
    Hold,
    ProviderWire,
    anthropic,
    openai_chat,
    openai_responses,
    picture,
    text,
    thinking,
    tool_call,
)
from tests.provider_wire.models import URL_VARIABLE

PROTOCOLS: Final[dict[str, Any]] = {
    "anthropic": anthropic,
    "openai-chat": openai_chat,
    "openai-responses": openai_responses,
}
SIGNATURE: Final = "c2lnbmF0dXJl"
each_protocol = pytest.mark.parametrize("name", PROTOCOLS)
signing_protocols = pytest.mark.parametrize("name", ["anthropic", "openai-responses"])


@pytest.fixture(scope="module")
def wire() -> Iterator[ProviderWire]:
    """One provider for the module's worker."""
    with ProviderWire() as found:
        yield found


@pytest.fixture(scope="module")
def provided(redis_url: str, wire: ProviderWire) -> Iterator[Caller]:
    """Calls a deployment whose agents talk to the provider."""
    with Deployment(redis_url, env={URL_VARIABLE: wire.base_url}, agents="tests.provider_agents") as deployment:
        deployment.start_api()
        deployment.start_worker()
        with Caller(deployment.url) as caller:
            yield caller


@pytest.fixture(autouse=True)
def all_replies_are_asked_for(wire: ProviderWire) -> Iterator[None]:
    """Each test gets a provider without a past, and uses up what it scripted."""
    wire.requests.clear()
    yield
    assert wire.left == 0


@each_protocol
def test_text_reaches_the_observer_while_the_provider_still_speaks(
    name: str, wire: ProviderWire, provided: Caller
) -> None:
    hold = Hold()
    wire.script(PROTOCOLS[name].reply(text("one ", "two ", hold, "three"), response_id="r9"))
    run_id = provided.submit("go", name)
    provided.wait_for_text(run_id, "one two ")
    assert hold.reached()
    with provided.open_stream(run_id) as response:
        following = frames(response)
        found = [next(following)]
        while "two " not in said(chunks_of(found)):
            found.append(next(following))
        hold.release()
        found += following
    chunks = chunks_of(found)
    assert said(chunks) == "one two three"
    run = provided.ended(run_id)
    assert run["output"] == "one two three"
    assert [run["usage"][name] for name in ("inputTokens", "outputTokens", "totalTokens")] == [11, 7, 18]
    [metadata] = of_type(chunks, "response-metadata")
    assert metadata["id"] == "r9"
    [step] = of_type(chunks, "step-finish")
    assert step["stepResult"]["reason"] == "stop"


@each_protocol
def test_parallel_tool_calls_are_streamed_executed_and_answered(
    name: str, wire: ProviderWire, provided: Caller
) -> None:
    protocol = PROTOCOLS[name]
    calls = (tool_call("c1", "shout", word="ja"), tool_call("c2", "shout", word="nein"))
    wire.script(protocol.reply(*calls), protocol.reply(text("done")))
    run = provided.result("go", name)
    assert run["output"] == "done"
    chunks = provided.log(run["runId"])
    assert [call["toolCallId"] for call in of_type(chunks, "tool-call-input-streaming-start")] == ["c1", "c2"]
    streamed = {
        call: "".join(d["argsTextDelta"] for d in of_type(chunks, "tool-call-delta") if d["toolCallId"] == call)
        for call in ("c1", "c2")
    }
    assert {call: json.loads(args) for call, args in streamed.items()} == {
        "c1": {"word": "ja"},
        "c2": {"word": "nein"},
    }
    assert [(call["toolCallId"], call["args"]) for call in of_type(chunks, "tool-call")] == [
        ("c1", {"word": "ja"}),
        ("c2", {"word": "nein"}),
    ]
    results = {call["toolCallId"]: call["result"] for call in of_type(chunks, "tool-result")}
    assert results == {"c1": "JA!", "c2": "NEIN!"}
    _, second = wire.bodies(protocol.PATH)
    assert all(result in json.dumps(second) for result in results.values())


@signing_protocols
def test_thinking_is_told_and_its_signature_goes_back_unchanged(
    name: str, wire: ProviderWire, provided: Caller
) -> None:
    protocol = PROTOCOLS[name]
    first = protocol.reply(thinking("Hm", "…", signature=SIGNATURE), tool_call("c1", "shout", word="ja"))
    wire.script(first, protocol.reply(text("done")))
    run = provided.result("go", name)
    assert run["status"] == "completed"
    chunks = provided.log(run["runId"])
    assert "".join(delta["text"] for delta in of_type(chunks, "reasoning-delta")) == "Hm…"
    assert [found["signature"] for found in of_type(chunks, "reasoning-signature")] == [SIGNATURE]
    _, second = wire.bodies(protocol.PATH)
    assert SIGNATURE in json.dumps(second)


@each_protocol
def test_an_error_in_mid_stream_fails_the_run_and_keeps_the_text(
    name: str, wire: ProviderWire, provided: Caller
) -> None:
    wire.script(PROTOCOLS[name].reply(text("so ", "far"), failure=Failure("hunter2")))
    run = provided.result("go", name)
    assert (run["status"], run["error"]["code"]) == ("failed", "model_error")
    chunks = provided.log(run["runId"])
    assert said(chunks) == "so far"
    assert "hunter2" not in json.dumps([run, chunks])


@each_protocol
def test_a_connection_cut_in_mid_stream_fails_the_run_and_keeps_the_text(
    name: str, wire: ProviderWire, provided: Caller
) -> None:
    wire.script(PROTOCOLS[name].reply(text("so ", "far"), drop=True))
    run = provided.result("go", name)
    assert (run["status"], run["error"]["code"]) == ("failed", "model_error")
    assert said(provided.log(run["runId"])) == "so far"


@each_protocol
def test_a_provider_that_is_busy_is_asked_again(name: str, wire: ProviderWire, provided: Caller) -> None:
    protocol = PROTOCOLS[name]
    wire.script(protocol.rate_limited(), protocol.reply(text("at last")))
    run = provided.result("go", name)
    assert run["output"] == "at last"
    assert len(wire.bodies(protocol.PATH)) == 2
    assert [step["stepResult"]["reason"] for step in of_type(provided.log(run["runId"]), "step-finish")] == ["stop"]


@each_protocol
def test_a_cancel_hangs_up_on_the_provider(name: str, wire: ProviderWire, provided: Caller) -> None:
    hold = Hold()
    wire.script(PROTOCOLS[name].reply(text("one ", hold, "two")))
    run_id = provided.submit("go", name)
    provided.wait_for_text(run_id, "one ")
    assert provided.post(f"/v1/runs/{run_id}/cancel").status_code == 202
    assert provided.ended(run_id)["status"] == "cancelled"
    [request] = wire.requests
    assert request.abandoned.wait(10)
    hold.release()


@each_protocol
def test_raw_chunks_are_the_providers_bytes_as_json(name: str, wire: ProviderWire, provided: Caller) -> None:
    reply = PROTOCOLS[name].reply(text("one ", "two"))
    wire.script(reply)
    run = provided.result("go", name, include=["raw"])
    data = [line for frame in reply.frames for line in bytes(frame).splitlines() if line.startswith(b"data: {")]
    assert of_type(provided.log(run["runId"]), "raw") == [json.loads(line.removeprefix(b"data: ")) for line in data]


def test_a_large_picture_is_fetched_over_http_as_what_it_is(
    wire: ProviderWire, provided: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\x89PNG" + bytes(range(256)) * 1200
    wire.script(openai_responses.reply(picture("ig_1", data), text("Look.")))
    run_id = provided.result("paint", "painter")["runId"]
    [told] = of_type(provided.log(run_id), "file")
    answer = provided.get(told["url"])
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'attachment; filename="{told["fileId"]}.png"'
    assert_problem(provided.get(f"/v1/runs/{run_id}/files/nothing"), 404, "unknown_file")
    assert_problem(provided.get(f"/v1/runs/nobody/files/{told['fileId']}"), 404, "unknown_run")
    monkeypatch.chdir(tmp_path)
    saved = CliRunner().invoke(app, ["--url", str(provided.base_url), "file", run_id, told["fileId"]])
    assert saved.exit_code == 0, saved.output
    assert (tmp_path / f"{told['fileId']}.png").read_bytes() == data
    piped = CliRunner().invoke(app, ["--url", str(provided.base_url), "file", run_id, told["fileId"], "-o", "-"])
    assert piped.stdout_bytes == data
    missing = CliRunner().invoke(app, ["--url", str(provided.base_url), "file", run_id, "nothing"])
    assert missing.exit_code != 0


def test_raw_chunks_are_refused_where_nobody_sees_them(provided: Caller) -> None:
    answer = provided.post("/v1/agents/untold/runs", json={"prompt": "go", "include": ["raw"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == {"field": "include"}
    assert provided.post("/v1/agents/untold/runs", json={"prompt": "go", "include": ["nonsense"]}).status_code == 400
