"""Agents with the real provider models, pointed at the provider wire of `PROVIDER_WIRE_URL`."""

from __future__ import annotations

from pydantic_ai import Agent
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.native_tools import ImageGenerationTool

from durable import EventedAgent, create_evented_agent
from tests.provider_wire.models import anthropic_model, openai_chat_model, openai_responses_model


def shout(word: str) -> str:
    """Say it louder."""
    return f"{word.upper()}!"


def _wrap(name: str, model: Model) -> EventedAgent:
    return create_evented_agent(Agent(model, name=name, tools=[shout]))


anthropic = _wrap("anthropic", anthropic_model())
openai_chat = _wrap("openai-chat", openai_chat_model())
openai_responses = _wrap("openai-responses", openai_responses_model())
either = _wrap("either", FallbackModel(anthropic_model(), openai_chat_model()))
painter = create_evented_agent(
    Agent(openai_responses_model(), name="painter", capabilities=[NativeTool(ImageGenerationTool())])
)
untold = _wrap("untold", TestModel())
