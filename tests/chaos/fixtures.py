"""The stage as a fixture, for every test that crashes an attempt and has another process go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.chaos.forks import Forks
from tests.chaos.stage import Stage
from tests.workbench import on


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Warm processes, one set for a module."""
    with Forks() as found:
        yield found


@pytest.fixture
async def stage(forks: Forks, redis_url: str) -> AsyncIterator[Stage]:
    """A stage on keys of its own."""
    async with Stage(forks, on(redis_url)) as found:
        yield found
