"""A structured output is told while it streams: wherever a model puts it, in small logs, and only what counts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, TextOutput, ToolOutput
from pydantic_ai.messages import (
    ModelMessage,
    NativeToolCallPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_core import to_json

from durable.chunks import Json, ObjectChunk
from durable.outputs import shape_of
from durable.translate import Shape, Translator
from durable.translate.objects import LEAST, Objects


class City(BaseModel):
    name: str
    facts: list[str]


class River(BaseModel):
    river: str


def of(city: City) -> str:
    """An output function."""
    return city.name


def sort(facts: list[str]) -> list[str]:
    """An output function that does not take a model."""
    return sorted(facts)


def shout(text: str) -> int:
    """An output function that takes text."""
    return len(text)


CITY = {"name": "Lisbon", "facts": [f"Fact number {n} of this city." for n in range(20)]}


def pieces(text: str, size: int = 5) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


async def told(output_type: Any, text: str, *, tool: str | None = None, mode: str = "tool") -> list[Json]:
    """The objects that a run tells whose model writes this, as text or as the arguments of an output tool."""

    async def stream(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if info.output_tools:
            name = next(found.name for found in info.output_tools if tool is None or tool in found.name)
            yield {0: DeltaToolCall(name=name, json_args="", tool_call_id="c")}
        for piece in pieces(text):
            yield {0: DeltaToolCall(json_args=piece)} if info.output_tools else piece

    profile: Any = {"supports_json_schema_output": True, "default_structured_output_mode": mode}
    agent: Agent[None, Any] = Agent(FunctionModel(stream_function=stream, profile=profile), output_type=output_type)
    translator, found = Translator(), []
    async with agent.iter("go") as run:
        translator.expect(shape_of(run.ctx.deps.output_schema))
        node = run.next_node
        while not Agent.is_end_node(node):
            if Agent.is_model_request_node(node):
                translator.begin_step(1, "m")
                async with node.stream(run.ctx) as events:
                    async for event in events:
                        found += translator.event(event)
                    found += translator.response(events.response)
            node = await run.next(node)
    return [chunk.object for chunk in found if isinstance(chunk, ObjectChunk)]


@pytest.mark.parametrize("mode", ["tool", "native", "prompted"])
@pytest.mark.parametrize("spec", [City, NativeOutput(City), PromptedOutput(City), ToolOutput(City), of])
async def test_an_object_grows_to_the_whole_output_in_each_mode(spec: Any, mode: str) -> None:
    objects = await told(spec, json.dumps(CITY), mode=mode)

    assert objects[-1] == CITY
    assert len(objects) > 5
    for before, after in pairwise(objects):
        assert before != after
        assert len(before.get("facts", [])) <= len(after["facts"])


@pytest.mark.parametrize("mode", ["tool", "native"])
async def test_what_pydantic_ai_wraps_is_told_without_its_wrapping(mode: str) -> None:
    numbers = list(range(100, 160))
    assert (await told(list[int], json.dumps({"response": numbers}), mode=mode))[-1] == numbers
    assert (await told(sort, json.dumps({"facts": CITY["facts"]}), mode=mode))[-1] == CITY["facts"]


async def test_of_several_types_the_one_that_the_model_has_chosen_is_told() -> None:
    wrapped = json.dumps({"result": {"kind": "City", "data": CITY}})
    assert (await told(NativeOutput([City, River]), wrapped))[-1] == CITY
    assert (await told([City, River], json.dumps(CITY), tool="City"))[-1] == CITY


async def test_fences_and_words_around_the_json_are_left_out() -> None:
    objects = await told(PromptedOutput(City), f"```json\n{json.dumps(CITY)}\n```")
    assert objects[-1] == CITY


async def test_text_and_numbers_are_no_objects() -> None:
    assert await told(str, json.dumps(CITY)) == []
    assert await told(TextOutput(shout), json.dumps(CITY)) == []
    assert await told(int, '{"response": 1234567890123456789012345678901234567890}') == []


@pytest.mark.parametrize("count", [10, 1000, 20_000])
def test_all_objects_together_are_less_than_ten_times_as_large_as_the_output(count: int) -> None:
    text = json.dumps({"facts": [f"Fact {n}" for n in range(count)]}, separators=(",", ":"))
    objects = Objects(Shape({"out": ()}))
    chunks = objects.event(PartStartEvent(index=0, part=ToolCallPart("out", "", "c")))
    for piece in pieces(text, 3):
        chunks += objects.event(PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta=piece)))
    chunks += objects.event(PartEndEvent(index=0, part=ToolCallPart("out", text, "c")))

    sizes = [len(to_json(chunk.object)) for chunk in chunks if isinstance(chunk, ObjectChunk)]
    assert sum(sizes) < 10 * len(text)
    assert sizes[-1] == len(text)
    assert all(after - before >= LEAST - 16 for before, after in pairwise(sizes[:-1]))


def of_text(*events: object) -> list[Json]:
    objects = Objects(Shape(text=()))
    chunks = [chunk for event in events for chunk in objects.event(event)] + objects.end()
    return [chunk.object for chunk in chunks if isinstance(chunk, ObjectChunk)]


def test_text_before_a_tool_of_the_provider_is_no_output() -> None:
    assert of_text(
        PartStartEvent(index=0, part=TextPart('{"a": "This is only what was thought before."}')),
        PartStartEvent(index=1, part=NativeToolCallPart("search", {"q": "x"}, "n")),
        PartStartEvent(index=2, part=TextPart('{"b":')),
        PartDeltaEvent(index=2, delta=TextPartDelta(" 1}")),
    ) == [{"a": "This is only what was thought before."}, {"b": 1}]


def test_the_first_of_two_output_calls_is_followed_and_other_tools_are_not() -> None:
    objects = Objects(Shape({"out": ()}))
    events: Sequence[object] = (
        PartStartEvent(index=0, part=ToolCallPart("search", '{"q": "a long question, long enough to be told"}', "a")),
        PartStartEvent(index=1, part=ToolCallPart("out", {"first": "an object, as some providers send them"}, "b")),
        PartStartEvent(index=2, part=ToolCallPart("out", {"second": "a call that does not count any more"}, "c")),
    )
    chunks = [chunk for event in events for chunk in objects.event(event)] + objects.end()
    assert [chunk.object for chunk in chunks if isinstance(chunk, ObjectChunk)] == [
        {"first": "an object, as some providers send them"}
    ]


@pytest.mark.parametrize("shape", [Shape({"out": ()}), Shape(text=())])
def test_a_response_that_begins_anew_tells_its_own_objects(shape: Shape) -> None:
    def begun(index: int, text: str) -> PartStartEvent:
        return PartStartEvent(index=index, part=TextPart(text) if shape.text == () else ToolCallPart("out", text, "c"))

    translator = Translator()
    translator.expect(shape)
    translator.begin_step(1, "m1")
    translator.event(begun(0, '{"torn": "this is never completed, but l'))
    translator.begin_step(1, "m1")
    chunks = translator.event(begun(1, '{"whole": "this one, however, is"}'))
    assert [chunk.object for chunk in chunks if isinstance(chunk, ObjectChunk)] == [{"whole": "this one, however, is"}]
