"""Which agents there are, and who is there to execute them.

Workers announce what they registered. Definitions persist: a run may be submitted while no worker lives. Liveness is
separate, and runs out by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field
from pydantic_ai.toolsets import FunctionToolset
from redis.exceptions import RedisError

from durable.abilities import Abilities
from durable.chunks import Wire
from durable.definition import AgentDefinition, AgentKind
from durable.errors import StoreUnavailable, UnknownAgent
from durable.settings import Settings
from durable.store import Store
from durable.views import AgentView, ToolView

log = logging.getLogger(__name__)

LIVENESS_SECONDS: Final = 10.0
"""A worker that has not shown itself for so long does not count."""


class Announcement(Wire):
    """An agent as others may know it."""

    name: str
    kind: AgentKind
    queue: str
    max_steps: int
    retention: int | None = None
    approval_policies: list[str] = Field(default_factory=list)
    abilities: Abilities = Field(default_factory=Abilities)
    view: AgentView

    @classmethod
    def of(cls, definition: AgentDefinition, prefix: str) -> Announcement:
        """What is told of an agent, in the deployment with this prefix."""
        queue = definition.queue_of(prefix)
        agent = definition.agent
        model = getattr(agent, "model", None)
        view = AgentView(
            name=definition.name,
            description=getattr(agent, "description", None) if isinstance(agent.description, str) else None,
            kind=definition.kind,
            model=model if isinstance(model, str) else getattr(model, "model_name", None),
            tools=list(_tools(definition)),
            output_schema=_output_schema(definition),
            queue=queue,
            max_steps=definition.max_steps,
        )
        return cls(
            name=definition.name,
            kind=definition.kind,
            queue=queue,
            max_steps=definition.max_steps,
            retention=definition.retention,
            approval_policies=sorted(definition.policies),
            abilities=Abilities.of(agent),
            view=view,
        )


def _tools(definition: AgentDefinition) -> Iterable[ToolView]:
    """The tools that are known without a run: the functions."""
    for toolset in definition.agent.toolsets:
        if isinstance(toolset, FunctionToolset):
            for name, tool in toolset.tools.items():
                schema: dict[str, Any] = tool.function_schema.json_schema
                approval = True if tool.requires_approval else None
                yield ToolView(name=name, description=tool.description, parameters=schema, requires_approval=approval)


def _output_schema(definition: AgentDefinition) -> dict[str, Any] | None:
    try:
        return definition.agent.output_json_schema()
    except Exception:  # noqa: BLE001 - a type without a schema is no reason not to serve the agent
        return None


@dataclass(frozen=True)
class LiveWorker:
    """A worker that has shown itself.

    Attributes:
        agents: The agents that it has.
        queues: The queues that it reads; None for all of its agents'.
        silence: Seconds since it last showed itself.
    """

    agents: frozenset[str]
    queues: frozenset[str] | None
    silence: float

    def serves(self, agent: str, queue: str) -> bool:
        """Whether it executes an agent's runs in a queue."""
        return agent in self.agents and (self.queues is None or queue in self.queues)


def _member(worker: str, agents: Iterable[str], queues: Iterable[str] | None) -> str:
    return json.dumps([worker, sorted(agents), *([] if queues is None else [sorted(queues)])])


def _live(member: bytes, silence: float) -> LiveWorker:
    _, agents, *queues = json.loads(member)
    return LiveWorker(frozenset(agents), frozenset(queues[0]) if queues else None, silence)


class Announcements:
    """The agents of a deployment."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def announce(self, definitions: Iterable[AgentDefinition]) -> None:
        """Make agents known. The newest announcement of a name stands.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        values: dict[Any, Any] = {}
        for definition in definitions:
            announcement = Announcement.of(definition, self._store.keys.prefix)
            values[definition.name] = announcement.model_dump_json(by_alias=True)
        if values:
            async with self._store.guard():
                await self._store.redis.hset(self._store.keys.agents, mapping=values)

    async def get(self, name: str) -> Announcement:
        """What is known of an agent.

        Raises:
            UnknownAgent: Nothing: it was never announced.
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            value = await self._store.redis.hget(self._store.keys.agents, name)
        if value is None:
            raise UnknownAgent
        return Announcement.model_validate_json(value)

    async def all(self) -> list[Announcement]:
        """All agents, by name.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            values = await self._store.redis.hgetall(self._store.keys.agents)
        return sorted((Announcement.model_validate_json(value) for value in values.values()), key=lambda a: a.name)

    async def show(self, worker: str, agents: Iterable[str], queues: Iterable[str] | None = None) -> None:
        """A worker lives, and serves these agents, as far as their runs are in these queues; in all when None. To be
        repeated well within `LIVENESS_SECONDS`.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        member = _member(worker, agents, queues)
        now = await self._now()
        async with self._store.guard():
            await self._store.redis.zadd(self._store.keys.workers, {member: now + LIVENESS_SECONDS})
            await self._store.redis.zremrangebyscore(self._store.keys.workers, "-inf", now)

    async def leave(self, worker: str, agents: Iterable[str], queues: Iterable[str] | None = None) -> None:
        """A worker goes.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            await self._store.redis.zrem(self._store.keys.workers, _member(worker, agents, queues))

    async def workers(self) -> list[LiveWorker]:
        """All live workers.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        now = await self._now()
        async with self._store.guard():
            members: Any = await self._store.redis.zrangebyscore(self._store.keys.workers, now, "+inf", withscores=True)
        return [_live(member, max(0.0, now + LIVENESS_SECONDS - until)) for member, until in members]

    async def silences(self, agent: str, queue: str) -> list[float]:
        """For each live worker that serves an agent's runs in a queue, the seconds since it last showed itself.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return [worker.silence for worker in await self.workers() if worker.serves(agent, queue)]

    async def _now(self) -> float:
        """The store's own clock, in seconds."""
        async with self._store.guard():
            seconds, micros = await self._store.redis.time()
        return int(seconds) + int(micros) / 1_000_000


async def keep_announced(
    announcements: Announcements,
    definitions: Iterable[AgentDefinition],
    worker: str,
    settings: Settings,
    queues: Iterable[str] | None = None,
) -> None:
    """Announce agents and show this worker, again and again, until cancelled; also after Redis was away, emptied or
    refused."""
    definitions = list(definitions)
    names = [definition.name for definition in definitions]
    pause = max(0.5, min(settings.heartbeat_seconds, LIVENESS_SECONDS / 4))
    while True:
        try:
            await announcements.announce(definitions)
            await announcements.show(worker, names, queues)
        except (StoreUnavailable, RedisError) as error:
            log.warning("agents could not be announced: %s", type(error).__name__)
        await asyncio.sleep(pause)
