"""The ASGI app, put together. `uvicorn api.app:app` serves it, set up from the environment."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from redis.exceptions import RedisError

from durable.agents import load_agents
from durable.announcements import Announcements
from durable.backend import Backend
from durable.definition import AgentDefinition
from durable.errors import StoreUnavailable
from durable.settings import Settings
from durable.store import Store

from . import agents, background, budgets, decisions, health, inside, problems, runs, threads
from .body_limit import BodyLimit
from .closing import on_stop_signals
from .cors import allow_origins
from .documentation import Documented
from .mastra.door import create_door

log = logging.getLogger(__name__)

DESCRIPTION = """
Durable, fire-and-forget runs for Pydantic AI agents.

Submit a run and have its id back at once; follow it from any client, from the start or from any position, now or later.
A run goes on whatever happens to who asked for it.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the app.

    Args:
        settings: Default: from the environment, when the app starts.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        found = settings or Settings()
        definitions = _hosted(found)
        async with Backend(Store.of(found), found, definitions) as backend:
            app.state.backend = backend
            # All that importing has made stays: the collector need not walk it for each thousand chunks of a replay.
            gc.freeze()
            announcing = asyncio.create_task(_announce(backend.announcements, definitions))
            with on_stop_signals(backend.hub.dismiss):
                yield
            backend.hub.dismiss()
            announcing.cancel()

    app = Documented(
        title="Durable Agents",
        description=DESCRIPTION,
        version=_version(),
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit, max_bytes=(settings or Settings()).max_body_bytes)
    problems.install(app)
    allow_origins(app, (settings or Settings()).cors_origins)
    for module in (runs, decisions, budgets, inside, background, threads, agents, health):
        app.include_router(module.router)
    app.mount("/api", create_door(app.state))
    return app


def _hosted(settings: Settings) -> dict[str, AgentDefinition]:
    """The agents that are executed in this process: those that say so. Without `DURABLE_AGENTS` no user code is
    imported."""
    found = load_agents(settings.agents) if settings.agents else {}
    return {name: definition for name, definition in found.items() if definition.kind == "durable"}


async def _announce(announcements: Announcements, definitions: dict[str, AgentDefinition]) -> None:
    """Announce the agents of this process, as soon as Redis is there and takes them."""
    while definitions:
        try:
            await announcements.announce(definitions.values())
        except (StoreUnavailable, RedisError) as error:
            log.warning("agents could not be announced: %s", type(error).__name__)
            await asyncio.sleep(1)
        else:
            return


def _version() -> str:
    try:
        return version("durable-agents")
    except PackageNotFoundError:
        return "0"


app = create_app()
