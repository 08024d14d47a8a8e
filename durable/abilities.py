"""What is known of an agent without a run: which tools it has at all, and whether it can return another output.

Invariant: a request is only refused for what is sure. Toolsets may make their tools when a run begins: then it tells.
"""

from __future__ import annotations

from typing import Any, Final, Self

from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability, CombinedCapability, ToolSearch
from pydantic_ai.toolsets import FunctionToolset

from durable.chunks.base import Wire
from durable.errors import InvalidRequest
from durable.providers import shows_events
from durable.runs import RunRequest, check_include

OF_TOOLS: Final = ("for_run", "get_toolset", "prepare_tools", "get_wrapper_toolset")
"""By which a capability may give an agent other tools."""


class Abilities(Wire):
    """What an agent can do.

    Attributes:
        tools: The names of all tools that it may have; None when that is not known.
        fixed_output: Whether its output validators want its own output type.
        raw: Whether the events of its model's provider can be seen.
    """

    tools: list[str] | None = None
    fixed_output: bool = False
    raw: bool = False

    @classmethod
    def of(cls, agent: AbstractAgent[Any, Any]) -> Self:
        """What is known of an agent."""
        model = getattr(agent, "model", None)
        return cls(tools=_tools(agent), fixed_output=has_fixed_output(agent), raw=shows_events(model))

    def check(self, request: RunRequest) -> None:
        """Refuse what the agent surely can't do.

        Raises:
            InvalidRequest: It has no such tool, has one of the name of a client's, can't return what is asked for, or
                its provider's events can't be seen.
        """
        if request.output_schema is not None and self.fixed_output:
            raise InvalidRequest("The agent's output validators want its own output type.", field="outputSchema")
        check_include(request.include, raw=self.raw)
        if self.tools is None:
            return
        brought = {tool.name for tool in request.client_tools or []}
        if brought & set(self.tools):
            raise InvalidRequest("The agent has a tool of its own of this name.", field="clientTools")
        if set(request.active_tools or []) - brought - set(self.tools):
            raise InvalidRequest("The agent has no tool of this name.", field="activeTools")


def has_fixed_output(agent: AbstractAgent[Any, Any]) -> bool:
    """Whether the agent has output validators: with them Pydantic AI takes no other output type."""
    found: Any = agent
    while hasattr(found, "wrapped"):
        found = found.wrapped
    return bool(getattr(found, "_output_validators", None))


def _tools(agent: AbstractAgent[Any, Any]) -> list[str] | None:
    names: set[str] = set()
    for toolset in agent.toolsets:
        if not isinstance(toolset, FunctionToolset) or type(toolset).get_tools is not FunctionToolset.get_tools:
            return None
        names.update(toolset.tools)
    changing: list[bool] = []

    def visit(capability: AbstractCapability[Any]) -> None:
        kind = type(capability)
        own = any(getattr(kind, name) is not getattr(AbstractCapability, name) for name in OF_TOOLS)
        changing.append(own and not isinstance(capability, ToolSearch | CombinedCapability))

    agent.root_capability.apply(visit)
    return None if any(changing) else sorted(names)
