"""The chunks of real agents' events, and of events that only some providers send, exactly as they go to the log."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, CustomEvent, ModelRetry, RunContext, ToolFailed
from pydantic_ai import messages as pydantic_ai_messages
from pydantic_ai.messages import (
    BinaryContent,
    FilePart,
    FinalResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel
from pydantic_ai.usage import RequestUsage, RunUsage

from durable.chunks import Chunk, VoidRange, encode_body, parse
from durable.translate import Translator, to_json_value
from durable.translate.steps import own_usage, usage_of
from tests.provider_wire import (
    ProviderWire,
    Usage,
    anthropic,
    openai_chat,
    openai_responses,
    redacted_thinking,
    text,
    thinking,
    tool_call,
)
from tests.provider_wire.models import anthropic_model, openai_chat_model, openai_responses_model

Seen = tuple[str, dict[str, Any]]
Delta = str | dict[int, DeltaToolCall] | dict[int, DeltaThinkingPart]

_TIMES = ("startedAt", "timestamp")


def seen(chunks: Sequence[Chunk]) -> list[Seen]:
    """Types and payloads, as a reader gets them after a way through the log, without times."""
    wires = [parse(encode_body(chunk)).to_wire() for chunk in chunks]
    return [(wire["type"], {k: v for k, v in wire["payload"].items() if k not in _TIMES}) for wire in wires]


def types(chunks: Sequence[Chunk]) -> list[str]:
    """The types alone."""
    return [chunk.type for chunk in chunks]


def scripted(*turns: Sequence[Delta]) -> FunctionModel:
    """A model that streams these deltas, one sequence a request."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Delta]:
        answered = sum(isinstance(message, ModelResponse) for message in messages)
        for delta in turns[answered]:
            yield delta

    return FunctionModel(stream_function=stream)


def calls(*pairs: tuple[str, str, str]) -> list[Delta]:
    """Deltas of whole tool calls: (id, name, JSON)."""
    return [
        {index: DeltaToolCall(name=name, json_args=json, tool_call_id=call)}
        for index, (call, name, json) in enumerate(pairs)
    ]


async def drive(agent: Agent[None, Any], prompt: str = "go") -> list[Chunk]:
    """Run the agent and translate all that it yields, as an attempt does."""
    translator = Translator()
    chunks: list[Chunk] = []
    step = 0
    async with agent, agent.iter(prompt) as run:
        node = run.next_node
        while not Agent.is_end_node(node):
            if Agent.is_model_request_node(node):
                step += 1
                chunks += translator.begin_step(step, f"m{step}")
                async with node.stream(run.ctx) as events:
                    async for event in events:
                        chunks += translator.event(event)
                    chunks += translator.response(events.response)
                node = await run.next(node)
            elif Agent.is_call_tools_node(node):
                async with node.stream(run.ctx) as tool_events:
                    async for tool_event in tool_events:
                        chunks += translator.event(tool_event)
                node = await run.next(node)
                chunks += translator.end_step(is_continued=not Agent.is_end_node(node))
            else:
                node = await run.next(node)
        assert run.result is not None
        output = run.result.output
        if isinstance(output, str):
            chunks.append(translator.finish(usage=run.usage, text=output))
        else:
            chunks.append(translator.finish(usage=run.usage, text="", output=output))
    return chunks


def step_start(step: int) -> Seen:
    return ("step-start", {"stepId": f"step-{step}", "messageId": f"m{step}", "request": {}})


def text_block(part: str, *pieces: str, **metadata: Any) -> list[Seen]:
    deltas = [("text-delta", {"id": part, "text": piece}) for piece in pieces]
    return [("text-start", {"id": part, **metadata}), *deltas, ("text-end", {"id": part, **metadata})]


def arguments(call: str, name: str, *pieces: str) -> list[Seen]:
    deltas = [("tool-call-delta", {"toolCallId": call, "argsTextDelta": piece}) for piece in pieces]
    start = ("tool-call-input-streaming-start", {"toolCallId": call, "toolName": name})
    return [start, *deltas, ("tool-call-input-streaming-end", {"toolCallId": call})]


# --- whole turns of real agents, with a scripted model ---------------------------------------------------------------


async def test_a_text_turn_is_framed_by_its_step_and_ends_with_finish() -> None:
    chunks = await drive(Agent(scripted(["Hel", "lo ", "you"])))

    usage = chunks[-1].payload.output.usage.model_dump(by_alias=True, exclude_unset=True)
    assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"] > 0
    assert seen(chunks) == [
        step_start(1),
        *text_block("a1p1", "Hel", "lo ", "you"),
        ("response-metadata", {"modelId": "function::stream"}),
        (
            "step-finish",
            {
                "messageId": "m1",
                "stepResult": {"reason": "stop", "isContinued": False},
                "output": {"text": "Hello you", "usage": usage},
                "metadata": {},
            },
        ),
        (
            "finish",
            {
                "output": {
                    "text": "Hello you",
                    "usage": usage,
                    "steps": [
                        {
                            "text": "Hello you",
                            "toolCalls": [],
                            "toolResults": [],
                            "usage": usage,
                            "finishReason": "stop",
                        }
                    ],
                },
                "stepResult": {"reason": "stop", "isContinued": False},
            },
        ),
    ]


