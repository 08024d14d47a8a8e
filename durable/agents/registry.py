"""The wrapped agents of a process: found in the modules that `DURABLE_AGENTS` names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

from durable.agents.agent import DurableAgent
from durable.definition import AgentDefinition
from durable.errors import ConfigurationError


def load_agents(modules: str) -> dict[str, AgentDefinition]:
    """Import modules and take the wrapped agents found in them, by name.

    Args:
        modules: `package.module[:name],…`. Without a name, all wrapped agents of the module.

    Raises:
        ConfigurationError: A module or name is not there, holds no wrapped agent, or two agents share a name.
    """
    found: dict[str, DurableAgent] = {}
    for entry in filter(None, (part.strip() for part in modules.split(","))):
        path, _, name = entry.partition(":")
        for agent in _agents(_module(path), path, name):
            if found.setdefault(agent.name, agent) is not agent:
                raise ConfigurationError(f"Two agents are named {agent.name!r}; a name is an address.")
    return {name: agent.definition for name, agent in found.items()}


def _module(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"DURABLE_AGENTS names {path!r}, but there is no module {error.name!r} on the Python path."
        ) from error


def _agents(module: ModuleType, path: str, name: str) -> Iterator[DurableAgent]:
    if not name:
        agents = [value for value in vars(module).values() if isinstance(value, DurableAgent)]
        if not agents:
            raise ConfigurationError(f"There is no wrapped agent in {path!r}: wrap one with create_evented_agent(…).")
        yield from agents
        return
    value = getattr(module, name, None)
    if not isinstance(value, DurableAgent):
        raise ConfigurationError(f"{path}:{name} is not a wrapped agent: wrap one with create_evented_agent(…).")
    yield value
