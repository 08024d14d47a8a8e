"""What a provider adds to a part, by the provider's name: its own id of the part, and details."""

from __future__ import annotations

from typing import Any, Final

from durable.chunks import Json
from durable.translate.values import to_json_value

_QUOTING: Final = frozenset({"citations", "annotations"})
"""Details that repeat passages, perhaps of documents that not every observer may see."""


def provider_metadata(part: Any, *, details: bool = True) -> dict[str, Json] | None:
    """The `providerMetadata` of a part; None when the provider adds nothing, or is not known.

    Args:
        part: Of a model's response.
        details: Whether to tell more than the id.
    """
    name = getattr(part, "provider_name", None)
    if not name:
        return None
    found: dict[str, Any] = {}
    if identity := getattr(part, "id", None):
        found["id"] = identity
    if details and isinstance(given := getattr(part, "provider_details", None), dict):
        found |= {key: value for key, value in given.items() if key not in _QUOTING}
    return {name: to_json_value(found)} if found else None


def with_metadata(part: Any, *, details: bool = True) -> dict[str, Any]:
    """The field of a payload that has it, if there is any."""
    found = provider_metadata(part, details=details)
    return {} if found is None else {"provider_metadata": found}