async def test_two_parallel_tools_are_called_and_answered_by_their_ids() -> None:
    turn = calls(("c1", "add", '{"a":1,"b":2}'), ("c2", "add", '{"a":3,"b":4}'))
    agent = Agent(scripted(turn, ["done"]))

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        return a + b

    chunks = await drive(agent)
    told = seen(chunks)

    assert told[:8] == [
        step_start(1),
        *arguments("c1", "add", '{"a":1,"b":2}'),
        *arguments("c2", "add", '{"a":3,"b":4}'),
        ("response-metadata", {"modelId": "function::stream"}),
    ]
    assert told[8:10] == [
        ("tool-call", {"toolCallId": "c1", "toolName": "add", "args": {"a": 1, "b": 2}}),
        ("tool-call", {"toolCallId": "c2", "toolName": "add", "args": {"a": 3, "b": 4}}),
    ]
    assert sorted(told[10:12], key=str) == [
        ("tool-result", {"toolCallId": "c1", "toolName": "add", "result": 3}),
        ("tool-result", {"toolCallId": "c2", "toolName": "add", "result": 7}),
    ]
    kind, finished = told[12]
    assert kind == "step-finish"
    assert finished["stepResult"] == {"reason": "tool-calls", "isContinued": True}
    assert finished["output"]["toolCalls"] == [
        {"toolCallId": "c1", "toolName": "add", "args": {"a": 1, "b": 2}},
        {"toolCallId": "c2", "toolName": "add", "args": {"a": 3, "b": 4}},
    ]
    assert told[13:17] == [step_start(2), *text_block("a1p1", "done")]
    steps = told[-1][1]["output"]["steps"]
    assert [step["finishReason"] for step in steps] == ["tool-calls", "stop"]
    assert {result["result"] for result in steps[0]["toolResults"]} == {3, 7}


async def test_a_retry_is_a_tool_error_with_the_words_that_the_model_gets() -> None:
    turns = (
        calls(("c1", "city", '{"name":"x"}')),
        calls(("c2", "city", "{}")),
        calls(("c3", "city", '{"name":"Bern"}')),
    )
    agent = Agent(scripted(*turns, ["ok"]), retries=3)

    @agent.tool_plain
    def city(name: str) -> str:
        if name == "x":
            raise ModelRetry("There is no such city.")
        return name.upper()

    told = seen(await drive(agent))

    errors = [payload for kind, payload in told if kind == "tool-error"]
    assert errors == [
        {
            "toolCallId": "c1",
            "toolName": "city",
            "error": {"code": "tool_retry", "message": "There is no such city."},
        },
        {
            "toolCallId": "c2",
            "toolName": "city",
            "error": {"code": "tool_retry", "message": "name: Field required"},
        },
    ]
    assert [payload["result"] for kind, payload in told if kind == "tool-result"] == ["BERN"]


async def test_a_tool_that_says_it_failed_is_a_tool_error() -> None:
    agent = Agent(scripted(calls(("c1", "look", "{}")), ["ok"]))

    @agent.tool_plain
    def look() -> str:
        raise ToolFailed("The archive is closed.")

    told = seen(await drive(agent))

    assert (
        "tool-error",
        {
            "toolCallId": "c1",
            "toolName": "look",
            "error": {"code": "tool_failed", "message": "The archive is closed."},
        },
    ) in told
    results = told[-1][1]["output"]["steps"][0]["toolResults"]
    assert [(result["toolCallId"], result["isError"]) for result in results] == [("c1", True)]


async def test_an_unknown_tool_is_called_and_answered_in_the_log() -> None:
    told = seen(await drive(Agent(scripted(calls(("c1", "ghost", '{"a":1}')), ["ok"]))))

    assert ("tool-call", {"toolCallId": "c1", "toolName": "ghost", "args": {"a": 1}}) in told
    [error] = [payload for kind, payload in told if kind == "tool-error"]
    assert error["error"]["code"] == "tool_retry"
    assert "ghost" in error["error"]["message"]


async def test_an_output_tool_is_a_tool_call_and_its_value_is_the_turns_object() -> None:
    class City(BaseModel):
        name: str
        height: int

    agent = Agent(scripted(calls(("c1", "final_result", '{"name":"Bern","height":540}'))), output_type=City)
    told = seen(await drive(agent))

    args = {"name": "Bern", "height": 540}
    assert ("tool-call", {"toolCallId": "c1", "toolName": "final_result", "args": args}) in told
    [result] = [payload for kind, payload in told if kind == "tool-result"]
    assert (result["toolCallId"], result["toolName"]) == ("c1", "final_result")
    kind, finish = told[-1]
    assert kind == "finish"
    assert finish["output"]["object"] == args
    assert finish["output"]["text"] == ""


