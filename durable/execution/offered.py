"""The tools that the model of a run is given: of its agent's only the active ones, and those that its caller brings.

It is the innermost toolset of an attempt: whatever else is around the agent's tools never sees another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ExternalToolset, FunctionToolset, ToolsetTool, WrapperToolset

from durable.errors import UnfitRequest
from durable.runs import ClientTool
from durable.suspension import MARK


@dataclass
class OfferedToolset(WrapperToolset[Any]):
    """Wraps the agent's toolset.

    Attributes:
        active: The names of the agent's tools that are given to the model; None for all.
        brought: The caller's own.
        begun: Whether the run has got beyond its first step: from then on a tool that is missing was there, once.
    """

    active: frozenset[str] | None
    brought: ExternalToolset[Any]
    begun: Callable[[], bool]

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """The tools of a step.

        Raises:
            UnfitRequest: The agent has no tool of an active name, or has one of the name of a caller's.
        """
        tools, brought = await self.wrapped.get_tools(ctx), await self.brought.get_tools(ctx)
        if twice := sorted(tools.keys() & brought.keys()):
            raise UnfitRequest(f"The agent has a tool of its own that is called {twice[0]!r}: no caller can bring it.")
        if self.active is not None:
            missing = self.active - tools.keys() - brought.keys()
            if missing and not self.begun() and (unknown := sorted(missing - self._declared())):
                raise UnfitRequest(f"The agent has no tool that is called {unknown[0]!r}.")
            tools = {name: tool for name, tool in tools.items() if name in self.active}
        return {**tools, **brought}

    def _declared(self) -> set[str]:
        """Tools that may be missing in a step, as the agent prepares them."""
        found: set[str] = set()

        def visit(toolset: AbstractToolset[Any]) -> None:
            if isinstance(toolset, FunctionToolset):
                found.update(toolset.tools)

        self.wrapped.apply(visit)
        return found


class Offer(AbstractCapability[Any]):
    """Puts the toolset around the agent's own, inside of all others.

    Args:
        active: The names of the agent's tools that are given to the model; None for all.
        brought: The caller's own.
        seconds: How long a call of one of these waits before it is declined; None for ever.
        begun: Whether the run has got beyond its first step.
    """

    def __init__(
        self,
        active: Sequence[str] | None,
        brought: Sequence[ClientTool],
        seconds: float | None,
        begun: Callable[[], bool],
    ) -> None:
        self._active = None if active is None else frozenset(active)
        self._brought = ExternalToolset([_definition(tool, seconds) for tool in brought], id="client-tools")
        self._begun = begun

    def get_ordering(self) -> CapabilityOrdering:
        """Inside of all others."""
        return CapabilityOrdering(position="innermost")

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """Wrap the assembled toolset."""
        return OfferedToolset(toolset, active=self._active, brought=self._brought, begun=self._begun)


def _definition(tool: ClientTool, seconds: float | None) -> ToolDefinition:
    limits = {} if seconds is None else {MARK: {"expires_in": seconds, "on_expiry": "decline"}}
    return ToolDefinition(
        name=tool.name, description=tool.description, parameters_json_schema=tool.parameters, metadata=limits
    )
