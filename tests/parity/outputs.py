"""Agents with outputs of every kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, RunContext, TextOutput, ToolOutput
from pydantic_ai.output import StructuredDict
from pydantic_ai.profiles import ModelProfile
from typing_extensions import TypedDict

from tests.parity.case import Case, Script, Turn, call


class City(BaseModel):
    """A model."""

    name: str
    people: int | None = None


class Village(BaseModel):
    """A model of the same shape as another."""

    name: str
    people: int | None = None


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: float


class Size(TypedDict):
    """A typed dict."""

    width: int
    height: int


class Pair(NamedTuple):
    """A named tuple."""

    left: str
    right: int


class Colour(Enum):
    """An enumeration."""

    RED = "red"
    BLUE = "blue"


class Strict(BaseModel):
    """A model that converts nothing, and takes nothing that it does not know."""

    model_config = ConfigDict(strict=True, extra="forbid")

    at: datetime
    day: date
    price: Decimal
    key: UUID
    colour: Colour
    tags: set[str]
    pair: tuple[int, str]

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def label(self) -> str:
        """Computed of the others."""
        return f"{self.colour.value} {self.price}"


class Renamed(BaseModel):
    """A model whose fields have other names outside."""

    inner_name: str = Field(alias="innerName")
    read_as: int = Field(validation_alias="readAs", serialization_alias="writtenAs")


def _agent(output_type: Any, *turns: Turn, **options: Any) -> Case:
    return Case(Agent(Script(*turns).model(), name="a", output_type=output_type, **options))


def text() -> Case:
    return _agent(str, ["Hello 🙂 \u2028 there"])


def text_beside_a_tool_output() -> Case:
    return _agent([str, City], ["no city"])


def text_that_reads_like_json() -> Case:
    return _agent([str, City], ['{"name": "Rome"}'])


def a_tool_output_beside_text() -> Case:
    return _agent([str, City], [call("final_result", name="Rome")])


def a_model() -> Case:
    return _agent(City, [call("final_result", name="Rome", people=3)])


def a_model_after_bad_arguments() -> Case:
    return _agent(City, [call("final_result", people="many")], [call("final_result", "c2", name="Rome")], retries=2)


def a_model_after_text_that_was_not_wanted() -> Case:
    return _agent(City, ["Rome it is"], [call("final_result", name="Rome")], retries=2)


def a_dataclass() -> Case:
    return _agent(Point, [call("final_result", x=1, y=2)])


def a_typed_dict() -> Case:
    return _agent(Size, [call("final_result", width=1, height=2)])


def a_named_tuple() -> Case:
    return _agent(Pair, [call("final_result", response=["a", 1])])


def a_list_of_models() -> Case:
    return _agent(list[City], [call("final_result", response=[{"name": "Rome"}, {"name": "Oslo"}])])


def a_dictionary() -> Case:
    return _agent(dict[str, list[int]], [call("final_result", response={"a": [1, 2], "b": []})])


def an_integer() -> Case:
    return _agent(int, [call("final_result", response=7)])


def a_float_without_a_fraction() -> Case:
    return _agent(float, [call("final_result", response=7)])


def a_boolean() -> Case:
    return _agent(bool, [call("final_result", response=False)])


def nothing_or_an_integer() -> Case:
    return _agent(int | None, [call("final_result_None", response=None)])


def bytes_as_output() -> Case:
    return _agent(bytes, [call("final_result", response="raw")])


def a_great_integer() -> Case:
    return _agent(int, [call("final_result", response=2**80)])


def a_set() -> Case:
    return _agent(set[int], [call("final_result", response=[3, 1])])


def a_moment() -> Case:
    return _agent(datetime, [call("final_result", response="2026-01-02T03:04:05Z")])


def an_enumeration() -> Case:
    return _agent(Colour, [call("final_result", response="blue")])


def a_literal() -> Case:
    return _agent(Literal["yes", "no"], [call("final_result", response="no")])


def an_integer_or_text_as_tools() -> Case:
    return _agent([ToolOutput(int, name="number"), ToolOutput(str, name="words")], [call("words", response="42")])


def a_strict_model_of_rich_fields() -> Case:
    fields = {
        "at": datetime(2026, 1, 2, tzinfo=UTC).isoformat(),
        "day": "2026-01-02",
        "price": "1.50",
        "key": str(UUID(int=1)),
        "colour": "red",
        "tags": ["a", "b"],
        "pair": [1, "one"],
    }
    return _agent(Strict, [call("final_result", **fields)])


def a_model_with_other_names_outside() -> Case:
    return _agent(Renamed, [call("final_result", innerName="x", readAs=1)])


def one_of_two_models() -> Case:
    return _agent([Point, City], [call("final_result_City", name="Rome")])


def the_second_of_two_models_of_one_shape() -> Case:
    return _agent([City, Village], [call("final_result_Village", name="Hum")])


def a_union_of_models() -> Case:
    return _agent(City | Village, [call("final_result_Village", name="Hum")])


def named_tool_outputs() -> Case:
    kinds = [ToolOutput(City, name="big", description="Big."), ToolOutput(Village, name="small", strict=True)]
    return _agent(kinds, [call("small", name="Hum")])


def a_structured_dictionary() -> Case:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    return _agent(StructuredDict(schema, name="thing"), [call("final_result", name="Rome", more=[1])])


def a_native_output() -> Case:
    script = Script(['{"name": "Rome"}'])
    model = script.model(profile=ModelProfile(supports_json_schema_output=True))
    return Case(Agent(model, name="a", output_type=NativeOutput(City)))


def a_native_output_of_several_types() -> Case:
    said = json.dumps({"result": {"kind": "Village", "data": {"name": "Hum"}}})
    model = Script([said]).model(profile=ModelProfile(supports_json_schema_output=True))
    return Case(Agent(model, name="a", output_type=NativeOutput([City, Village])))


def a_prompted_output() -> Case:
    return _agent(PromptedOutput(City), ['{"name": "Rome"}'])


def a_prompted_output_after_broken_json() -> Case:
    said = '{"result": {"kind": "City", "data": {"name": "R"}}}'
    return _agent(PromptedOutput([City, int]), ["{"], [said], retries=2)


def a_text_output() -> Case:
    def words(text: str) -> list[str]:
        return text.split()

    return _agent(TextOutput(words), ["one two three"])


def a_text_output_after_another_try() -> Case:
    def number(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise ModelRetry("a number, please") from None

    return _agent(TextOutput(number), ["seven"], ["7"], retries=2)


def an_output_function() -> Case:
    def settle(name: str, people: int) -> City:
        return City(name=name.upper(), people=people)

    return _agent(settle, [call("final_result", name="Rome", people=1)])


def an_async_output_function_with_dependencies() -> Case:
    async def settle(ctx: RunContext[int], name: str) -> City:
        if ctx.retry == 0:
            raise ModelRetry("once more")
        return City(name=name, people=ctx.deps)

    turns = [call("final_result", name="Rome")], [call("final_result", "c2", name="Oslo")]
    case = _agent(settle, *turns, deps_type=int, retries=2)
    case.deps, case.wrapped = 5, {"deps": 5}
    return case


def an_output_function_that_says_nothing_of_its_type() -> Case:
    def settle(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - that is the case
        return {"name": name, "n": 1}

    return _agent(settle, [call("final_result", name="Rome")])


def an_output_validator() -> Case:
    case = _agent(City, [call("final_result", name="rome")], [call("final_result", "c2", name="Rome")], retries=2)

    @case.agent.output_validator
    def capital(ctx: RunContext[Any], output: City) -> City:
        case.notes.append((output.name, ctx.retry, ctx.partial_output))
        if output.name.islower():
            raise ModelRetry("a capital letter, please")
        return output.model_copy(update={"people": 99})

    return case


def an_output_validator_of_text() -> Case:
    case = _agent(str, ["short"], ["long enough"], retries=2)

    @case.agent.output_validator
    async def enough(output: str) -> str:
        if len(output) < 8:
            raise ModelRetry("more, please")
        return output.upper()

    return case


def an_output_beside_other_tools() -> Case:
    def look() -> str:
        return "seen"

    return _agent(City, [call("look", "c1"), call("final_result", "c2", name="Rome")], tools=[look])


def an_output_beside_other_tools_that_come_too_late() -> Case:
    def look() -> str:
        return "seen"

    turns = [call("final_result", "c1", name="Rome"), call("look", "c2"), call("final_result", "c3", name="Oslo")]
    return _agent(City, turns, tools=[look], end_strategy="early")


def all_tools_beside_an_output() -> Case:
    def look() -> str:
        return "seen"

    turns = [call("final_result", "c1", name="Rome"), call("look", "c2"), call("final_result", "c3", name="Oslo")]
    return _agent(City, turns, tools=[look], end_strategy="exhaustive")


CASES = [
    text,
    text_beside_a_tool_output,
    text_that_reads_like_json,
    a_tool_output_beside_text,
    a_model,
    a_model_after_bad_arguments,
    a_model_after_text_that_was_not_wanted,
    a_dataclass,
    a_typed_dict,
    a_named_tuple,
    a_list_of_models,
    a_dictionary,
    an_integer,
    a_float_without_a_fraction,
    a_boolean,
    nothing_or_an_integer,
    bytes_as_output,
    a_great_integer,
    a_set,
    a_moment,
    an_enumeration,
    a_literal,
    an_integer_or_text_as_tools,
    a_strict_model_of_rich_fields,
    a_model_with_other_names_outside,
    one_of_two_models,
    the_second_of_two_models_of_one_shape,
    a_union_of_models,
    named_tool_outputs,
    a_structured_dictionary,
    a_native_output,
    a_native_output_of_several_types,
    a_prompted_output,
    a_prompted_output_after_broken_json,
    a_text_output,
    a_text_output_after_another_try,
    an_output_function,
    an_async_output_function_with_dependencies,
    an_output_function_that_says_nothing_of_its_type,
    an_output_validator,
    an_output_validator_of_text,
    an_output_beside_other_tools,
    an_output_beside_other_tools_that_come_too_late,
    all_tools_beside_an_output,
]
