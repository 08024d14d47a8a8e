"""What is measured: a private Redis, the API server and a Celery worker, each a process of its own on 127.0.0.1.

Nothing of it outlives the `with` block, and nothing of the caller's `DURABLE_*` configuration gets in.
"""

from __future__ import annotations

import io
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import httpx
from pydantic import SecretStr

from benchmarks.bare import bare
from durable.dev.ports import free_port
from durable.dev.redis_server import PrivateRedis
from durable.dev.services import api_address, api_service, worker_service
from durable.dev.stack import Service, Stack
from durable.errors import ConfigurationError
from durable.settings import Settings

ROOT: Final = Path(__file__).parents[1]
AGENTS: Final = "benchmarks.agents"
READY_SECONDS: Final = 60.0


class System:
    """The processes of one benchmark.

    Args:
        env: `DURABLE_*` variables of all processes.
    """

    def __init__(self, **env: str) -> None:
        self.port = 0
        self._env = env
        self._workers = self._bare_workers = 0
        self._redis = PrivateRedis()
        self._log = io.StringIO()
        self._stack = Stack(self._log)
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        self._cleanup.enter_context(self._redis)
        self._cleanup.enter_context(self._stack)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def settings(self, **options: Any) -> Settings:
        """Settings with which this process uses the same Redis."""
        return Settings(redis_url=SecretStr(self._redis.url), **options)

    def start_server(self, agents: str = "") -> None:
        """Start the API, with the routes of `benchmarks.floor` beside its own.

        Raises:
            ConfigurationError: It did not become ready.
        """
        self.port = free_port()
        service = api_service(self._redis.url, port=self.port, agents=agents, env=self._env)
        self._start(replace(service, argv=(sys.executable, "-m", "benchmarks.floor"), ready_seconds=READY_SECONDS))

    def start_worker(self) -> None:
        """Start one more worker with the agents of `benchmarks.agents`; the server is there already.

        Raises:
            ConfigurationError: It did not become ready.
        """
        self._workers += 1
        service = worker_service(
            self._redis.url, AGENTS, name=f"worker{self._workers}", env=self._env, grace_seconds=0.5
        )
        self._start(replace(service, ready=self._has_workers, ready_seconds=READY_SECONDS))

    def start_bare_worker(self, threads: int) -> None:
        """Start one more worker of bare Celery.

        Raises:
            ConfigurationError: It did not become ready.
        """
        self._bare_workers += 1
        name = f"bare{self._bare_workers}"
        argv = (sys.executable, "-m", "benchmarks.bare", name, f"{threads}")
        env = {**self._env, "DURABLE_REDIS_URL": self._redis.url}
        service = Service(name, argv, env, self._has_bare_workers, READY_SECONDS)
        self._start(service)

    def worker_env(self) -> dict[str, str]:
        """The environment of a worker of this system that somebody else starts."""
        return dict(worker_service(self._redis.url, AGENTS, env=self._env).env)

    def _start(self, service: Any) -> None:
        try:
            self._stack.start(replace(service, cwd=ROOT))
        except ConfigurationError as error:
            raise ConfigurationError(f"{error.message}\n{self._log.getvalue()[-4000:]}") from error

    def _has_workers(self) -> bool:
        answer = httpx.get(f"{api_address('127.0.0.1', self.port)}/readyz", trust_env=False)
        return bool(answer.is_success and answer.json()["workers"] >= self._workers)

    def _has_bare_workers(self) -> bool:
        with bare(self._redis.url) as app:
            return len(app.control.ping(timeout=1, limit=self._bare_workers) or ()) >= self._bare_workers


def wait_a_moment(seconds: float = 0.3) -> None:
    """Let the processes that have just started come to rest."""
    time.sleep(seconds)
