"""A stand-in for a language model that needs no provider: a script. It is no model, and says so wherever it speaks.

What it does is real all the same: it calls the tools that the agent has, several at once, waits for what they return,
and writes its answer from that, word by word.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final

from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

MODEL_NAME: Final = "offline-script"
SECONDS_A_WORD: Final = 0.05
LABEL: Final = "[Offline script, no language model was asked.]"


def offline_model() -> FunctionModel:
    """The script, in the form of a model."""
    return FunctionModel(stream_function=_respond, model_name=MODEL_NAME)


async def _respond(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    question, returned = _turn(messages)
    cities, month = _mentioned(question, info)
    celsius, fahrenheit = _values(returned, "usual_temperature"), _values(returned, "to_fahrenheit")
    if cities and not celsius:
        yield _calls("usual_temperature", ({"city": city, "month": month} for city in cities))
    elif cities and not fahrenheit:
        yield _calls("to_fahrenheit", ({"celsius": value} for value in celsius))
    else:
        text = " ".join((LABEL, *_answer(cities, month, celsius, fahrenheit)))
        for word in re.findall(r"\S+\s*", text):
            await asyncio.sleep(SECONDS_A_WORD)
            yield word


def _turn(messages: list[ModelMessage]) -> tuple[str, list[ToolReturnPart]]:
    """The user's last message, and what tools have returned since."""
    question = ""
    returned: list[ToolReturnPart] = []
    for message in messages:
        for part in message.parts if isinstance(message, ModelRequest) else ():
            if isinstance(part, UserPromptPart):
                question, returned = str(part.content), []
            elif isinstance(part, ToolReturnPart):
                returned.append(part)
    return question, returned


def _values(returned: list[ToolReturnPart], tool: str) -> list[float]:
    return [float(str(part.content)) for part in returned if part.tool_name == tool]


def _mentioned(question: str, info: AgentInfo) -> tuple[list[str], str]:
    """The cities of the question in their order, and its month, out of those that the tool can be asked for."""
    tool = next(tool for tool in info.function_tools if tool.name == "usual_temperature")
    properties = tool.parameters_json_schema["properties"]
    months = _found(question, properties["month"]["enum"])
    return _found(question, properties["city"]["enum"]), months[0] if months else "July"


def _found(question: str, names: Iterable[str]) -> list[str]:
    places = ((re.search(rf"\b{name}\b", question, re.IGNORECASE), name) for name in names)
    return [name for _, name in sorted((place.start(), name) for place, name in places if place)]


def _calls(tool: str, calls: Iterable[dict[str, Any]]) -> DeltaToolCalls:
    return {index: DeltaToolCall(name=tool, json_args=json.dumps(args)) for index, args in enumerate(calls)}


def _answer(cities: list[str], month: str, celsius: list[float], fahrenheit: list[float]) -> Iterator[str]:
    """Sentences, made of what the tools returned."""
    if not cities:
        yield "I can tell you what the weather is usually like; please name one of the cities that I know."
        return
    for city, degrees, converted in zip(cities, celsius, fahrenheit, strict=True):
        yield f"In {month} it is usually {degrees} °C in {city}, which is {converted} °F: {_feels(degrees)}."
    if len(cities) > 1:
        by_degrees = sorted(zip(celsius, cities, strict=True))
        (low, coldest), (high, warmest) = by_degrees[0], by_degrees[-1]
        yield f"So {warmest} is the warmer place; {coldest} lies {high - low:.1f} degrees Celsius below it."
    yield "These are averages over many years; a single day may be quite different, so look at a forecast too."


def _feels(celsius: float) -> str:
    if celsius < 5:
        return "cold, take a warm coat, a hat and gloves"
    if celsius < 14:
        return "cool, take a jacket and perhaps an umbrella"
    if celsius < 22:
        return "mild, a light jacket will do in the evening"
    return "warm, light clothes are all that you need"
