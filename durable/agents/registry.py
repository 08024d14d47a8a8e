"""The wrapped agents of a process: found in the modules that `DURABLE_AGENTS` names."""

from __future__ import annotations

import importlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Final

from durable.agents.agent import DurableAgent
from durable.definition import AgentDefinition
from durable.errors import ConfigurationError

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_LIBRARIES: Final = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))


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


def check_agents(modules: str) -> None:
    """Import modules, as `load_agents` does, for a program that would rather say in one line why that fails.

    Raises:
        ConfigurationError: As by `load_agents`, and for whatever a module raises: its class and the place, not its
            text, which may hold a secret.
    """
    for entry in modules.split(","):
        try:
            load_agents(entry)
        except ConfigurationError:
            raise
        except Exception as error:
            module = entry.partition(":")[0].strip()
            raise ConfigurationError(
                f"DURABLE_AGENTS names {module!r}, but it can't be imported: {type(error).__name__} at "
                f'{_place(error)}. All of it:  python -c "import {module}"'
            ) from error
    load_agents(modules)


def _place(error: Exception) -> str:
    """The file and line that an error comes from: the innermost one that is neither ours nor an installed package's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if not _is_foreign(file)]
    file, line = (own or frames)[-1]
    return f"{file}:{line}"


def _is_foreign(file: Path) -> bool:
    return not _INSTALLED.isdisjoint(file.parts) or not file.is_absolute() or any(map(file.is_relative_to, _LIBRARIES))


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
