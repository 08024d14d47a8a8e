"""A wrapped agent as a tool of another one: each call is a run of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

from pydantic_ai import RunContext
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.tools import Tool

from durable.definition import AgentDefinition
from durable.errors import ConfigurationError
from durable.suspension import MARK
from durable.tool_options import functions_of


class Wrapped(Protocol):
    """A wrapped agent."""

    @property
    def definition(self) -> AgentDefinition: ...


class AgentTool(Tool[Any]):
    """The tool that asks an agent.

    Attributes:
        definition: The agent.
    """

    definition: AgentDefinition


def agent_tool(
    agent: Wrapped,
    *,
    name: str | None = None,
    description: str | None = None,
    background: Literal["awaited", "deferred"] = "awaited",
    model_chooses: bool = False,
    nested: bool = False,
) -> AgentTool:
    """Make a tool of an agent. What a model asks it is the prompt of a run of that agent, with the caller's `deps`; the
    run's output is the tool's result. The run that asks holds no place while it waits.

    Args:
        agent: The wrapped agent. Workers that execute its runs must have it.
        name: The tool's name. Default: the agent's.
        description: What the model is told of it. Default: the agent's own description.
        background: `awaited`: the call waits for the result. `deferred`: the model goes on at once, and is told later.
        model_chooses: Whether the model may choose between the two for each call.
        nested: Whether the log of the run that asks also has what the other one writes: each chunk as a `tool-output`,
            and each end of a step as a `step-output`.
    """
    definition = agent.definition
    options = {
        "agent": definition.name,
        "agent_kind": definition.kind,
        "agent_nested": nested,
        "agent_retention": definition.retention,
        "background": background,
        "model_chooses": model_chooses,
        **({} if definition.queue is None else {"queue": definition.queue}),
    }
    tool = AgentTool(
        _never_called,
        takes_ctx=True,
        name=name or definition.name.replace(".", "_"),
        description=description or f"Ask the agent {definition.name!r}.",
        metadata={MARK: options},
    )
    tool.definition = definition
    return tool


def sub_agents(agent: AbstractAgent[Any, Any]) -> Iterator[AgentDefinition]:
    """The agents that an agent may ask, with those that they may ask, and so on."""
    known: dict[str, AgentDefinition] = {}
    waiting = [agent]
    while waiting:
        for tool in functions_of(waiting.pop()).values():
            if isinstance(tool, AgentTool) and tool.definition.name not in known:
                known[tool.definition.name] = tool.definition
                waiting.append(tool.definition.agent)
    yield from known.values()


async def _never_called(ctx: RunContext[Any], prompt: str) -> str:  # noqa: ARG001 - a run is made of it
    """Ask.

    Args:
        ctx: The call's context.
        prompt: The task, with all that is needed to do it.
    """
    raise ConfigurationError("An agent's tool works inside the runs of a wrapped agent only.")
