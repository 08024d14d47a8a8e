"""What is stored of a conversation, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from pydantic import BaseModel
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RunUsage

from durable.checkpoint import Progress, Stored, decode


class Weather(BaseModel):
    """What a tool may return."""

    places: list[str]


@dataclass
class Forecast:
    """What a tool may return."""

    days: dict[str, Weather]


def conversation(steps: int = 1) -> list[ModelMessage]:
    """A conversation that ends with a response."""
    messages: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart(["Look", "twice"])], metadata={"tags": ["a"]})]
    for step in range(steps):
        call = ToolCallPart("look", {"where": {"x": step}}, tool_call_id=f"c{step}")
        forecast = Forecast({"today": Weather(places=["here"])})
        messages += [
            ModelResponse(parts=[TextPart("I look."), call]),
            ModelRequest(parts=[ToolReturnPart("look", forecast, tool_call_id=f"c{step}")]),
        ]
    return [*messages, ModelResponse(parts=[TextPart("done")])]


def progress(messages: list[ModelMessage], tools: frozenset[str] = frozenset({"look"})) -> Progress:
    """The progress of a run with this conversation."""
    return Progress(messages, RunUsage(), RunUsage(), steps=1, message_id="m", tools=tools)


def test_each_entry_of_a_conversation_that_grows_has_only_what_its_step_added() -> None:
    whole = conversation(steps=100)
    stored = Stored(whole[:1])
    entries = [stored.encode(progress(whole[:end])) for end in range(2, len(whole) + 1, 2)]

    assert [orjson.loads(entry)["keep"] for entry in entries] == [1, *range(2, 202, 2)]
    assert [len(orjson.loads(entry)["messages"]) for entry in entries] == [1] + [2] * 100
    assert stored.encode_end(whole) == b""


def words(message: Any) -> None:
    message.parts[0].content[1] = "again"


def metadata(message: Any) -> None:
    message.metadata["tags"].append("b")


def arguments(message: Any) -> None:
    message.parts[1].args["where"]["x"] = 7


def a_part_less(message: Any) -> None:
    message.parts.pop()


def parts_anew(message: Any) -> None:
    message.parts = [TextPart("I looked.")]


def usage(message: Any) -> None:
    message.usage.input_tokens += 1


def deep_in_a_return(message: Any) -> None:
    message.parts[0].content.days["today"].places.append("there")


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, words),
        (0, metadata),
        (1, arguments),
        (1, a_part_less),
        (1, parts_anew),
        (1, usage),
        (2, deep_in_a_return),
    ],
)
@pytest.mark.parametrize("copied", [False, True])
def test_a_message_that_was_changed_in_place_is_stored_as_it_is(
    index: int, change: Callable[[Any], None], copied: bool
) -> None:
    messages = conversation()
    stored = Stored([])
    first = stored.encode(progress(messages))
    change(messages[index])
    changed = [replace(message) for message in messages] if copied else messages
    second = stored.encode(progress(changed))

    assert orjson.loads(second)["keep"] == index
    resumed = decode([], [first, second], 0)
    assert resumed is not None
    assert orjson.loads(Stored([]).encode(resumed)) == orjson.loads(Stored([]).encode(progress(messages)))
    assert stored.encode_end(messages) == b"", "the change is stored, and nothing has changed since"


def test_the_tools_that_the_model_was_given_are_stored_when_they_change_and_carry_over() -> None:
    messages = conversation()
    stored = Stored([])
    entries = [stored.encode(progress(messages, frozenset(tools))) for tools in ("ab", "ab", "abc", "abc")]

    assert [orjson.loads(entry).get("tools") for entry in entries] == [["a", "b"], None, ["a", "b", "c"], None]
    resumed = decode([], entries, 0)
    assert resumed is not None
    assert resumed.tools == frozenset("abc")
    assert "tools" not in orjson.loads(Stored(resumed.messages, resumed.tools).encode(resumed))
