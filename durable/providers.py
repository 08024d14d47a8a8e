"""What is known of the providers behind a model: which models ask them, and through which HTTP client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

_SDKS: Final = ("openai", "anthropic")


def shows_events(model: object) -> bool:
    """Whether what this model's provider sends can be seen: it comes as Server-Sent Events, over the HTTP client of
    OpenAI's or Anthropic's SDK. Of a model that stands for several, all have to."""
    found = list(asked_models(model))
    return bool(found) and all(http_client(each) is not None for each in found)


def asked_models(model: object) -> Iterator[object]:
    """The models that ask providers themselves: those that a model wraps, or falls back to, or itself."""
    match model:
        case WrapperModel():
            yield from asked_models(model.wrapped)
        case FallbackModel():
            for each in model.models:
                yield from asked_models(each)
        case _:
            yield model


def http_client(model: object) -> Any:
    """The HTTP client of the SDK that a model uses; None when nobody may see what it reads. Bedrock's clients are of
    Anthropic's SDK too, and read no Server-Sent Events."""
    client = getattr(model, "client", None)
    kinds = [kind for kind in type(client).__mro__ if kind.__module__.partition(".")[0] in _SDKS]
    if not kinds or any("Bedrock" in kind.__name__ for kind in kinds):
        return None
    found = getattr(client, "_client", None)
    return found if isinstance(getattr(found, "event_hooks", None), dict) else None
