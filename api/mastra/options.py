"""Model settings and options of providers by the names of this protocol, as Pydantic AI's model settings.

Each name that is honoured stands in a table here; any other one is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from durable.chunks.base import Json

from .problems import asks_nothing, refuse

SETTINGS: Final = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxOutputTokens": "max_tokens",
    "maxTokens": "max_tokens",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "stopSequences": "stop_sequences",
    "seed": "seed",
    "headers": "extra_headers",
}
RETRIES: Final = "maxRetries"
PROVIDERS: Final[dict[str, dict[str, str]]] = {
    "openai": {
        "reasoningEffort": "openai_reasoning_effort",
        "reasoningSummary": "openai_reasoning_summary",
        "textVerbosity": "openai_text_verbosity",
        "serviceTier": "openai_service_tier",
        "parallelToolCalls": "parallel_tool_calls",
        "previousResponseId": "openai_previous_response_id",
        "conversation": "openai_conversation_id",
        "truncation": "openai_truncation",
        "logprobs": "openai_logprobs",
        "prediction": "openai_prediction",
        "promptCacheKey": "openai_prompt_cache_key",
        "promptCacheRetention": "openai_prompt_cache_retention",
        "logitBias": "logit_bias",
        "store": "openai_store",
        "user": "openai_user",
    },
    "anthropic": {
        "thinking": "anthropic_thinking",
        "effort": "anthropic_effort",
        "container": "anthropic_container",
        "contextManagement": "anthropic_context_management",
        "speed": "anthropic_speed",
        "anthropicBeta": "anthropic_betas",
    },
    "google": {
        "thinkingConfig": "google_thinking_config",
        "safetySettings": "google_safety_settings",
        "cachedContent": "google_cached_content",
        "mediaResolution": "google_video_resolution",
        "labels": "google_labels",
    },
}
_RESHAPED: Final = {"anthropic_thinking", "google_thinking_config"}
_SNAKE: Final = {
    "budgetTokens": "budget_tokens",
    "thinkingBudget": "thinking_budget",
    "includeThoughts": "include_thoughts",
    "thinkingLevel": "thinking_level",
}


def model_settings(value: Json) -> tuple[dict[str, Json], int | None]:
    """Pydantic AI's settings, and how often a model is asked again when its provider fails, if that is said.

    Raises:
        Refused: They are no object, or one of them is not honoured.
    """
    given = _object(value, "modelSettings")
    found = _named(given, SETTINGS, "modelSettings", but=RETRIES)
    retries = given.get(RETRIES)
    if retries is not None and (not isinstance(retries, int) or isinstance(retries, bool)):
        raise refuse((f"modelSettings.{RETRIES}", "This is a number."))
    return found, retries


def provider_options(value: Json) -> dict[str, Json]:
    """Pydantic AI's settings for the options of providers. A model takes those of its own provider.

    Raises:
        Refused: They are no object, or one of them is not honoured.
    """
    found: dict[str, Json] = {}
    for provider, options in _object(value, "providerOptions").items():
        place = f"providerOptions.{provider}"
        if provider not in PROVIDERS:
            if not asks_nothing(options):
                raise refuse((place, f"Options are known of: {', '.join(PROVIDERS)}."))
            continue
        for name, option in _named(_object(options, place), PROVIDERS[provider], place).items():
            found[name] = _reshaped(option) if name in _RESHAPED else option
    return found


def _named(given: Mapping[str, Json], names: Mapping[str, str], place: str, but: str = "") -> dict[str, Json]:
    unknown = [name for name, value in given.items() if name not in names and name != but and not asks_nothing(value)]
    if unknown:
        raise refuse(*((f"{place}.{name}", "This is not supported.") for name in unknown))
    return {names[name]: value for name, value in given.items() if name in names and value is not None}


def _reshaped(option: Json) -> Json:
    """An option that is an object, by the names that its provider's own interface has for its fields."""
    if not isinstance(option, dict):
        return option
    return {_SNAKE.get(name, name): value for name, value in option.items()}


def _object(value: Json, place: str) -> dict[str, Json]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refuse((place, "This is an object."))
    return value
