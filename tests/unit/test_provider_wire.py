"""The provider wire is what the real provider models take for a provider: bare agents, nothing of this project."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import httpx2
import openai
import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
from pydantic_ai.messages import ModelResponse, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta, ThinkingPart
from pydantic_ai.models import Model

from tests.provider_wire import (
    Failure,
    Hold,
    ProviderWire,
    anthropic,
    openai_chat,
    openai_responses,
    redacted_thinking,
    text,
    thinking,
    tool_call,
)
from tests.provider_wire.models import (
    URL_VARIABLE,
    anthropic_model,
    openai_chat_model,
    openai_responses_model,
)

PROTOCOLS: dict[str, tuple[Any, Callable[..., Model]]] = {
    "anthropic": (anthropic, anthropic_model),
    "openai-chat": (openai_chat, openai_chat_model),
    "openai-responses": (openai_responses, openai_responses_model),
}
RELEASE = tuple(int(number) for number in version("pydantic-ai-slim").split(".")[:2])
# Early releases let the SDK's own errors through once a stream has begun.
STREAM_ERRORS = (ModelAPIError, openai.APIError, httpx2.TransportError)
each_protocol = pytest.mark.parametrize("name", PROTOCOLS)
signing_protocols = pytest.mark.parametrize("name", ["anthropic", "openai-responses"])


async def run(
    agent: Agent[None, str], prompt: str = "go", pieces: list[str] | None = None
) -> tuple[str, list[ModelResponse]]:
    """The output and the model's responses of a streamed run; the text goes to `pieces` as it comes."""
    async with agent, agent.iter(prompt) as agent_run:
        async for node in agent_run:
            if Agent.is_model_request_node(node):
                async with node.stream(agent_run.ctx) as events:
                    async for event in events:
                        if pieces is not None and (piece := _text_of(event)):
                            pieces.append(piece)
        assert agent_run.result is not None
        messages = agent_run.result.all_messages()
        responses = [message for message in messages if isinstance(message, ModelResponse)]
        return agent_run.result.output, responses


def _text_of(event: object) -> str:
    match event:
        case PartStartEvent(part=TextPart(content=piece)):
            return piece
        case PartDeltaEvent(delta=TextPartDelta(content_delta=piece)):
            return piece
        case _:
            return ""


