"""The real provider models of Pydantic AI, pointed at the provider wire. Retries stay as the SDKs have them.

The address is given, or comes from `PROVIDER_WIRE_URL`, so that a worker in another process builds the same models.
"""

from __future__ import annotations

import os

from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.provider_wire import anthropic, openai_chat, openai_responses

URL_VARIABLE = "PROVIDER_WIRE_URL"
_KEY = "no-key-needed"


def anthropic_model(base_url: str | None = None, name: str = anthropic.MODEL) -> AnthropicModel:
    """Anthropic Messages."""
    return AnthropicModel(name, provider=AnthropicProvider(api_key=_KEY, base_url=_address(base_url)))


def openai_chat_model(base_url: str | None = None, name: str = openai_chat.MODEL) -> OpenAIChatModel:
    """OpenAI Chat Completions."""
    return OpenAIChatModel(name, provider=OpenAIProvider(api_key=_KEY, base_url=f"{_address(base_url)}/v1"))


def openai_responses_model(base_url: str | None = None, name: str = openai_responses.MODEL) -> OpenAIResponsesModel:
    """OpenAI Responses."""
    return OpenAIResponsesModel(name, provider=OpenAIProvider(api_key=_KEY, base_url=f"{_address(base_url)}/v1"))


def _address(base_url: str | None) -> str:
    address = base_url or os.environ.get(URL_VARIABLE)
    if not address:
        raise RuntimeError(f"pass the address of the provider wire, or set {URL_VARIABLE}")
    return address
