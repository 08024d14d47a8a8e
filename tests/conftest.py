"""What all tests share: a real Redis for the session, settings on keys of their own, and a running deployment."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial

import pytest
from pydantic import SecretStr

from durable import DurableAgent, create_durable_agent
from durable.dev.redis_server import PrivateRedis
from durable.settings import Settings
from durable.store import Store
from tests.deployment import Deployment

pytest_plugins = ["tests.chaos.fixtures", "tests.provider_wire.fixtures"]

GIVEN_REDIS = os.environ.get("DURABLE_REDIS_URL")
ALWAYS_RESUME = os.environ.get("DURABLE_TEST_ALWAYS_RESUME") == "1"
"""Whether every run is given back after each step and rebuilt from what is stored: `make test-resume`."""


@pytest.fixture(scope="session", autouse=True)
def no_ambient_configuration() -> None:
    """Tests say themselves what is configured."""
    for name in [name for name in os.environ if name.startswith("DURABLE_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis, one for the whole session: that of DURABLE_REDIS_URL, else a private one."""
    if GIVEN_REDIS:
        yield GIVEN_REDIS
        return
    with PrivateRedis() as server:
        yield server.url


@pytest.fixture
def own_redis() -> Iterator[PrivateRedis]:
    """A Redis that the test may kill."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Short times, and keys that no other test has."""
    return Settings(
        redis_url=SecretStr(redis_url),
        prefix=f"test-{secrets.token_hex(6)}",
        lease_seconds=1,
        heartbeat_seconds=0.25,
        grace_seconds=0.5,
        always_resume=ALWAYS_RESUME,
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """A connection to the test's keys."""
    store = Store.of(settings)
    yield store
    await store.aclose()


@pytest.fixture
def connected(settings: Settings) -> Callable[..., DurableAgent]:
    """Wraps an agent, on the test's keys; to be entered as an async context manager."""
    return partial(create_durable_agent, cache=settings)


@pytest.fixture(scope="session")
def deployment(redis_url: str) -> Iterator[Deployment]:
    """One worker and one API server with the scripted agents, for all tests that do not end them."""
    env = {
        "DURABLE_LEASE_SECONDS": "2",
        "DURABLE_HEARTBEAT_SECONDS": "0.5",
        "DURABLE_ALWAYS_RESUME": str(ALWAYS_RESUME),
    }
    with Deployment(redis_url, env=env) as found:
        found.start_api()
        found.start_worker()
        yield found


async def eventually(
    condition: Callable[[], Awaitable[bool]], *, seconds: float = 15, what: str = "a condition"
) -> None:
    """Wait until a condition holds. Fails the test at the deadline."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        await asyncio.sleep(0.01)