@dataclass(kw_only=True)
class ClimbEvent(CustomEvent, name="test_translate.climb"):
    """Progress for everybody."""

    metres: int
    note: Any = None


@dataclass(kw_only=True)
class AuditEvent(CustomEvent, name="test_translate.audit", ui=False):
    """For the server alone."""

    secret: str


async def test_what_a_tool_emits_is_tool_output_before_its_result() -> None:
    agent: Agent[None, str] = Agent(scripted(calls(("c1", "climb", "{}")), ["up"]))

    @agent.tool
    async def climb(ctx: RunContext[None]) -> str:
        await ctx.emit(ClimbEvent(metres=10))
        await ctx.emit(AuditEvent(secret="s3cret"))
        await ctx.emit(ClimbEvent(metres=20, note=object()))
        return "top"

    chunks = await drive(agent)
    told = [(kind, payload) for kind, payload in seen(chunks) if kind.startswith("tool-")]

    assert told[3:] == [
        ("tool-call", {"toolCallId": "c1", "toolName": "climb", "args": {}}),
        ("tool-output", {"output": {"metres": 10, "note": None}, "toolCallId": "c1", "toolName": "climb"}),
        (
            "tool-output",
            {
                "output": {"metres": 20, "note": {"notSerializable": "object"}},
                "toolCallId": "c1",
                "toolName": "climb",
            },
        ),
        ("tool-result", {"toolCallId": "c1", "toolName": "climb", "result": "top"}),
    ]
    assert {str(chunk.metadata) for chunk in chunks if chunk.type == "tool-output"} == {
        "{'event': 'test_translate.climb'}"
    }
    assert b"s3cret" not in b"".join(encode_body(chunk) for chunk in chunks)


async def test_reasoning_of_a_scripted_model_comes_before_its_text() -> None:
    turn: list[Delta] = [
        {0: DeltaThinkingPart(content="let me ")},
        {0: DeltaThinkingPart(content="see")},
        {0: DeltaThinkingPart(signature="proof")},
        "42",
    ]
    told = seen(await drive(Agent(scripted(turn))))

    assert told[1:6] == [
        ("reasoning-start", {"id": "a1p1"}),
        ("reasoning-delta", {"id": "a1p1", "text": "let me "}),
        ("reasoning-delta", {"id": "a1p1", "text": "see"}),
        (
            "reasoning-signature",
            {
                "id": "a1p1",
                "signature": "proof",
                "providerMetadata": {"function": {"signature": "proof"}},
            },
        ),
        ("reasoning-end", {"id": "a1p1"}),
    ]
    assert told[6:9] == text_block("a1p2", "42")


# --- the real provider models against the provider wire --------------------------------------------------------------

PROTOCOLS: dict[str, tuple[Any, Callable[[str], Model]]] = {
    "anthropic": (anthropic, anthropic_model),
    "openai-chat": (openai_chat, openai_chat_model),
    "openai-responses": (openai_responses, openai_responses_model),
}


def own(name: str, identity: str) -> dict[str, Any]:
    """What a payload has of the provider's own id of a part: OpenAI's Responses names each."""
    return {"providerMetadata": {"openai": {"id": identity}}} if name == "openai-responses" else {}


@pytest.mark.parametrize("name", PROTOCOLS)
async def test_parallel_tools_of_a_real_provider_give_the_same_chunks(name: str, provider_wire: ProviderWire) -> None:
    protocol, model = PROTOCOLS[name]
    first = protocol.reply(
        text("Let me ", "add."),
        tool_call("c1", "add", a=1, b=2),
        tool_call("c2", "add", a=3, b=4),
        usage=Usage(input=100, output=20, cached=64),
        response_id="r1",
    )
    provider_wire.script(first, protocol.reply(text("3 and 7"), response_id="r2"))
    agent = Agent(model(provider_wire.base_url))

    @agent.tool_plain(sequential=True)
    def add(a: int, b: int) -> int:
        return a + b

    told = seen(await drive(agent))

    assert (
        told[:15]
        == [
            step_start(1),
            *text_block("a1p1", "Let me ", "add.", **own(name, "msg_0")),
            *arguments("c1", "add", '{"a":1', ',"b":2}'),
            *arguments("c2", "add", '{"a":3', ',"b":4}'),
            ("response-metadata", {"id": "r1", "modelId": protocol.MODEL}),
            ("tool-call", {"toolCallId": "c1", "toolName": "add", "args": {"a": 1, "b": 2}, **own(name, "fc_1")}),
        ][:15]
    )
    outcomes = [item for item in told if item[0] in ("tool-call", "tool-result")]
    assert outcomes == [
        ("tool-call", {"toolCallId": "c1", "toolName": "add", "args": {"a": 1, "b": 2}, **own(name, "fc_1")}),
        ("tool-call", {"toolCallId": "c2", "toolName": "add", "args": {"a": 3, "b": 4}, **own(name, "fc_2")}),
        ("tool-result", {"toolCallId": "c1", "toolName": "add", "result": 3}),
        ("tool-result", {"toolCallId": "c2", "toolName": "add", "result": 7}),
    ]
    finished = [payload for kind, payload in told if kind == "step-finish"]
    assert [step["stepResult"]["reason"] for step in finished] == ["tool-calls", "stop"]
    assert [step["stepResult"]["isContinued"] for step in finished] == [True, False]
    usage = finished[0]["output"]["usage"]
    assert (usage["inputTokens"], usage["outputTokens"], usage["totalTokens"]) == (100, 20, 120)
    assert usage["cachedInputTokens"] == 64
    assert told[-1][1]["output"]["text"] == "3 and 7"
    assert told[-1][1]["output"]["usage"]["totalTokens"] == 138


