"""What a wrapped agent is: the Pydantic AI agent and how its runs are to be executed."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, Unpack

from pydantic_ai import RunContext
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.tools import ToolDefinition

from durable.background.dispositions import Background
from durable.chunks.base import Json
from durable.completion import Goal, InputGuardrail, OutputGuardrail, TaskCompletion
from durable.completion.context import check_names
from durable.errors import ConfigurationError
from durable.tool_options import OnToolError, check_tools, queues_of

DEFAULT_MAX_STEPS: Final = 20
DEFAULT_GUARDRAIL_SECONDS: Final = 60.0
AGENT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)

AgentKind = Literal["evented", "durable"]


@dataclass(frozen=True)
class RunInfo:
    """What a `deps_factory` may know of the run it makes dependencies for.

    Attributes:
        run_id: The run.
        agent: The agent's name.
        attempt: The attempt, from 1.
        metadata: What the caller attached to the run.
        deps: What the caller gave as `deps`, as JSON.
    """

    run_id: str
    agent: str
    attempt: int
    metadata: dict[str, Json]
    deps: Json


ApprovalFunction = Callable[[RunContext[Any], ToolDefinition, dict[str, Any]], bool | Awaitable[bool]]
"""Tells from a call's context, tool and arguments whether it has to be approved. One that raises wants it to be."""
ApprovalPolicy = bool | ApprovalFunction
DepsFactory = Callable[[RunInfo], Any | Awaitable[Any] | AbstractAsyncContextManager[Any]]


class AgentOptions(TypedDict, total=False):
    """How the runs of an agent are to be executed; what `create_durable_agent` and `create_evented_agent` take.

    Attributes:
        max_steps: Model requests in a run, at most. Default 20.
        deps_factory: Makes the dependencies of a run from `RunInfo`; may be asynchronous, or return an
            asynchronous context manager.
        queue: The Celery queue of its runs. Default: `<DURABLE_PREFIX>.<name>`, so `durable.<name>`.
        retention: Seconds to keep an ended run. Default: `DURABLE_RETENTION_SECONDS`, 7 days.
        on_tool_error: `fail`: a tool that raises ends the run, as it ends the bare agent's. `continue`: the model is
            told.
        require_tool_approval: Whether tool calls have to be approved, beside those whose tools say so themselves: all
            of them (True), or those for which a function of the call's context, tool and arguments is true.
        approval_policies: Such functions by name, for a run to ask for: `require_tool_approval="name"`.
        step_seconds: Seconds that a model request and the tools that it calls may take, unless the run says otherwise;
            longer fails the run (`step_timeout`). Default: no limit.
        input_guardrails: Functions of a `JudgeContext` and the conversation that may stop a run before the model is
            asked, by returning or raising a `Tripwire`. Default: none.
        output_guardrails: The same, of a `JudgeContext` and the output, before it is given out.
        guardrail_seconds: Seconds that each guardrail may take; longer fails the run (`guardrail_failed`). None for no
            limit. Default 60.
        completion: Scorers that judge the output whenever the model is done.
        goal: An objective, and a judge that says whether it is reached.
        background: Which tools are made in the background, and how many of their tasks are executed at a time.
    """

    max_steps: int
    deps_factory: DepsFactory | None
    queue: str | None
    retention: int | None
    on_tool_error: OnToolError
    require_tool_approval: ApprovalPolicy
    approval_policies: Mapping[str, ApprovalFunction] | None
    step_seconds: float | None
    input_guardrails: Sequence[InputGuardrail]
    output_guardrails: Sequence[OutputGuardrail]
    guardrail_seconds: float | None
    completion: TaskCompletion | None
    goal: Goal | None
    background: Background | None


@dataclass(frozen=True)
class AgentDefinition:
    """A wrapped agent.

    Attributes:
        name: The Pydantic AI agent's name: its address.
        agent: The Pydantic AI agent.
        kind: `evented`: Celery workers execute its runs. `durable`: the process that takes the request does.
        max_steps: Model requests in a run, at most, unless the caller says otherwise.
        deps_factory: Makes the dependencies of a run.
        queue: The Celery queue of its runs; None for `<prefix>.<name>`.
        retention: Seconds to keep an ended run; the deployment's default when None.
        on_tool_error: Whether a tool that raises fails the run, or the model is told.
        step_seconds: Seconds that a model request and the tools that it calls may take; None for no limit.
        require_tool_approval: Which tool calls have to be approved, beside those whose tools say so themselves.
        approval_policies: Policies that a run may ask for by name.
        input_guardrails: Asked before the model, once a run.
        output_guardrails: Asked before the output is given out, once a run.
        guardrail_seconds: Seconds that each of them may take; None for no limit.
        completion: Whether the model may end.
        goal: What the model has to reach.
        background: Which tools are made in the background.
    """

    name: str
    agent: AbstractAgent[Any, Any]
    kind: AgentKind
    max_steps: int = DEFAULT_MAX_STEPS
    deps_factory: DepsFactory | None = None
    queue: str | None = None
    retention: int | None = None
    on_tool_error: OnToolError = "fail"
    require_tool_approval: ApprovalPolicy = False
    approval_policies: Mapping[str, ApprovalFunction] | None = None
    step_seconds: float | None = None
    input_guardrails: Sequence[InputGuardrail] = ()
    output_guardrails: Sequence[OutputGuardrail] = ()
    guardrail_seconds: float | None = DEFAULT_GUARDRAIL_SECONDS
    completion: TaskCompletion | None = None
    goal: Goal | None = None
    background: Background | None = None

    def __post_init__(self) -> None:
        if not AGENT_NAME.fullmatch(self.name):
            raise ConfigurationError("An agent's name is 1 to 128 letters, digits, '_', '-' or '.'.")
        if self.max_steps < 1:
            raise ConfigurationError("max_steps must be at least 1.")
        if self.step_seconds is not None and not self.step_seconds > 0:
            raise ConfigurationError("step_seconds must be above 0.")
        if self.guardrail_seconds is not None and not self.guardrail_seconds > 0:
            raise ConfigurationError("guardrail_seconds must be above 0.")
        check_names(self.input_guardrails, "guardrail")
        check_names(self.output_guardrails, "guardrail")

    @property
    def policies(self) -> Mapping[str, ApprovalFunction]:
        """Policies that a run may ask for by name."""
        return self.approval_policies or {}

    def queue_of(self, prefix: str) -> str:
        """The Celery queue of its runs, in the deployment with this prefix."""
        return self.queue or default_queue(self.name, prefix)

    def queues(self, prefix: str) -> set[str]:
        """All queues of its runs and of the tasks of its tools, in the deployment with this prefix."""
        return {self.queue_of(prefix), *queues_of(self.agent)}


def default_queue(agent: str, prefix: str) -> str:
    """The Celery queue of the runs of an agent that names none, in the deployment with this prefix."""
    return f"{prefix}.{agent}"


def define(agent: AbstractAgent[Any, Any], kind: AgentKind, **options: Unpack[AgentOptions]) -> AgentDefinition:
    """Make the definition of an agent.

    Raises:
        ConfigurationError: The agent has no name, or an option does not fit, of it or of a tool.
    """
    if not agent.name:
        raise ConfigurationError("The agent needs a name: Agent(…, name='support'). Runs are addressed by it.")
    check_tools(agent)
    return AgentDefinition(name=agent.name, agent=agent, kind=kind, **options)
