"""The provider's own events, on request: from its bytes to the run's log, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import AbstractCapability, ProcessHistory
from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.messages import ModelResponse, PartStartEvent
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel

from durable import DurableAgent, RunHandle, create_durable_agent
from durable.chunks import Chunk, Raw, StepStart
from durable.errors import InvalidRequest
from durable.execution.tee import Tee
from durable.providers import shows_events
from durable.settings import Settings
from tests.provider_wire import (
    Hold,
    ProviderWire,
    Reply,
    anthropic,
    openai_chat,
    openai_responses,
    text,
    thinking,
    tool_call,
)
from tests.provider_wire.models import anthropic_model, openai_chat_model, openai_responses_model

PROTOCOLS: dict[str, tuple[Any, Callable[..., Model]]] = {
    "anthropic": (anthropic, anthropic_model),
    "openai-chat": (openai_chat, openai_chat_model),
    "openai-responses": (openai_responses, openai_responses_model),
}
each_protocol = pytest.mark.parametrize("name", PROTOCOLS)


def events_of(reply: Reply) -> list[dict[str, Any]]:
    """The events that a scripted reply sends."""
    lines = [line for frame in reply.frames if isinstance(frame, bytes) for line in frame.decode().splitlines()]
    texts = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def raw_of(chunks: list[Chunk]) -> list[dict[str, Any]]:
    """The provider's events in a log."""
    return [chunk.to_wire()["payload"] for chunk in chunks if isinstance(chunk, Raw)]


def wrap(model: Model, **options: Any) -> DurableAgent:
    """An agent in memory."""
    return create_durable_agent(Agent(model, name="raw", **options))


class Selecting(AbstractCapability[Any]):
    """Has another model asked than the agent's own."""

    def get_model(self) -> Model:
        return TestModel()


class Meanwhile(AbstractCapability[Any]):
    """Asks somebody while a model speaks."""

    def __init__(self, ask: Callable[[str], Awaitable[str]]) -> None:
        self._ask = ask

    async def wrap_run_event_stream(
        self,
        ctx: RunContext[Any],  # noqa: ARG002
        *,
        stream: AsyncIterable[Any],
    ) -> AsyncIterator[Any]:
        async for event in stream:
            if isinstance(event, PartStartEvent):
                await self._ask("in a handler")
            yield event


class Picky(AbstractCapability[Any]):
    """Has the model answer again that says no."""

    async def after_model_request(
        self,
        ctx: RunContext[Any],  # noqa: ARG002
        *,
        request_context: Any,  # noqa: ARG002
        response: ModelResponse,
    ) -> ModelResponse:
        if response.text == "no":
            raise ModelRetry("again")
        return response


async def log_of(handle: RunHandle) -> list[Chunk]:
    """All chunks of a run, once it has ended."""
    async with asyncio.timeout(30):
        return [chunk async for chunk in handle]


@each_protocol
async def test_the_providers_events_are_told_as_they_came_before_what_is_made_of_them(
    name: str, provider_wire: ProviderWire
) -> None:
    protocol, model = PROTOCOLS[name]
    reply = protocol.reply(thinking("Hm"), text("Grüße ", "aus 東京"))
    provider_wire.script(reply)
    async with wrap(model(provider_wire.base_url)) as agent:
        chunks = await log_of(await agent.stream("go", include=["raw"]))

    assert raw_of(chunks) == events_of(reply)
    kinds = [chunk.type for chunk in chunks]
    assert kinds.index("step-start") < kinds.index("raw") < kinds.index("reasoning-start")
    assert max(i for i, kind in enumerate(kinds) if kind == "raw") < kinds.index("response-metadata")
    deltas = [i for i, chunk in enumerate(chunks) if chunk.type == "text-delta"]
    speaking = [i for i, chunk in enumerate(chunks) if isinstance(chunk, Raw) and "東京" in str(chunk.to_wire())]
    assert speaking[0] < deltas[-1]


