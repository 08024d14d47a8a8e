"""Two agents with one name: no worker can serve them."""

from __future__ import annotations

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from durable import create_evented_agent

first = create_evented_agent(Agent(TestModel(), name="twin"))
second = create_evented_agent(Agent(TestModel(), name="twin"))
