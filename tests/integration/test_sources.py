"""What a provider cites and finds: from its bytes to the run's log, and back to it unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai import messages as pydantic_ai_messages
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.native_tools import WebSearchTool

from durable import create_durable_agent
from durable.chunks import Source, SourcePayload, ToolCall, ToolResult
from tests.integration.test_raw import PROTOCOLS, log_of
from tests.provider_wire import Page, ProviderWire, citing, text, tool_call, web_search

BERN = Page("https://example.org/bern", "Bern", "the capital")
AARE = Page("https://example.org/aare", "Aare")

searching = pytest.mark.parametrize("name", ["anthropic", "openai-responses"])
with_citations = pytest.mark.skipif(
    not hasattr(pydantic_ai_messages, "Citation"), reason="this release of Pydantic AI has no citations"
)


async def told_of(name: str, wire: ProviderWire, *prompts: str) -> list[list[Any]]:
    """The logs of an agent that may search, for each prompt."""
    _, model = PROTOCOLS[name]
    agent: Agent[None, str] = Agent(model(wire.base_url), name="searcher")
    if name != "openai-chat":
        agent = Agent(model(wire.base_url), name="searcher", capabilities=[NativeTool(WebSearchTool())])

    @agent.tool_plain
    def tick() -> str:
        return "tock"

    async with create_durable_agent(agent) as durable:
        return [await log_of(await durable.stream(prompt, thread_id="t1")) for prompt in prompts]


def sources_of(chunks: list[Any]) -> list[SourcePayload]:
    """The sources in a log."""
    return [chunk.payload for chunk in chunks if isinstance(chunk, Source)]


@with_citations
@pytest.mark.parametrize("name", PROTOCOLS)
async def test_what_a_text_cites_is_told(name: str, provider_wire: ProviderWire) -> None:
    protocol, _ = PROTOCOLS[name]
    provider_wire.script(protocol.reply(citing("Bern, on the Aare.", BERN, AARE)))
    [chunks] = await told_of(name, provider_wire, "go")
    assert [(found.source_type, found.url, found.title) for found in sources_of(chunks)] == [
        ("url", BERN.url, "Bern"),
        ("url", AARE.url, "Aare"),
    ]
    assert "the capital" not in json.dumps([chunk.to_wire() for chunk in chunks])


@searching
async def test_what_a_web_search_finds_is_told_once(name: str, provider_wire: ProviderWire) -> None:
    protocol, _ = PROTOCOLS[name]
    provider_wire.script(protocol.reply(web_search("ws_1", "Bern", BERN, AARE), citing("Bern.", BERN)))
    [chunks] = await told_of(name, provider_wire, "go")
    assert [found.url for found in sources_of(chunks)] == [BERN.url, AARE.url]
    [call], [result] = ([c for c in chunks if isinstance(c, kind)] for kind in (ToolCall, ToolResult))
    assert call.payload.provider_executed
    assert (result.payload.tool_name, result.payload.tool_call_id) == ("web_search", "ws_1")


@searching
async def test_a_search_goes_back_to_its_provider_in_the_next_step_and_the_next_run(
    name: str, provider_wire: ProviderWire
) -> None:
    protocol, _ = PROTOCOLS[name]
    first = protocol.reply(web_search("ws_1", "Bern", BERN), citing("Bern.", BERN), tool_call("c1", "tick"))
    provider_wire.script(first, protocol.reply(text("done")), protocol.reply(text("again")))
    await told_of(name, provider_wire, "go", "and then?")
    _, second, third = provider_wire.bodies(protocol.PATH)
    for body in (second, third):
        sent = json.dumps(body)
        assert '"ws_1"' in sent
        if name == "anthropic":
            assert '"encrypted_content": "c2VjcmV0"' in sent
