"""Mastra's client in a Node process, and what it talks to: three API servers and a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from durable.dev.stack import Child
from tests.acceptance.mastra_client.agents import KINDS
from tests.acceptance.mastra_client.driver import FOLDER, Driver, MastraClient
from tests.acceptance.node_project import with_packages
from tests.conftest import ALWAYS_RESUME
from tests.deployment import Deployment

AGENTS = "tests.acceptance.mastra_client.agents"
SERVERS = 3


@dataclass(frozen=True)
class Site:
    """A deployment with several API servers.

    Attributes:
        deployment: Its processes.
        servers: The URLs of its API servers.
    """

    deployment: Deployment
    servers: tuple[str, ...]

    def start_another_api(self) -> tuple[Child, str]:
        """An API server that a test may end, and its URL."""
        known, child = self.deployment.url, self.deployment.start_api()
        url, self.deployment.url = self.deployment.url, known
        return child, url


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    """Mastra's client, installed and at work."""
    with Driver(with_packages(FOLDER)) as found:
        yield found


@pytest.fixture(scope="session")
def site(redis_url: str) -> Iterator[Site]:
    """One worker and three API servers, for all tests of Mastra's client. In the end all that is stored is in order."""
    env = {
        "DURABLE_LEASE_SECONDS": "2",
        "DURABLE_HEARTBEAT_SECONDS": "0.5",
        "DURABLE_FLUSH_MS": "0",
        "DURABLE_ALWAYS_RESUME": str(ALWAYS_RESUME),
    }
    with Deployment(redis_url, env=env, agents=AGENTS, api_agents=AGENTS) as deployment:
        deployment.start_worker()
        servers = deployment.start_apis(SERVERS)
        yield Site(deployment, servers)
        examined = subprocess.run(
            [sys.executable, "-m", "durable.cli", "doctor"],
            env={**os.environ, **deployment.environment, "DURABLE_REDIS_URL": redis_url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert examined.returncode == 0, f"what the client has left behind is not in order: {examined.stdout}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the agent."""
    found: str = request.param
    return found


@pytest.fixture(params=[1, SERVERS], ids=["1 server", "3 servers"])
def servers(request: pytest.FixtureRequest, site: Site) -> tuple[str, ...]:
    """The API servers that the client talks to, one after the other."""
    return site.servers[: request.param]


@pytest.fixture
def client(driver: Driver, site: Site, kind: str) -> MastraClient:
    """Talks to an agent of each kind, at one server."""
    return MastraClient(driver, f"{kind}-helper", site.servers[:1])


@pytest.fixture
def roaming(driver: Driver, servers: tuple[str, ...], kind: str) -> MastraClient:
    """Talks to an agent of each kind, at one server and at three, each call at the next one."""
    return MastraClient(driver, f"{kind}-helper", servers)