@pytest.mark.parametrize(("name", "provider"), [("anthropic", "anthropic"), ("openai-responses", "openai")])
async def test_thinking_of_a_real_provider_keeps_its_signature(
    name: str, provider: str, provider_wire: ProviderWire
) -> None:
    protocol, model = PROTOCOLS[name]
    provider_wire.script(protocol.reply(thinking("Hm", ", so", signature="c2ln"), text("Yes")))

    told = seen(await drive(Agent(model(provider_wire.base_url))))

    assert told[:9] == [
        step_start(1),
        ("reasoning-start", {"id": "a1p1", **own(name, "rs_0")}),
        ("reasoning-delta", {"id": "a1p1", "text": "Hm"}),
        ("reasoning-delta", {"id": "a1p1", "text": ", so"}),
        (
            "reasoning-signature",
            {"id": "a1p1", "signature": "c2ln", "providerMetadata": {provider: {"signature": "c2ln"}}},
        ),
        ("reasoning-end", {"id": "a1p1"}),
        *text_block("a1p2", "Yes", **own(name, "msg_1")),
    ]


async def test_raw_reasons_and_reasoning_tokens_of_the_provider_are_told(provider_wire: ProviderWire) -> None:
    provider_wire.script(openai_chat.reply(text("Hi"), usage=Usage(input=10, output=9, reasoning=5)))

    told = seen(await drive(Agent(openai_chat_model(provider_wire.base_url))))

    assert told[-1][1]["stepResult"] == {"reason": "stop", "rawReason": "stop", "isContinued": False}
    assert told[-1][1]["output"]["usage"] == {
        "inputTokens": 10,
        "outputTokens": 9,
        "totalTokens": 19,
        "reasoningTokens": 5,
    }


async def test_redacted_thinking_is_one_chunk_without_start_or_end(provider_wire: ProviderWire) -> None:
    provider_wire.script(anthropic.reply(redacted_thinking("aGlkZGVu"), text("Yes")))

    told = seen(await drive(Agent(anthropic_model(provider_wire.base_url))))

    assert told[1:5] == [
        ("redacted-reasoning", {"id": "a1p1", "data": "aGlkZGVu"}),
        *text_block("a1p2", "Yes"),
    ]


# --- events that only some providers send, made by hand --------------------------------------------------------------


def fed(*events: object, translator: Translator | None = None) -> list[Seen]:
    """The chunks of these events."""
    translator = translator or Translator()
    return seen([chunk for event in events for chunk in translator.event(event)])


def closed(*events: object, parts: Sequence[Any] = ()) -> list[Seen]:
    """The chunks of these events and of the end of the response, without its metadata."""
    translator = Translator()
    chunks = [chunk for event in events for chunk in translator.event(event)]
    chunks += translator.response(ModelResponse(parts=list(parts)))
    assert chunks[-1].type == "response-metadata"
    return seen(chunks[:-1])


def test_a_tool_of_the_provider_is_called_and_answered_as_executed_there() -> None:
    call = NativeToolCallPart("web_search", '{"query":"bern"}', "n1")
    told = fed(
        PartStartEvent(index=0, part=NativeToolCallPart("web_search", None, "n1")),
        PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta='{"query":"bern"}', tool_call_id="n1")),
        PartEndEvent(index=0, part=call),
        PartStartEvent(index=1, part=NativeToolReturnPart("web_search", {"hits": 3}, "n1")),
    )

    assert told == [
        (
            "tool-call-input-streaming-start",
            {"toolCallId": "n1", "toolName": "web_search", "providerExecuted": True},
        ),
        ("tool-call-delta", {"toolCallId": "n1", "argsTextDelta": '{"query":"bern"}'}),
        ("tool-call-input-streaming-end", {"toolCallId": "n1"}),
        (
            "tool-call",
            {
                "toolCallId": "n1",
                "toolName": "web_search",
                "providerExecuted": True,
                "args": {"query": "bern"},
            },
        ),
        (
            "tool-result",
            {"toolCallId": "n1", "toolName": "web_search", "providerExecuted": True, "result": {"hits": 3}},
        ),
    ]