@each_protocol
async def test_a_run_that_does_not_ask_is_told_no_raw_chunks(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    provider_wire.script(protocol.reply(text("one")), protocol.reply(text("one")))
    async with wrap(model(provider_wire.base_url)) as agent:
        asked = await log_of(await agent.stream("go", include=["raw"]))
        unasked = await log_of(await agent.stream("go"))

    assert raw_of(unasked) == []
    assert [chunk.type for chunk in unasked] == [chunk.type for chunk in asked if not isinstance(chunk, Raw)]


@each_protocol
async def test_events_are_told_while_the_provider_still_speaks(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    hold = Hold()
    reply = protocol.reply(text("one ", hold, "two"))
    provider_wire.script(reply)
    async with wrap(model(provider_wire.base_url)) as agent, asyncio.timeout(30):
        seen: list[Chunk] = []
        async for chunk in await agent.stream("go", include=["raw"]):
            seen.append(chunk)
            if isinstance(chunk, Raw) and "one " in json.dumps(chunk.to_wire()):
                assert await asyncio.to_thread(hold.reached)
                hold.release()
    assert raw_of(seen) == events_of(reply)


async def test_of_runs_that_share_a_client_each_is_told_its_own(provider_wire: ProviderWire) -> None:
    replies = {
        word: anthropic.reply(text(word), contains=f"say {word}", response_id=word) for word in ("a1", "b2", "c3")
    }
    provider_wire.script(*replies.values())
    async with wrap(anthropic_model(provider_wire.base_url)) as agent:
        handles = {
            word: await agent.stream(f"say {word}", include=None if word == "b2" else ["raw"]) for word in replies
        }
        logs = dict(zip(handles, await asyncio.gather(*map(log_of, handles.values())), strict=True))

    told = {word: raw_of(chunks) for word, chunks in logs.items()}
    assert told == {"a1": events_of(replies["a1"]), "b2": [], "c3": events_of(replies["c3"])}


async def test_what_tools_and_hooks_ask_of_the_same_provider_is_not_told(provider_wire: ProviderWire) -> None:
    model = anthropic_model(provider_wire.base_url)
    other: Agent[None, str] = Agent(model)

    async def ask(question: str) -> str:
        async with other.run_stream(question) as found:
            return await found.get_output()

    async def shorten(messages: list[Any]) -> list[Any]:
        await ask("in a hook")
        return messages

    first, last = anthropic.reply(tool_call("c1", "ask", question="in a tool")), anthropic.reply(text("done"))
    asked = [f'"text": "{where}"' for where in ("in a hook", "in a tool", "in a handler")]
    provider_wire.script(*[anthropic.reply(text("hidden"), contains=words) for words in asked * 2], first, last)
    async with wrap(model, tools=[ask], capabilities=[ProcessHistory(shorten), Meanwhile(ask)]) as agent:
        chunks = await log_of(await agent.stream("go", include=["raw"]))

    assert raw_of(chunks) == events_of(first) + events_of(last)
    assert provider_wire.left == 1  # the tool is called once


@each_protocol
async def test_what_the_sdk_asks_again_is_told_once(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    reply = protocol.reply(text("at last"))
    provider_wire.script(protocol.rate_limited(), reply)
    async with wrap(model(provider_wire.base_url)) as agent:
        chunks = await log_of(await agent.stream("go", include=["raw"]))
    assert raw_of(chunks) == events_of(reply)


async def test_the_models_behind_wrappers_and_fallbacks_are_found(provider_wire: ProviderWire) -> None:
    reply = openai_chat.reply(text("second"))
    busy = Reply(anthropic.PATH, (b"{}",), status=400)
    provider_wire.script(busy, reply)
    model = FallbackModel(
        WrapperModel(anthropic_model(provider_wire.base_url)), openai_chat_model(provider_wire.base_url)
    )
    async with wrap(WrapperModel(model)) as agent:
        chunks = await log_of(await agent.stream("go", include=["raw"]))
    assert raw_of(chunks) == events_of(reply)


async def test_events_of_a_response_that_is_not_accepted_are_void_with_it(provider_wire: ProviderWire) -> None:
    refused, reply = anthropic.reply(text("no")), anthropic.reply(text("done"))
    provider_wire.script(refused, reply)
    async with wrap(anthropic_model(provider_wire.base_url), capabilities=[Picky()]) as agent:
        chunks = await log_of(await agent.stream("go", include=["raw"]))
    [void] = [chunk.payload.void for chunk in chunks if isinstance(chunk, StepStart) and chunk.payload.void]
    inside = [chunk for chunk in chunks if void.from_ <= chunk.seq <= void.to]
    assert raw_of(inside) == events_of(refused)
    assert raw_of(chunks) == events_of(refused) + events_of(reply)


async def test_events_of_a_response_that_was_torn_are_void_for_the_attempt_that_asks_again(
    provider_wire: ProviderWire, settings: Settings
) -> None:
    hold, whole = Hold(), anthropic.reply(text("one ", "two"))
    provider_wire.script(anthropic.reply(text("one ", hold, "two")), whole)
    agent: Agent[None, str] = Agent(anthropic_model(provider_wire.base_url), name="raw")
    async with create_durable_agent(agent, cache=settings) as first, asyncio.timeout(30):
        handle = await first.stream("go", include=["raw"])
        async for chunk in handle:
            if isinstance(chunk, Raw) and "one " in json.dumps(chunk.to_wire()):
                break
    hold.release()
    async with create_durable_agent(agent, cache=settings) as second:
        chunks = await log_of(await second.handle(handle.run_id))

    [void] = [chunk.payload.void for chunk in chunks if isinstance(chunk, StepStart) and chunk.payload.void]
    torn = [chunk for chunk in chunks if void.from_ <= chunk.seq <= void.to]
    assert {chunk.attempt for chunk in torn} == {1}
    assert raw_of(torn) == events_of(whole)[: len(raw_of(torn))] != []
    assert raw_of([chunk for chunk in chunks if chunk.seq > void.to]) == events_of(whole)


async def test_a_body_that_is_no_stream_of_events_tells_nothing(provider_wire: ProviderWire) -> None:
    provider_wire.script(Reply(anthropic.PATH, (b'{"error":{"message":"hunter2"}}',), status=400))
    async with wrap(anthropic_model(provider_wire.base_url)) as agent:
        chunks = await log_of(await agent.stream("go", include=["raw"]))
    assert raw_of(chunks) == []
    assert "hunter2" not in json.dumps([chunk.to_wire() for chunk in chunks])


async def test_an_event_that_cannot_be_told_does_not_keep_the_bytes_from_the_model(
    provider_wire: ProviderWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Tee, __: dict[str, Any]) -> None:
        raise RuntimeError

    monkeypatch.setattr(Tee, "take", broken)
    provider_wire.script(anthropic.reply(text("whole ", "answer")))
    async with wrap(anthropic_model(provider_wire.base_url)) as agent:
        result = await (await agent.stream("go", include=["raw"])).result()
    assert result.output == "whole answer"


async def test_raw_chunks_of_a_model_without_them_are_refused() -> None:
    async with wrap(TestModel()) as agent:
        with pytest.raises(InvalidRequest) as refused:
            await agent.stream("go", include=["raw"])
    assert refused.value.details == {"field": "include"}


async def test_a_run_whose_model_turns_out_to_tell_no_events_fails(provider_wire: ProviderWire) -> None:
    """The agent's own model has them; the one that a capability selects has not."""
    async with wrap(anthropic_model(provider_wire.base_url), capabilities=[Selecting()]) as agent:
        handle = await agent.stream("go", include=["raw"])
        await log_of(handle)
        view = await handle.status()
    assert view.error is not None
    assert view.error.code == "invalid_request"


def test_only_models_whose_events_can_be_seen_count(provider_wire: ProviderWire) -> None:
    seen, unseen = anthropic_model(provider_wire.base_url), TestModel()
    assert shows_events(seen)
    assert shows_events(FallbackModel(seen, openai_responses_model(provider_wire.base_url)))
    assert not shows_events(FallbackModel(seen, unseen))
    assert not any(shows_events(model) for model in (unseen, None, "openai:gpt-5", WrapperModel(unseen)))


def test_a_second_response_is_held_back_until_it_is_known_what_it_replaces() -> None:
    told: list[Any] = []
    tee = Tee(lambda chunk: told.append(chunk.to_wire()["payload"]["n"]))
    with tee.step():
        tee.open()
        tee.take({"n": 1})
        assert told == [1]
        tee.open()
        tee.take({"n": 2})
        assert told == [1]
        told.append("the step begins anew")
        tee.release()
        tee.take({"n": 3})
        assert told == [1, "the step begins anew", 2, 3]
        tee.open()
        tee.take({"n": 4})
    assert told[-1] == 4
