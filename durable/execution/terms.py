"""What a run's request changes of its agent, for every attempt at it alike.

Invariant: an attempt of a run that asks for nothing gives the agent nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.settings import ToolOrOutput

from durable.abilities import has_fixed_output
from durable.errors import UnfitRequest
from durable.execution.offered import Offer
from durable.outputs import requested_output
from durable.runs import RunRequest


class Terms:
    """The terms of one run.

    Args:
        agent: The run's agent.
        request: What it is asked to do.
        step: Tells the number of the run's step, from 1 for its first model request.

    Attributes:
        brought: The tools that the caller executes.
        left_to_caller: Those of them whose calls end the run, instead of waiting.
    """

    def __init__(self, agent: AbstractAgent[Any, Any], request: RunRequest, step: Callable[[], int]) -> None:
        self._agent = agent
        self._request = request
        self._step = step
        self.brought = frozenset(tool.name for tool in request.client_tools or [])
        self.left_to_caller = self.brought if request.on_client_tools == "end" else frozenset()

    def instructed(self) -> AbstractContextManager[Any]:
        """While the agent's loop is begun: with the run's instructions in place of the agent's."""
        asked = self._request.instructions
        return nullcontext() if asked is None else self._agent.override(instructions=asked)

    def output(self) -> dict[str, Any]:
        """The run's own output, as the agent's loop is told of it.

        Raises:
            UnfitRequest: The agent checks its output by functions that want its own type.
        """
        request = self._request
        if request.output_schema is None:
            return {}
        if has_fixed_output(self._agent):
            raise UnfitRequest("The agent's output validators want its own output type.")
        return {"output_type": requested_output(request.output_schema, request.output_mode)}

    def settings(self) -> Any:
        """The model's settings; with a forced tool choice, a function of the request's context that gives them."""
        settings: dict[str, Any] = dict(self._request.model_settings or {})
        if self._request.retries:
            # The run itself asks again: its provider's client must not.
            settings = {"max_retries": 0, **settings}
        match settings.get("tool_choice"):
            case {"function_tools": names}:
                settings["tool_choice"] = ToolOrOutput(function_tools=names)
            case "required" | [_, *_] as choice:
                return self._first_forced(settings, choice)
        return settings or None

    def _first_forced(self, settings: dict[str, Any], choice: Any) -> Callable[[RunContext[Any]], Any]:
        """A choice that lets the model call tools only holds for the first request: it could never end."""
        free = {name: value for name, value in settings.items() if name != "tool_choice"}

        def of(ctx: RunContext[Any]) -> Any:
            manager = ctx.tool_manager
            tools = {} if manager is None or manager.tools is None else manager.tools
            ends = any(tool.tool_def.kind == "output" and tool.tool_def.name in choice for tool in tools.values())
            return settings if ends or self._step() == 1 else free

        return of

    def offer(self) -> list[Offer]:
        """The capability that changes the model's tools; none when they are the agent's."""
        request = self._request
        if request.active_tools is None and not request.client_tools:
            return []
        tools, seconds = request.client_tools or [], request.client_tool_seconds
        return [Offer(request.active_tools, tools, seconds, lambda: self._step() > 1)]
