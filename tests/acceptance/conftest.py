"""What the acceptance tests share: somebody who calls the API of the session's deployment, and Flower."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.caller import Caller
from tests.deployment import Deployment, wait_for


@pytest.fixture(scope="session")
def caller(deployment: Deployment) -> Iterator[Caller]:
    """Calls the session's API server."""
    with Caller(deployment.url) as found:
        yield found


@pytest.fixture(scope="session")
def flower(deployment: Deployment) -> str:
    """The URL of a Flower that watches the broker of all deployments on the session's Redis."""
    url = deployment.start_flower()
    wait_for(lambda: bool(httpx.get(f"{url}/api/workers", trust_env=False).json()), what="Flower to hear of the worker")
    return url
