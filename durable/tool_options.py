"""The `durable` entry of a tool's metadata: what a tool may say of its calls.

Invariant: what is not valid is found when the agent is wrapped, not when a call of the tool waits for somebody. That
holds for tools that are functions and are there by then; of others only a run knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.tools import Tool
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from durable.errors import ConfigurationError
from durable.suspension import LONGEST_WAIT, MARK, OnExpiry

OnCrash = Literal["retry", "fail", "ask"]
OnToolError = Literal["fail", "continue"]
Disposition = Literal["foreground", "deferred", "awaited"]
"""Where a call is made: in its run, or as a task of its own while the run goes on or waits."""
OnLimit = Literal["queue", "reject", "foreground"]
LIMIT = r"^[A-Za-z0-9_.-]{1,128}$"


class ToolOptions(BaseModel):
    """What a tool says. Other names are left alone.

    Attributes:
        expires_in: Seconds after which a call that waits is answered by itself.
        on_expiry: How.
        on_crash: What becomes of a call that its worker was lost in: it is made again, the model is told that nobody
            knows, or somebody is asked.
        on_tool_error: Whether a call that raises fails the run, or the model is told.
        timeout: Seconds that a call may take.
        background: Whether its calls are made in the background, as tasks of their own: `deferred` (as True) goes on
            with the run at once, `awaited` lets the call wait. Default: they are made in the run.
        model_chooses: Whether the model may choose among the three for each call.
        queue: The Celery queue of its tasks. Default: its agent's.
        retries: How often a task is made again when the tool raises.
        retry_seconds: The longest first pause before that; it doubles each time, up to 30 s, and is random.
        max_concurrency: Tasks of this tool that are executed at a time, over all workers. Default: no limit.
        concurrency_key: What they are counted under, if that is not the tool's name: tools may share it.
        on_limit: What becomes of one more: it waits (`queue`), the model is told (`reject`), or the call is made in the
            run (`foreground`).
        agent: The agent that the tool asks: each call is a run of it.
        agent_kind: The kind of those runs: that of the agent.
        agent_nested: Whether what these runs write is told in the log of the run that asks, too.
        agent_retention: Seconds to keep one after its end. Default: the deployment's.
    """

    model_config = ConfigDict(strict=True)

    expires_in: float | None = Field(None, gt=0, le=LONGEST_WAIT)
    on_expiry: OnExpiry = "decline"
    on_crash: OnCrash = "retry"
    on_tool_error: OnToolError = "fail"
    timeout: float | None = Field(None, gt=0)
    background: bool | Disposition = False
    model_chooses: bool = False
    queue: str | None = Field(None, min_length=1, max_length=200)
    retries: int = Field(0, ge=0, le=100)
    retry_seconds: float = Field(1.0, gt=0, le=3600)
    max_concurrency: int | None = Field(None, ge=1)
    concurrency_key: str | None = Field(None, pattern=LIMIT)
    on_limit: OnLimit = "queue"
    agent: str | None = None
    agent_kind: Literal["evented", "durable"] = "evented"
    agent_nested: bool = False
    agent_retention: int | None = None

    @property
    def disposition(self) -> Disposition:
        """Where its calls are made, unless somebody says otherwise."""
        if isinstance(self.background, str):
            return self.background
        return "deferred" if self.background else "foreground"


def check_tools(agent: AbstractAgent[Any, Any]) -> None:
    """Look at what an agent's functions say.

    Raises:
        ConfigurationError: It is not valid; the message names the tool and the options.
    """
    for name, options in _options(agent):
        read_options(name, options)


def read_options(name: str, options: Any) -> ToolOptions:
    """What a tool says.

    Raises:
        ConfigurationError: It is not valid; the message names the tool and the options.
    """
    try:
        return ToolOptions.model_validate(options)
    except ValidationError as error:
        wrong = sorted({str(part) for issue in error.errors() for part in issue["loc"][:1]})
        what = f": {', '.join(wrong)} of it" if wrong else ""
        raise ConfigurationError(f"The tool {name!r} has metadata 'durable' that is not valid{what}.") from error


def queues_of(agent: AbstractAgent[Any, Any]) -> set[str]:
    """The queues of their own that an agent's functions name for their tasks. A sub-agent's is read by its workers."""
    found = (read_options(name, options) for name, options in _options(agent))
    return {options.queue for options in found if options.queue is not None and options.agent is None}


def functions_of(agent: AbstractAgent[Any, Any]) -> dict[str, Tool[Any]]:
    """The tools of an agent that are functions and are there by now."""
    found: list[FunctionToolset[Any]] = []

    def visit(toolset: AbstractToolset[Any]) -> None:
        if isinstance(toolset, FunctionToolset):
            found.append(toolset)

    for toolset in agent.toolsets:
        toolset.apply(visit)
    return {name: tool for functions in found for name, tool in functions.tools.items()}


def _options(agent: AbstractAgent[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The tools of an agent that have such an entry, with it."""
    for name, tool in functions_of(agent).items():
        if MARK in (tool.metadata or {}):
            yield name, (tool.metadata or {})[MARK]
