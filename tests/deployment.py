"""A real deployment for tests: Redis, Celery workers and API servers, each a process of its own."""

from __future__ import annotations

import io
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import httpx

from durable.dev.ports import free_port
from durable.dev.services import api_service, flower_service, worker_service
from durable.dev.stack import Child, Service, Stack

ROOT = Path(__file__).parents[1]
AGENTS = "tests.scripted_agents"


class Log(io.TextIOBase):
    """What the processes print, to be shown when a test fails."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            self._lines.append(text)
        return len(text)

    @property
    def text(self) -> str:
        with self._lock:
            return "".join(self._lines)


@dataclass
class Deployment:
    """Processes of one deployment, on keys of its own.

    Attributes:
        redis_url: The store and broker.
        env: Added to the environment of all processes.
        agents: `DURABLE_AGENTS` of the workers.
        api_agents: `DURABLE_AGENTS` of the API.
    """

    redis_url: str
    env: Mapping[str, str] = field(default_factory=dict)
    agents: str = AGENTS
    api_agents: str = ""
    prefix: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    log: Log = field(default_factory=Log)
    workers: list[Child] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._cleanup = ExitStack()
        self._stack = Stack(self.log)  # type: ignore[arg-type]  # enough of a text file

    def __enter__(self) -> Self:
        self._cleanup.enter_context(self._stack)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the deployment."""
        return {"DURABLE_PREFIX": self.prefix, "PYTHONPATH": str(ROOT), **self.env}

    def worker_service(self, *, grace_seconds: float = 0.5, **env: str) -> Service:
        """What it takes to start a worker."""
        service = worker_service(
            self.redis_url, self.agents, env={**self.environment, **env}, grace_seconds=grace_seconds
        )
        return replace(service, name=f"w{len(self.workers) + 1}", cwd=ROOT)

    def start(self, service: Service) -> Child:
        """Start a process of the deployment."""
        return self._stack.start(service)

    def start_worker(self, *, grace_seconds: float = 0.5, **env: str) -> Child:
        """Start a worker and wait until it is announced."""
        child = self.start(self.worker_service(grace_seconds=grace_seconds, **env))
        self.workers.append(child)
        if self.url:
            expected = sum(1 for worker in self.workers if worker.exit_code is None)
            wait_for(lambda: self._live_workers() >= expected, what="the worker to be announced")
        return child

    def start_api(self, **env: str) -> Child:
        """Start an API server and wait until it is ready. `url` is the newest one's."""
        service = self._api_service(**env)
        child = self._stack.start(service)
        self.url = _url_of(service)
        return child

    def start_apis(self, count: int) -> tuple[str, ...]:
        """Start API servers side by side and wait until all are ready; their URLs. `url` is the last one's."""
        services = [self._api_service() for _ in range(count)]
        children = [self._stack.start(replace(service, ready=None)) for service in services]
        for service, child in zip(services, children, strict=True):
            child.service = service
            wait_for(child.is_ready, what=f"{_url_of(service)} to be ready")
        urls = tuple(map(_url_of, services))
        self.url = urls[-1]
        return urls

    def _api_service(self, **env: str) -> Service:
        service = api_service(self.redis_url, port=free_port(), agents=self.api_agents, env={**self.environment, **env})
        return replace(service, cwd=ROOT)

    def start_flower(self) -> str:
        """Start Flower and wait until it listens for events; its URL."""
        port = free_port()
        self._stack.start(replace(flower_service(self.redis_url, port=port, env=self.environment), cwd=ROOT))
        return f"http://127.0.0.1:{port}"

    def _live_workers(self) -> int:
        answer = httpx.get(f"{self.url}/readyz", trust_env=False)
        workers: int = answer.json().get("workers", 0)
        return workers


def _url_of(service: Service) -> str:
    return f"http://127.0.0.1:{service.env['DURABLE_PORT']}"


def stop_child(child: Child, number: signal.Signals = signal.SIGTERM) -> int:
    """Signal a process of ours; its exit code, once it has ended."""
    child.send_signal(number)
    wait_for(lambda: child.exit_code is not None, what=f"{child.name} to end")
    assert child.exit_code is not None
    return child.exit_code


def wait_for(condition: Callable[[], bool], *, seconds: float = 20, what: str = "a condition") -> None:
    """Wait until a condition holds. Fails the test at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.02)
