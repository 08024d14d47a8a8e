"""The `durable` entry of a tool's metadata: what a tool may say of its calls.

Invariant: what is not valid is found when the agent is wrapped, not when a call of the tool waits for somebody. That
holds for tools that are functions and are there by then; of others only a run knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from durable.errors import ConfigurationError
from durable.suspension import LONGEST_WAIT, MARK, OnExpiry

OnCrash = Literal["retry", "fail", "ask"]
OnToolError = Literal["fail", "continue"]


class ToolOptions(BaseModel):
    """What a tool says. Other names are left alone.

    Attributes:
        expires_in: Seconds after which a call that waits is answered by itself.
        on_expiry: How.
        on_crash: What becomes of a call that its worker was lost in: it is made again, the model is told that nobody
            knows, or somebody is asked.
        on_tool_error: Whether a call that raises fails the run, or the model is told.
    """

    model_config = ConfigDict(strict=True)

    expires_in: float | None = Field(None, gt=0, le=LONGEST_WAIT)
    on_expiry: OnExpiry = "decline"
    on_crash: OnCrash = "retry"
    on_tool_error: OnToolError = "fail"


def check_tools(agent: AbstractAgent[Any, Any]) -> None:
    """Look at what an agent's functions say.

    Raises:
        ConfigurationError: It is not valid; the message names the tool and the options.
    """
    for name, options in _options(agent):
        try:
            ToolOptions.model_validate(options)
        except ValidationError as error:
            wrong = sorted({str(part) for issue in error.errors() for part in issue["loc"][:1]})
            what = f": {', '.join(wrong)} of it" if wrong else ""
            raise ConfigurationError(f"The tool {name!r} has metadata 'durable' that is not valid{what}.") from error


def _options(agent: AbstractAgent[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The tools of an agent that have such an entry, with it."""
    found: list[FunctionToolset[Any]] = []

    def visit(toolset: AbstractToolset[Any]) -> None:
        if isinstance(toolset, FunctionToolset):
            found.append(toolset)

    for toolset in agent.toolsets:
        toolset.apply(visit)
    for functions in found:
        for name, tool in functions.tools.items():
            if MARK in (tool.metadata or {}):
                yield name, (tool.metadata or {})[MARK]
