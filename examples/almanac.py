"""An agent whose run takes about a minute, to watch what happens when its worker is killed. It needs no provider.

It is a script: month by month it looks a city's temperature up with a slow tool, and writes a sentence about it. It
knows six cities; asked for none of them, it names them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Final, get_args

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import create_evented_agent
from examples.agents import City, Month, usual_temperature

LOOKUP_SECONDS: Final = 2.0
SECONDS_A_WORD: Final = 0.2
MONTHS: Final = get_args(Month)


async def look_up(city: City, month: Month) -> float:
    """The usual temperature of a month in a city, in degrees Celsius. Takes its time."""
    await asyncio.sleep(LOOKUP_SECONDS)
    return usual_temperature(city, month)


async def _respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    question = " ".join(str(part.content) for part in parts if isinstance(part, UserPromptPart))
    city = next((city for city in get_args(City) if city.lower() in question.lower()), None)
    if city is None:
        yield f"I know {', '.join(get_args(City))}. Ask me for one of them."
        return
    known = [part.content for part in parts if isinstance(part, ToolReturnPart)]
    sentence = f"In {MONTHS[len(known) - 1]} it is usually {known[-1]} °C in {city}." if known else f"{city}:"
    for word in re.findall(r"\S+", sentence):
        await asyncio.sleep(SECONDS_A_WORD)
        yield f"{word} "
    if len(known) < len(MONTHS):
        yield {1: DeltaToolCall(name="look_up", json_args=json.dumps({"city": city, "month": MONTHS[len(known)]}))}


agent = Agent(
    FunctionModel(stream_function=_respond, model_name="almanac-script"),
    name="almanac",
    description="Writes down a city's temperatures month by month. Slow on purpose.",
    tools=[look_up],
)

almanac = create_evented_agent(agent)
