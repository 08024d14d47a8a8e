"""The example: an ordinary Pydantic AI agent that knows what the weather is usually like, wrapped to be durable.

Nothing in the agent or its tools knows that its runs are durable; the last line makes them so.

The model is the one that `EXAMPLE_MODEL` names, else one of the provider whose key is set (`ANTHROPIC_API_KEY`,
`OPENAI_API_KEY`), else a script that needs no provider and says so.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

from pydantic_ai import Agent
from pydantic_ai.models import Model

from durable import create_evented_agent
from examples.offline_model import offline_model

City = Literal["Basel", "Lisbon", "Nairobi", "Oslo", "Singapore", "Sydney"]
Month = Literal[
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

# Mean temperatures from January to December in °C, rounded long-term averages.
TEMPERATURES: dict[City, tuple[float, ...]] = {
    "Basel": (2.2, 3.1, 7.0, 10.7, 14.8, 18.4, 20.3, 19.9, 15.6, 11.1, 6.0, 2.9),
    "Lisbon": (11.6, 12.7, 14.9, 15.9, 18.0, 21.2, 23.1, 23.5, 22.1, 18.8, 15.0, 12.4),
    "Nairobi": (20.0, 20.8, 21.0, 20.3, 19.3, 17.9, 17.0, 17.4, 18.7, 19.9, 19.2, 19.2),
    "Oslo": (-2.3, -2.0, 1.4, 6.2, 11.4, 15.3, 17.6, 16.5, 12.1, 6.5, 1.9, -1.8),
    "Singapore": (26.8, 27.3, 27.9, 28.2, 28.6, 28.5, 28.2, 28.1, 28.0, 27.9, 27.2, 26.8),
    "Sydney": (23.5, 23.4, 22.1, 19.5, 16.6, 14.2, 13.4, 14.5, 17.0, 18.9, 20.4, 22.1),
}


def choose_model() -> Model | str:
    """The model of the example, as the environment has it."""
    if named := os.environ.get("EXAMPLE_MODEL"):
        return named
    if os.environ.get("ANTHROPIC_API_KEY"):
        return "anthropic:claude-haiku-5-5"
    if os.environ.get("OPENAI_API_KEY"):
        return "openai:gpt-6-luna"
    return offline_model()


def usual_temperature(city: City, month: Month) -> float:
    """The usual temperature of a month in a city, in degrees Celsius."""
    return TEMPERATURES[city][get_args(Month).index(month)]


def to_fahrenheit(celsius: float) -> float:
    """Convert degrees Celsius to degrees Fahrenheit."""
    return round(celsius * 9 / 5 + 32, 1)


agent = Agent(
    choose_model(),
    name="weather",
    description="Tells what the weather is usually like in six cities, and compares them.",
    instructions="Answer in about 60 words. Look temperatures up, and give them in Celsius and in Fahrenheit.",
    tools=[usual_temperature, to_fahrenheit],
)

weather = create_evented_agent(agent)
