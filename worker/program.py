"""The worker program: a Celery app that executes runs, with all that a worker needs set.

Messages are only hints, acknowledged when they arrive: a run that is lost with its worker is found by its lease, not by
the broker.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any, Final

from celery import Celery, signals
from kombu import Queue

from durable.agents import load_agents
from durable.definition import AgentDefinition
from durable.dispatch import producer
from durable.errors import ConfigurationError
from durable.settings import Settings

from .host import Host
from .pool import AgentPool, renew
from .tasks import register
from .transport import Transport

EXIT_CONFIG: Final = 78
"""Exit code of a worker that is not set up correctly."""


class Program:
    """One worker program.

    Args:
        settings: Of this process.

    Raises:
        ConfigurationError: No broker is configured.

    Attributes:
        app: The Celery app. Its `durable` attribute leads back here.
        queues: The queues that it reads, once it is started.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queues: set[str] = set()
        self.app: Celery = producer(settings.celery_broker_url)
        self.app.conf.update(
            worker_pool=f"{AgentPool.__module__}:{AgentPool.__name__}",
            worker_concurrency=settings.concurrency,
            worker_prefetch_multiplier=1,
            worker_disable_prefetch=True,
            worker_send_task_events=True,
            task_acks_late=False,
            task_track_started=True,
        )
        if settings.celery_broker_url.startswith(("redis://", "rediss://")):
            self.app.conf.broker_transport = f"{Transport.__module__}:{Transport.__name__}"
        self.app.durable = self  # type: ignore[attr-defined]  # the pool finds it here
        register(self.app, lambda: self.host)
        signals.celeryd_init.connect(self._configure)

    @cached_property
    def definitions(self) -> dict[str, AgentDefinition]:
        """This worker's agents, by name.

        Raises:
            ConfigurationError: There are none, or they can't be loaded.
        """
        found = load_agents(self.settings.agents)
        if not found:
            raise ConfigurationError("A worker needs agents: set DURABLE_AGENTS=package.module[:name],…")
        return found

    @cached_property
    def host(self) -> Host:
        """Executes this worker's runs."""
        return Host(self.settings, self.definitions, self.queues, on_hung=renew)

    def _configure(self, instance: Any = None, options: dict[str, Any] | None = None, **_: Any) -> None:
        """Before the worker is set up: import its agents, and consume the queues of them and of their tools; or only
        those that it was started with."""
        if getattr(instance, "app", None) is not self.app:
            return
        try:
            every = [definition.queues(self.settings.prefix) for definition in self.definitions.values()]
        except ConfigurationError as error:
            sys.stderr.write(f"durable: {error.message}\n")
            # Celery logs and swallows any other exception of a signal's receiver.
            raise SystemExit(EXIT_CONFIG) from error
        self.queues = set().union(*every)
        self.app.conf.task_queues = [Queue(name, routing_key=name) for name in sorted(self.queues)]
        given = (options or {}).get("queues") or ()
        if given:
            self.queues = {name.strip() for name in (given.split(",") if isinstance(given, str) else given)}
