"""The parts of the deployment as containers, driven by pytest-celery; without an engine their tests are skipped.

What is overridden here must stay in this folder: pytest-celery's fixtures have the names of Celery's in-process ones.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker  # type: ignore[import-untyped]  # has no types
import pytest
import yaml
from docker.errors import DockerException  # type: ignore[import-untyped]  # has no types
from pytest_celery import CeleryTestContainer, CeleryTestWorker, RedisContainer, RedisTestBroker
from pytest_docker_tools import build, container, fxtr  # type: ignore[import-untyped]  # has no types

ROOT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
HEARTBEAT = SERVICES["worker"]["environment"]["DURABLE_HEARTBEAT_FILE"]


def engine_error() -> str | None:
    """Why no container engine can be used, in its own words; None when one answers."""
    with warnings.catch_warnings():
        # A connection that fails leaves its socket to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        error = ping_error()
        gc.collect()
    return error


def ping_error() -> str | None:
    try:
        with contextlib.closing(docker.from_env(timeout=5)) as client:
            client.ping()
    except DockerException as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an engine where none answers; it is asked only if such a test was collected."""
    affected = [item for item in items if item.get_closest_marker("containers")]
    if affected and (error := engine_error()) is not None:
        for item in affected:
            item.add_marker(pytest.mark.skip(reason=f"no container engine answers: {error}"))


class StoreContainer(RedisContainer):  # type: ignore[misc]  # pytest-celery is not typed
    """Redis as the compose file runs it: its image, its options, and so its append-only file."""

    @classmethod
    def image(cls) -> str:
        """The image of the compose file."""
        return str(SERVICES["redis"]["image"])

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        """The command of the compose file."""
        return [*SERVICES["redis"]["command"], *args]


class ProgramContainer(CeleryTestContainer):  # type: ignore[misc]  # pytest-celery is not typed
    """A container of our image, healthy when the compose file's own health check says so."""

    service: str

    def is_healthy(self) -> bool:
        """Run the health check inside."""
        _, *check = (part.replace("$$", "$") for part in SERVICES[self.service]["healthcheck"]["test"])
        return bool(self.exec_run(check).exit_code == 0)


class WorkerContainer(ProgramContainer):
    """A worker. pytest-celery asks it for the name and the queue of its Celery worker."""

    service = "worker"

    @classmethod
    def worker_name(cls) -> str:
        """What comes before the `@` in Celery's node name."""
        return "celery"


class ApiContainer(ProgramContainer):
    """The API."""

    service = "api"


image = build(path=str(ROOT), tag="durable-agents:test")


@pytest.fixture
def default_redis_broker_cls() -> type[StoreContainer]:
    return StoreContainer


@pytest.fixture
def celery_broker(celery_redis_broker: RedisTestBroker) -> RedisTestBroker:
    """Redis alone, not each broker that Celery knows."""
    return celery_redis_broker


@pytest.fixture
def celery_backend_cluster() -> None:
    """Results are in the runs' logs; there is no result backend."""


@pytest.fixture
def program_environment(celery_broker_cluster_config: dict[str, list[str]]) -> dict[str, str]:
    return {
        "DURABLE_REDIS_URL": celery_broker_cluster_config["urls"][0],
        "DURABLE_AGENTS": "examples.agents",
        "DURABLE_HOST": "0.0.0.0",  # noqa: S104  inside a container
        "DURABLE_HEARTBEAT_FILE": HEARTBEAT,
    }


HARDENED: dict[str, Any] = {
    "image": "{image.id}",
    "environment": fxtr("program_environment"),
    "network": "{default_pytest_celery_network.name}",
    "init": True,
    "read_only": True,
    "tmpfs": {"/tmp": "size=64m,mode=1777"},  # noqa: S108  the container's own
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "timeout": 60,
}
default_worker_container = container(command=SERVICES["worker"]["command"], wrapper_class=WorkerContainer, **HARDENED)
api_container = container(
    command=SERVICES["api"]["command"], wrapper_class=ApiContainer, ports={"8000/tcp": None}, **HARDENED
)


@pytest.fixture
def celery_worker(default_worker_container: WorkerContainer) -> Iterator[CeleryTestWorker]:
    worker = CeleryTestWorker(default_worker_container, app=None)
    yield worker
    worker.teardown()


@pytest.fixture
def api_address(api_container: ApiContainer) -> str:
    host, port = api_container.get_addr("8000/tcp")
    return f"http://{host}:{port}"