def test_a_call_of_the_provider_that_never_ended_is_told_with_the_response() -> None:
    call = NativeToolCallPart("web_search", {"query": "bern"}, "n1")
    told = closed(PartStartEvent(index=0, part=call), parts=[call])

    assert [kind for kind, _ in told] == [
        "tool-call-input-streaming-start",
        "tool-call-delta",
        "tool-call-input-streaming-end",
        "tool-call",
    ]
    assert told[1][1]["argsTextDelta"] == '{"query":"bern"}'


def test_a_call_sent_again_in_another_shape_is_told_once() -> None:
    call = NativeToolCallPart("tool_search", '{"q":"a"}', "n1")
    again = NativeToolCallPart("tool_search", {"queries": ["a"]}, "n1")
    told = closed(
        PartStartEvent(index=0, part=call),
        PartEndEvent(index=0, part=call),
        PartStartEvent(index=0, part=again),
        PartEndEvent(index=0, part=again),
        parts=[again],
    )

    assert [kind for kind, _ in told] == [
        "tool-call-input-streaming-start",
        "tool-call-delta",
        "tool-call-input-streaming-end",
        "tool-call",
    ]


def test_a_name_in_pieces_is_whole_when_the_arguments_start() -> None:
    told = fed(
        PartStartEvent(index=0, part=ToolCallPart("get_", None, "c1")),
        PartDeltaEvent(index=0, delta=ToolCallPartDelta(tool_name_delta="weather")),
        PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta="{}")),
        PartEndEvent(index=0, part=ToolCallPart("get_weather", "{}", "c1")),
    )

    assert told == arguments("c1", "get_weather", "{}")


def test_a_name_that_grows_after_the_start_is_corrected_by_the_next_delta() -> None:
    told = fed(
        PartStartEvent(index=0, part=ToolCallPart("get_", "", "c1")),
        PartDeltaEvent(index=0, delta=ToolCallPartDelta(tool_name_delta="weather", args_delta="{}")),
    )

    assert told[1] == (
        "tool-call-delta",
        {"toolCallId": "c1", "argsTextDelta": "{}", "toolName": "get_weather"},
    )


def test_arguments_that_come_as_objects_are_one_piece_of_json() -> None:
    told = fed(
        PartStartEvent(index=0, part=ToolCallPart("add", {"a": 1}, "c1")),
        PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta={"b": 2})),
        PartEndEvent(index=0, part=ToolCallPart("add", {"a": 1, "b": 2}, "c1")),
    )

    assert told == arguments("c1", "add", '{"a":1,"b":2}')


def test_broken_arguments_are_left_out_of_the_call() -> None:
    told = fed(
        FunctionToolCallEvent(ToolCallPart("add", '{"a":', "c1")),
        FunctionToolCallEvent(ToolCallPart("add", "[1]", "c2")),
        FunctionToolCallEvent(ToolCallPart("add", None, "c3")),
    )

    assert told == [
        ("tool-call", {"toolCallId": "c1", "toolName": "add"}),
        ("tool-call", {"toolCallId": "c2", "toolName": "add"}),
        ("tool-call", {"toolCallId": "c3", "toolName": "add", "args": {}}),
    ]


def test_a_file_is_told_as_base64_and_only_in_its_last_version() -> None:
    def picture(data: bytes) -> FilePart:
        return FilePart(BinaryContent(data, media_type="image/png"))

    told = closed(
        PartStartEvent(index=0, part=picture(b"preview")),
        PartStartEvent(index=0, part=picture(b"whole")),
        PartStartEvent(index=1, part=TextPart("See.")),
        PartStartEvent(index=2, part=picture(b"other")),
    )

    assert told == [
        ("file", {"data": "d2hvbGU=", "mimeType": "image/png"}),
        ("text-start", {"id": "a1p1"}),
        ("text-delta", {"id": "a1p1", "text": "See."}),
        ("file", {"data": "b3RoZXI=", "mimeType": "image/png"}),
        ("text-end", {"id": "a1p1"}),
    ]


