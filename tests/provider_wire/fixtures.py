"""The `provider_wire` fixture; register this module with `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.provider_wire.server import ProviderWire


@pytest.fixture
def provider_wire() -> Iterator[ProviderWire]:
    """A fresh scripted provider for one test."""
    with ProviderWire() as wire:
        yield wire