@each_protocol
async def test_text_streams_piece_by_piece_with_its_usage(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    provider_wire.script(protocol.reply(text("a", "b", "c"), response_id="r9"))

    pieces: list[str] = []
    output, [response] = await run(Agent(model(provider_wire.base_url)), pieces=pieces)

    assert output == "abc"
    assert pieces == ["a", "b", "c"]
    assert response.provider_response_id == "r9"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (11, 7)
    assert response.finish_reason == "stop"
    [body] = provider_wire.bodies(protocol.PATH)
    assert body["stream"] is True
    assert body["model"] == protocol.MODEL
    assert provider_wire.left == 0


@each_protocol
async def test_results_of_parallel_tools_go_back_to_the_provider(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    both = (tool_call("c1", "shout", word="ja"), tool_call("c2", "shout", word="nein"))
    provider_wire.script(protocol.reply(*both), protocol.reply(text("done")))
    agent: Agent[None, str] = Agent(model(provider_wire.base_url))

    @agent.tool_plain
    def shout(word: str) -> str:
        return word.upper() + "!"

    output, [first, _] = await run(agent)

    assert output == "done"
    assert [(call.tool_call_id, call.args_as_dict()) for call in first.tool_calls] == [
        ("c1", {"word": "ja"}),
        ("c2", {"word": "nein"}),
    ]
    _, second = provider_wire.bodies(protocol.PATH)
    assert _tool_results(name, second) == {"c1": "JA!", "c2": "NEIN!"}


def _tool_results(name: str, body: dict[str, Any]) -> dict[str, str]:
    if name == "anthropic":
        blocks = [block for message in body["messages"] for block in message["content"]]
        results = [block for block in blocks if block["type"] == "tool_result"]
        return {block["tool_use_id"]: _plain(block["content"]) for block in results}
    if name == "openai-chat":
        return {item["tool_call_id"]: _plain(item["content"]) for item in body["messages"] if item["role"] == "tool"}
    outputs = [item for item in body["input"] if item.get("type") == "function_call_output"]
    return {item["call_id"]: _plain(item["output"]) for item in outputs}


def _plain(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@signing_protocols
async def test_a_thinking_signature_goes_back_with_the_tool_result(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    first = protocol.reply(thinking("Hm", "…", signature="c2lnbmF0dXJl"), tool_call("c1", "tick"))
    provider_wire.script(first, protocol.reply(text("done")))
    agent: Agent[None, str] = Agent(model(provider_wire.base_url))

    @agent.tool_plain
    def tick() -> str:
        return "tock"

    _, [response, _] = await run(agent)

    assert isinstance(response.parts[0], ThinkingPart)
    assert (response.parts[0].content, response.parts[0].signature) == ("Hm…", "c2lnbmF0dXJl")
    _, second = provider_wire.bodies(protocol.PATH)
    assert "c2lnbmF0dXJl" in str(second)


async def test_redacted_thinking_comes_and_goes_back(provider_wire: ProviderWire) -> None:
    provider_wire.script(
        anthropic.reply(redacted_thinking("aGlkZGVu"), tool_call("c1", "tick")), anthropic.reply(text("done"))
    )
    agent: Agent[None, str] = Agent(anthropic_model(provider_wire.base_url))

    @agent.tool_plain
    def tick() -> str:
        return "tock"

    _, [response, _] = await run(agent)

    assert isinstance(response.parts[0], ThinkingPart)
    assert response.parts[0].id == "redacted_thinking"
    _, second = provider_wire.bodies(anthropic.PATH)
    assert {"type": "redacted_thinking", "data": "aGlkZGVu"} in second["messages"][1]["content"]


@each_protocol
async def test_a_rate_limited_request_is_sent_again_by_the_sdk(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    provider_wire.script(protocol.rate_limited(), protocol.reply(text("at last")))

    output, _ = await run(Agent(model(provider_wire.base_url)))

    assert output == "at last"
    first, second = provider_wire.requests
    assert first.body == second.body


@each_protocol
async def test_an_error_in_mid_stream_fails_the_run_after_its_text(name: str, provider_wire: ProviderWire) -> None:
    if name == "openai-responses" and RELEASE < (2, 60):
        pytest.skip("early releases of Pydantic AI warn about this event and go on")
    protocol, model = PROTOCOLS[name]
    provider_wire.script(protocol.reply(text("so ", "far"), failure=Failure("Overloaded")))

    pieces: list[str] = []
    with pytest.raises(STREAM_ERRORS):
        await run(Agent(model(provider_wire.base_url)), pieces=pieces)

    assert pieces == ["so ", "far"]
    assert len(provider_wire.requests) == 1


@each_protocol
async def test_a_connection_that_breaks_in_mid_stream_fails_the_run(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    provider_wire.script(protocol.reply(text("so ", "far"), drop=True))

    pieces: list[str] = []
    with pytest.raises(STREAM_ERRORS):
        await run(Agent(model(provider_wire.base_url)), pieces=pieces)

    assert pieces == ["so ", "far"]
    assert len(provider_wire.requests) == 1


@each_protocol
async def test_a_held_stream_shows_what_came_before_and_goes_on_when_released(
    name: str, provider_wire: ProviderWire
) -> None:
    protocol, model = PROTOCOLS[name]
    hold = Hold()
    provider_wire.script(protocol.reply(text("before ", hold, "after")))

    running = asyncio.ensure_future(run(Agent(model(provider_wire.base_url))))
    assert await asyncio.to_thread(hold.reached)
    assert not running.done()
    hold.release()
    output, _ = await running

    assert output == "before after"


@each_protocol
async def test_a_client_that_leaves_in_mid_stream_is_noticed(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    hold = Hold()
    provider_wire.script(protocol.reply(text("before ", hold, "after")))

    running = asyncio.ensure_future(run(Agent(model(provider_wire.base_url))))
    assert await asyncio.to_thread(hold.reached)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    [request] = provider_wire.requests
    assert await asyncio.to_thread(request.abandoned.wait, 10)
    assert not request.answered.is_set()


async def test_a_delay_between_events_changes_nothing_else(provider_wire: ProviderWire) -> None:
    provider_wire.script(anthropic.reply(text("a", "b"), delay=0.001))

    output, _ = await run(Agent(anthropic_model(provider_wire.base_url)))

    assert output == "ab"


async def test_replies_meant_for_a_request_wait_for_it(provider_wire: ProviderWire) -> None:
    provider_wire.script(
        anthropic.reply(text("for two"), contains="number two"),
        anthropic.reply(text("for one"), contains="number one"),
    )

    outputs = [
        (await run(Agent(anthropic_model(provider_wire.base_url)), prompt))[0]
        for prompt in ("number one", "number two")
    ]

    assert outputs == ["for one", "for two"]


async def test_a_request_that_nothing_is_scripted_for_fails_at_once(provider_wire: ProviderWire) -> None:
    provider_wire.script(openai_chat.reply(text("not for you")))

    with pytest.raises(ModelHTTPError) as caught:
        await run(Agent(anthropic_model(provider_wire.base_url)))

    assert caught.value.status_code == 400
    assert len(provider_wire.requests) == 1


async def test_models_in_another_process_find_the_wire_in_their_environment(
    provider_wire: ProviderWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, provider_wire.base_url)
    provider_wire.script(openai_chat.reply(text("found")))

    output, [response] = await run(Agent(openai_chat_model()))

    assert output == "found"
    assert isinstance(response.parts[0], TextPart)


def test_models_without_an_address_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)

    with pytest.raises(RuntimeError, match=URL_VARIABLE):
        anthropic_model()