def test_what_a_provider_adds_to_a_part_is_told_without_the_passages_that_it_quotes() -> None:
    details = {"phase": "final", "citations": [{"cited_text": "confidential"}], "annotations": ["confidential"]}
    spoken = TextPart("Bern", id="m1", provider_name="openai", provider_details=details)
    call = ToolCallPart(
        "add", {}, "c1", id="f1", provider_name="google", provider_details={"thought_signature": "c2ln"}
    )
    picture = FilePart(BinaryContent(b"whole", media_type="image/png"), id="i1", provider_name="openai")
    told = closed(
        PartStartEvent(index=0, part=TextPart("Bern", id="m1", provider_name="openai")),
        PartEndEvent(index=0, part=spoken),
        PartStartEvent(index=1, part=picture),
        FunctionToolCallEvent(call),
        PartStartEvent(index=2, part=FilePart(BinaryContent(b"whole", media_type="image/png"), id="i2")),
    )
    assert [(kind, found["providerMetadata"]) for kind, found in told if "providerMetadata" in found] == [
        ("text-start", {"openai": {"id": "m1"}}),
        ("text-end", {"openai": {"id": "m1", "phase": "final"}}),
        ("tool-call", {"google": {"id": "f1", "thought_signature": "c2ln"}}),
        ("file", {"openai": {"id": "i1"}}),
    ]
    assert "confidential" not in str(told)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "web_search_result", "url": "https://example.org/a", "title": "A", "encrypted_content": "x"}],
        {"status": "completed", "sources": [{"type": "url", "url": "https://example.org/a"}]},
        [{"uri": "https://example.org/a", "title": None}],
        {"results": [{"url": "https://example.org/a", "title": "A"}, {"url": 7}, "nothing"]},
    ],
)
def test_pages_that_a_web_search_has_found_are_sources(content: Any) -> None:
    told = closed(
        PartStartEvent(index=0, part=NativeToolReturnPart("web_search", content, "s1")),
        PartStartEvent(index=1, part=NativeToolReturnPart("web_search", content, "s2")),
    )
    assert [(found["sourceType"], found["url"]) for kind, found in told if kind == "source"] == [
        ("url", "https://example.org/a")
    ]


@pytest.mark.parametrize(("tool", "content"), [("web_fetch", [{"url": "https://a"}]), ("web_search", {"error": "no"})])
def test_what_is_no_page_that_a_web_search_has_found_is_no_source(tool: str, content: Any) -> None:
    told = closed(PartStartEvent(index=0, part=NativeToolReturnPart(tool, content, "s1")))
    assert [kind for kind, _ in told if kind == "source"] == []


@pytest.mark.skipif(
    not hasattr(pydantic_ai_messages, "Citation"), reason="this release of Pydantic AI has no citations"
)
def test_each_cited_source_is_told_once_even_after_the_end_of_its_text() -> None:
    from pydantic_ai.messages import Citation, DocumentCitationSource, WebCitationSource

    web = WebCitationSource("https://example.org/a", title="A", excerpts=["confidential"])
    paper = DocumentCitationSource(document_id="file-7")
    told = closed(
        PartStartEvent(index=0, part=TextPart("Bern")),
        PartDeltaEvent(index=0, delta=TextPartDelta("", citations_delta=[Citation([web])])),
        PartEndEvent(index=0, part=TextPart("Bern", citations=[Citation([web])])),
        PartDeltaEvent(index=0, delta=TextPartDelta("", citations_delta=[Citation([web, paper])])),
    )

    assert told == [
        ("text-start", {"id": "a1p1"}),
        ("text-delta", {"id": "a1p1", "text": "Bern"}),
        (
            "source",
            {"id": "a1p2", "sourceType": "url", "title": "A", "url": "https://example.org/a"},
        ),
        ("text-end", {"id": "a1p1"}),
        ("source", {"id": "a1p3", "sourceType": "document", "title": "file-7"}),
    ]


def test_a_signature_that_comes_after_the_end_still_names_its_part() -> None:
    told = fed(
        PartStartEvent(index=0, part=ThinkingPart("one")),
        PartEndEvent(index=0, part=ThinkingPart("one")),
        PartStartEvent(index=1, part=ThinkingPart("two")),
        PartDeltaEvent(index=0, delta=ThinkingPartDelta(signature_delta="late", provider_name="openai")),
        PartEndEvent(index=1, part=ThinkingPart("two", signature="own", provider_name="openai")),
    )

    signatures = [(p["id"], p["signature"]) for kind, p in told if kind == "reasoning-signature"]
    assert signatures == [("a1p1", "late"), ("a1p2", "own")]
    assert [kind for kind, _ in told].count("reasoning-end") == 2


def test_text_after_the_end_of_its_part_is_not_lost() -> None:
    told = closed(
        PartStartEvent(index=0, part=TextPart("a")),
        PartEndEvent(index=0, part=TextPart("a")),
        PartDeltaEvent(index=0, delta=TextPartDelta("b")),
    )

    assert told == [*text_block("a1p1", "a"), *text_block("a1p2", "b")]


def test_a_part_that_is_replaced_ends_first_and_its_id_is_not_used_again() -> None:
    told = closed(
        PartStartEvent(index=0, part=TextPart("draft")),
        PartStartEvent(index=0, part=TextPart("final")),
    )

    assert told == [*text_block("a1p1", "draft"), *text_block("a1p2", "final")]


def test_what_a_cut_stream_left_open_is_ended_with_the_response() -> None:
    told = closed(
        PartStartEvent(index=0, part=ThinkingPart("so")),
        PartStartEvent(index=1, part=TextPart("wel")),
        PartStartEvent(index=2, part=ToolCallPart("add", '{"a"', "c1")),
    )

    assert [kind for kind, _ in told[-3:]] == ["reasoning-end", "text-end", "tool-call-input-streaming-end"]


