"""Reasoning that only its provider can check or read goes back to it as it came: in the next step, by whichever attempt
makes it, and in the next run of the conversation."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai import Agent

from durable import create_durable_agent
from durable.chunks import Chunk, ReasoningSignature, RedactedReasoning
from durable.settings import Settings
from tests.integration.test_raw import PROTOCOLS, log_of
from tests.provider_wire import (
    ProviderWire,
    anthropic,
    openai_responses,
    redacted_thinking,
    text,
    thinking,
    tool_call,
)

SIGNATURE, HIDDEN = "c2lnbmF0dXJl+/=", "aGlkZGVu+/="
always = pytest.mark.parametrize("resumed", [False, True], ids=["the same attempt", "another attempt"])


async def talk(
    name: str, wire: ProviderWire, settings: Settings, *, resumed: bool, prompts: tuple[str, ...] = ("go", "and then?")
) -> list[list[Chunk]]:
    """The logs of the runs of one conversation."""
    _, model = PROTOCOLS[name]
    agent: Agent[None, str] = Agent(model(wire.base_url), name="thinker")

    @agent.tool_plain
    def tick() -> str:
        return "tock"

    cache = settings.model_copy(update={"always_resume": resumed or settings.always_resume})
    async with create_durable_agent(agent, cache=cache) as durable:
        logs = []
        for prompt in prompts:
            handle = await durable.stream(prompt, thread_id="t1")
            logs.append(await log_of(handle))
            assert (await handle.result()).output in {"done", "again"}
            assert ((await handle.status()).attempt > 1) >= (resumed and prompt == "go")
        return logs


def assistant_blocks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What Anthropic is told that its model has said."""
    said = [message["content"] for message in body["messages"] if message["role"] == "assistant"]
    return [block for content in said for block in content]


@always
async def test_anthropics_thinking_and_what_it_hides_go_back_unchanged(
    resumed: bool,
    provider_wire: ProviderWire,
    settings: Settings,
) -> None:
    blocks = (thinking("Hm", "…", signature=SIGNATURE), redacted_thinking(HIDDEN), tool_call("c1", "tick"))
    provider_wire.script(anthropic.reply(*blocks), *(anthropic.reply(text(words)) for words in ("done", "again")))
    [first, _] = await talk("anthropic", provider_wire, settings, resumed=resumed)

    assert [chunk.payload.signature for chunk in first if isinstance(chunk, ReasoningSignature)] == [SIGNATURE]
    assert [chunk.payload.data for chunk in first if isinstance(chunk, RedactedReasoning)] == [HIDDEN]
    framed = [chunk.type for chunk in first if chunk.type in {"reasoning-start", "reasoning-end"}]
    assert framed == ["reasoning-start", "reasoning-end"]
    _, second, third = provider_wire.bodies(anthropic.PATH)
    for body in (second, third):
        thought, hidden, call = assistant_blocks(body)[:3]
        assert (thought["type"], thought["thinking"], thought["signature"]) == ("thinking", "Hm…", SIGNATURE)
        assert (hidden["type"], hidden["data"]) == ("redacted_thinking", HIDDEN)
        assert (call["type"], call["id"]) == ("tool_use", "c1")


@always
async def test_openais_encrypted_reasoning_goes_back_unchanged(
    resumed: bool,
    provider_wire: ProviderWire,
    settings: Settings,
) -> None:
    first = openai_responses.reply(thinking("Hm", "…", signature=SIGNATURE), tool_call("c1", "tick"))
    provider_wire.script(first, openai_responses.reply(text("done")), openai_responses.reply(text("again")))
    [log, _] = await talk("openai-responses", provider_wire, settings, resumed=resumed)

    assert [chunk.payload.signature for chunk in log if isinstance(chunk, ReasoningSignature)] == [SIGNATURE]
    _, second, third = provider_wire.bodies(openai_responses.PATH)
    for body in (second, third):
        [sent] = [item for item in body["input"] if item.get("type") == "reasoning"]
        assert (sent["id"], sent["encrypted_content"]) == ("rs_0", SIGNATURE)
        assert sent["summary"] == [{"type": "summary_text", "text": "Hm…"}]
