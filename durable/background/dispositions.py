"""Where a tool call is made, by what the tool, the agent, the run and the model say of it.

Invariant: only a tool that says so itself, or whose agent does, is ever made in the background; a model can't make
it so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from durable.errors import ConfigurationError
from durable.tool_options import LIMIT, Disposition, ToolOptions

CHOICES: Final[tuple[Disposition, ...]] = ("foreground", "deferred", "awaited")


@dataclass(frozen=True)
class Background:
    """What an agent says of background tasks.

    Attributes:
        tools: Where the calls of a tool are made, by its name: `deferred` (as True), `awaited` or `foreground` (as
            False). It goes before what the tool itself says.
        max_concurrency: Tasks of this agent that are executed at a time, over all workers. Default: no limit.
    """

    tools: Mapping[str, bool | Disposition] = field(default_factory=dict)
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigurationError("max_concurrency must be at least 1.")
        for name, how in self.tools.items():
            if not isinstance(how, bool) and how not in CHOICES:
                raise ConfigurationError(f"The tool {name!r} can't be made in the background so.")


def disposition_of(
    tool: str, options: ToolOptions, agent: Background | None, *, allowed: bool, chosen: Disposition | None
) -> Disposition:
    """Where a call is made.

    Args:
        tool: The tool's name.
        options: What it says.
        agent: What the agent says.
        allowed: Whether the run allows anything in the background.
        chosen: What the model says. It counts if the tool leaves that to it, and is made in the background by itself.
    """
    own = options.disposition
    said = (agent.tools if agent is not None else {}).get(tool)
    if said is not None:
        own = said if isinstance(said, str) else "deferred" if said else "foreground"
    if options.agent is not None and own == "foreground":
        own = "awaited"  # a sub-agent always has a run of its own
    if not allowed:
        return "awaited" if options.agent is not None else "foreground"
    if own == "foreground" or chosen is None or not options.model_chooses:
        return own
    return "awaited" if options.agent is not None and chosen == "foreground" else chosen


def limits_of(
    tool: str, options: ToolOptions, agent_name: str, agent: Background | None, in_all: int | None
) -> dict[str, int]:
    """How many tasks may be executed at a time, under each name that this one counts under."""
    found: dict[str, int] = {}
    if options.max_concurrency is not None:
        name = f"key:{options.concurrency_key}" if options.concurrency_key else f"tool:{agent_name}:{tool}"
        found[_safe(name)] = options.max_concurrency
    if agent is not None and agent.max_concurrency is not None:
        found[f"agent:{agent_name}"] = agent.max_concurrency
    if in_all:
        found["all"] = in_all
    return found


def task_id(run_id: str, step: int, round_: int, tool_call_id: str) -> str:
    """The id of the run that makes a call: the same in every attempt. It can be guessed no better than its parent's."""
    digest = hashlib.sha256(f"{run_id}\n{step}\n{round_}\n{tool_call_id}".encode()).hexdigest()
    return f"task-{digest[:40]}"


def placeholder(task: str) -> str:
    """What the model is told of a call that goes on in the background."""
    return f"Background task started. Task ID: {task}. Its result will be told later."


def _safe(name: str) -> str:
    return name if re.fullmatch(LIMIT.replace("_.-", "_.:-"), name) else hashlib.sha256(name.encode()).hexdigest()