def test_unknown_events_parts_and_deltas_give_no_chunk() -> None:
    class Invented:
        part_kind = "invented"
        event_kind = "invented"

    part: Any = Invented()
    assert fed(
        Invented(),
        FinalResultEvent(tool_name=None, tool_call_id=None),
        PartStartEvent(index=0, part=part),
        PartDeltaEvent(index=0, delta=part),
        PartDeltaEvent(index=9, delta=ToolCallPartDelta(args_delta="{}")),
        PartEndEvent(index=0, part=part),
        PartEndEvent(index=7, part=part),
    ) == []  # fmt: skip


# --- outcomes, steps and attempts ------------------------------------------------------------------------------------


def test_a_recorded_outcome_is_left_to_its_recorder_but_counts_in_the_summary() -> None:
    translator = Translator()
    call = ToolCallPart("add", "{}", "c1")
    translator.begin_step(1, "m1")
    translator.response(ModelResponse(parts=[call]))
    translator.event(FunctionToolCallEvent(call))
    translator.recorded("c1")

    assert translator.event(FunctionToolResultEvent(ToolReturnPart("add", 3, "c1"))) == []
    finish = translator.finish(usage=RunUsage(), text="")
    assert finish.payload.output.steps[0]["toolResults"] == [{"toolCallId": "c1", "toolName": "add", "result": 3}]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("failed", "tool_failed"),
        ("retried", "tool_retry"),
        ("denied", "tool_denied"),
        ("interrupted", "tool_interrupted"),
        ("a-new-one", "tool_failed"),
    ],
)
def test_each_outcome_that_is_no_success_has_its_code(outcome: Any, code: str) -> None:
    part = ToolReturnPart("add", "because", "c1", outcome=outcome)

    assert fed(FunctionToolResultEvent(part)) == [
        (
            "tool-error",
            {"toolCallId": "c1", "toolName": "add", "error": {"code": code, "message": "because"}},
        )
    ]


def test_a_validation_report_is_told_without_the_values_it_complains_about() -> None:
    report: Any = [{"type": "int_parsing", "loc": ("a", 0), "msg": "Not a number", "input": "s3cret"}]
    [(_, payload)] = fed(FunctionToolResultEvent(ToolReturnPart("add", report, "c1", outcome="retried")))

    assert payload["error"]["message"] == "a.0: Not a number"


def test_the_retry_part_of_earlier_releases_is_a_tool_error() -> None:
    class RetryPromptPart:
        part_kind = "retry-prompt"
        tool_name = "add"
        tool_call_id = "c1"
        content = "Try again."

    part: Any = RetryPromptPart()
    assert fed(FunctionToolResultEvent(part)) == [
        (
            "tool-error",
            {"toolCallId": "c1", "toolName": "add", "error": {"code": "tool_retry", "message": "Try again."}},
        )
    ]


def test_call_and_outcome_are_told_once_a_step_and_again_in_the_next() -> None:
    translator = Translator()
    call, result = FunctionToolCallEvent(ToolCallPart("add", "{}", "c1")), ToolReturnPart("add", 3, "c1")
    events = (call, FunctionToolResultEvent(result), call, FunctionToolResultEvent(result))

    assert [kind for kind, _ in fed(*events, translator=translator)] == ["tool-call", "tool-result"]
    translator.begin_step(2, "m2")
    assert [kind for kind, _ in fed(*events, translator=translator)] == ["tool-call", "tool-result"]


def test_a_new_attempt_declares_the_torn_part_void_and_uses_ids_of_its_own() -> None:
    translator = Translator(attempt=2, clock=lambda: 1.5)
    [start] = translator.begin_step(3, "m3", VoidRange(from_=7, to=11))
    [text_start, _] = translator.event(PartStartEvent(index=0, part=TextPart("a")))

    assert start.to_wire()["payload"] == {
        "stepId": "step-3",
        "messageId": "m3",
        "startedAt": 1500,
        "request": {},
        "void": {"from": 7, "to": 11},
    }
    assert text_start.payload.id == "a2p1"


def test_a_resumed_attempt_ends_like_one_that_was_never_interrupted() -> None:
    usage = RequestUsage(input_tokens=5, output_tokens=2)
    first = ModelResponse(parts=[TextPart("Hm"), ToolCallPart("add", '{"a":1}', "c1")], usage=usage)
    answer = ModelRequest(parts=[ToolReturnPart("add", 3, "c1")])
    second = ModelResponse(parts=[ToolCallPart("add", '{"a":2}', "c2")], usage=usage)
    result = FunctionToolResultEvent(ToolReturnPart("add", 4, "c2"))

    whole = Translator()
    for step, response in enumerate((first, second), 1):
        whole.begin_step(step, f"m{step}")
        whole.response(response)
        if response is first:
            whole.event(FunctionToolResultEvent(ToolReturnPart("add", 3, "c1")))
            whole.end_step(is_continued=True)
    resumed = Translator(attempt=2)
    prompt = ModelRequest(parts=[UserPromptPart("go")])
    resumed.resume([prompt, first, answer, second], message_id="m2")

    ends = []
    for translator in (whole, resumed):
        chunks = [*translator.event(result), *translator.end_step(is_continued=False)]
        ends.append(seen([*chunks, translator.finish(usage=RunUsage(), text="")]))
    assert ends[0] == ends[1]
    assert [kind for kind, _ in ends[0]] == ["tool-result", "step-finish", "finish"]
    assert [step["text"] for step in ends[0][-1][1]["output"]["steps"]] == ["Hm", ""]


def test_a_call_that_is_in_the_log_already_is_not_told_again() -> None:
    translator = Translator(attempt=2)
    call = ToolCallPart("add", "{}", "c1")
    translator.resume([ModelResponse(parts=[call])], message_id="m1")
    translator.called("c1")

    assert translator.event(FunctionToolCallEvent(call)) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content-filter"),
        ("tool_call", "tool-calls"),
        ("error", "error"),
        ("a-new-one", "other"),
        (None, "stop"),
    ],
)
def test_finish_reasons_are_told_in_our_words(given: Any, told: str) -> None:
    translator = Translator()
    translator.response(ModelResponse(parts=[TextPart("a")], finish_reason=given))

    assert translator.reason == told
    [step] = translator.end_step(is_continued=False)
    assert step.payload.step_result.reason == told


def test_a_complete_response_with_tool_calls_stopped_for_them() -> None:
    translator = Translator()
    response = ModelResponse(parts=[ToolCallPart("add", "{}", "c1")], finish_reason="stop")
    translator.response(response)

    assert translator.reason == "tool-calls"


def test_an_interrupted_response_without_a_reason_is_unknown() -> None:
    translator = Translator()
    translator.response(ModelResponse(parts=[TextPart("a")], state="interrupted"))

    assert translator.reason == "unknown"


def test_a_step_without_a_response_still_has_counts() -> None:
    translator = Translator()
    translator.begin_step(1, "m1")

    [(_, payload)] = seen(translator.end_step(is_continued=False))
    assert payload["stepResult"]["reason"] == "unknown"
    assert payload["output"]["usage"] == {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}


def test_the_step_limit_and_another_reason_are_told_by_finish() -> None:
    translator = Translator()
    finish = translator.finish(reason="abort", usage=RunUsage(input_tokens=3), text="", max_steps_reached=True)

    [(_, payload)] = seen([finish])
    assert payload["maxStepsReached"] is True
    assert payload["stepResult"] == {"reason": "abort", "isContinued": False}
    assert "object" not in payload["output"]


def test_response_metadata_names_the_response_the_model_and_the_time_in_utc() -> None:
    response = ModelResponse(
        parts=[],
        provider_response_id="r1",
        model_name="m",
        timestamp=datetime(2026, 11, 24, 8, 30, 0, 123456, tzinfo=UTC),
    )

    [chunk] = Translator().response(response)
    assert chunk.to_wire()["payload"] == {"id": "r1", "modelId": "m", "timestamp": "2026-11-24T08:30:00.123Z"}


def test_any_value_becomes_json_without_its_repr() -> None:
    class Secretive:
        def __repr__(self) -> str:
            return "s3cret"

    loop: list[Any] = []
    loop.append(loop)
    value = {"when": datetime(2026, 1, 2, tzinfo=UTC), "raw": b"\xff", "odd": Secretive(), "nan": math.nan}

    assert to_json_value(value) == {
        "when": "2026-01-02T00:00:00Z",
        "raw": "_w==",
        "odd": {"notSerializable": "Secretive"},
        "nan": None,
    }
    assert to_json_value(loop) == {"notSerializable": "list"}


async def test_every_part_id_of_a_run_is_used_by_one_part_only() -> None:
    turns: list[list[Delta]] = [
        [{0: DeltaThinkingPart(content="hm")}, "so", {2: DeltaToolCall("tick", "{}", tool_call_id=f"c{turn}")}]
        for turn in range(3)
    ]
    agent = Agent(scripted(*turns, ["done"]))

    @agent.tool_plain
    def tick() -> str:
        return "tock"

    told = seen(await drive(agent))

    starts = [payload["id"] for kind, payload in told if kind in ("text-start", "reasoning-start")]
    assert starts == ["a1p1", "a1p2", "a1p3", "a1p4", "a1p5", "a1p6", "a1p7"]


def test_usage_is_the_same_on_its_way_back() -> None:
    used = RunUsage(input_tokens=7, output_tokens=5, cache_read_tokens=3, cache_write_tokens=2)
    used.details = {"reasoning_tokens": 4}
    ours = usage_of(used).model_dump(exclude_none=True)
    assert usage_of(RunUsage(**own_usage(ours))) == usage_of(used)
