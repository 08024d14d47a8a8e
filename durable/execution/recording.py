"""The toolset around all tools of a run: every call passes through it, whatever toolset the tool comes from.

A call whose outcome the ledger has is not made again: the outcome is replayed. Any other call is entered as started
before its body runs, and its outcome is recorded in the same step as its chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    RunCancelled,
    ToolFailed,
    UsageLimitExceeded,
)
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset

from durable import ledger
from durable.chunks.base import Json
from durable.definition import OnToolError
from durable.errors import DurableError, ToolResultInvalid
from durable.execution.aside import Asides
from durable.execution.failures import ToolFailure, places
from durable.tools import CALL, ToolContext

log = logging.getLogger(__name__)

# What Pydantic AI's own loop understands. Anything else that a tool raises ends the run.
CONTROL_FLOW: Final = (ApprovalRequired, CallDeferred, RunCancelled, UsageLimitExceeded)
UNKNOWN: Final = (
    "It is not known whether this tool call took effect: the process that made it was lost. It was not repeated."
)


class Record(Protocol):
    """Where the calls of an attempt are recorded."""

    def known(self, tool_call_id: str) -> bytes | None:
        """The ledger entry of a call of this step."""

    async def started(self, tool_call_id: str) -> None:
        """Enter a call as started; returns when that is stored, raises when the run is lost."""

    def ended(self, tool_call_id: str, name: str, outcome: ledger.Outcome, entry: bytes) -> None:
        """Record an outcome, with its chunk."""

    def failed(self, tool_call_id: str, failure: ToolFailure, entry: bytes) -> None:
        """Record that a tool raised, or that nobody knows."""

    def ends(self, tool_call_id: str, failure: ToolFailure, aside: Json) -> None:
        """The failure of a call, and what it did beside. It ends the run, unless a hook makes something of it."""

    def healed(self, tool_call_id: str, value: Any) -> None:
        """A call has a value in the end: record it if it had failed."""


@dataclass
class RecordingToolset(WrapperToolset[Any]):
    """Wraps the assembled toolset of one attempt."""

    record: Record
    asides: Asides
    context: Callable[[str, str], ToolContext]
    on_tool_error: OnToolError
    max_result_bytes: int
    entered: Callable[[RunContext[Any]], None]

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """The tools of a step, as the wrapped toolset gives them."""
        self.entered(ctx)
        return await self.wrapped.get_tools(ctx)

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """Call the tool, or replay what it did."""
        call_id = ctx.tool_call_id or name
        entry = self.record.known(call_id)
        if entry is not None:
            outcome = ledger.decode(entry)
            if outcome is not None:
                self.asides.replay(ctx, outcome.aside)
                if outcome.raised is not None:
                    raise self._failed_before(call_id, name, outcome.raised, outcome.aside)
                return outcome.replay()
            if _option(tool, "on_crash", "retry") != "retry":
                return self._give_up(call_id, name)
        await self.record.started(call_id)
        aside, did = self.asides.begin(ctx), None
        token = CALL.set(self.context(call_id, name))
        try:
            try:
                outcome = await _outcome(self.wrapped.call_tool(name, tool_args, aside.ctx, tool))
            finally:
                did = aside.settle()
            outcome = replace(outcome, aside=did)
            recorded = self._encode(name, outcome)
        except BaseException as error:
            if _passes(error):
                raise
            return self._failed(call_id, tool, error, did)
        finally:
            CALL.reset(token)
        self.record.ended(call_id, name, outcome, recorded)
        return outcome.replay() if outcome.retry or outcome.failed else outcome.value

    def _encode(self, name: str, outcome: ledger.Outcome) -> bytes:
        try:
            entry = ledger.encode(outcome)
        except ToolResultInvalid as error:
            raise ToolResultInvalid(f"The tool {name!r} returned a value that has no JSON form.") from error
        if len(entry) > self.max_result_bytes:
            raise ToolResultInvalid(f"The tool {name!r} returned more than {self.max_result_bytes} bytes.")
        return entry

    def _failed(self, call_id: str, tool: ToolsetTool[Any], error: BaseException, aside: Json) -> Any:
        """The tool raised, or returned what can't be recorded: the run ends, or the model is told."""
        name, kind = tool.tool_def.name, type(error).__name__
        if isinstance(error, ToolResultInvalid):
            failure = ToolFailure(name, error.code, error.message, kind)
        else:
            failure = ToolFailure(name, "tool_failed", f"The tool {name!r} raised {kind}.", kind)
        failure.__cause__ = error
        log.warning("tool %s raised %s at %s", name, kind, places(error))
        if _option(tool, "on_tool_error", self.on_tool_error) == "continue":
            self.record.failed(call_id, failure, ledger.encode(ledger.Outcome(failed=failure.message, aside=aside)))
            raise ToolFailed(failure.message) from error
        passed_on = isinstance(error, Exception) and not isinstance(error, ToolResultInvalid)
        raised = ledger.Raised(failure.code, failure.message, kind, error if passed_on else None)
        entry = ledger.encode(ledger.Outcome(raised=raised, aside=aside))
        if len(entry) > self.max_result_bytes:
            entry = ledger.encode(ledger.Outcome(raised=replace(raised, error=None), aside=aside))
        self.record.failed(call_id, failure, entry)
        self.record.ends(call_id, failure, aside)
        if passed_on:
            raise error  # as it is: a user's hooks may know it
        raise failure from error

    def _failed_before(self, call_id: str, name: str, raised: ledger.Raised, aside: Json) -> BaseException:
        """What the tool raised in an attempt that was lost."""
        failure = ToolFailure(name, raised.code, raised.message, raised.name)
        failure.__cause__ = raised.error
        self.record.ends(call_id, failure, aside)
        return raised.error or failure

    def _give_up(self, call_id: str, name: str) -> Any:
        """The call was started by an attempt that was lost, and is not to be repeated."""
        failure = ToolFailure(name, "outcome_unknown", UNKNOWN)
        self.record.failed(call_id, failure, ledger.encode(ledger.Outcome(failed=UNKNOWN)))
        raise ToolFailed(UNKNOWN)


async def _outcome(call: Awaitable[Any]) -> ledger.Outcome:
    """What a tool returned, or told the model by raising."""
    try:
        return ledger.Outcome(value=await call)
    except ModelRetry as error:
        return ledger.Outcome(retry=error.message)
    except ToolFailed as error:
        return ledger.Outcome(failed=error.message)


def _passes(error: BaseException) -> bool:
    """Whether it is not the tool's failure: what the agent's own loop understands, or the end of this attempt."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or bool(task.cancelling())  # else nobody cancelled this task: the tool raised it
    if isinstance(error, DurableError):
        return not isinstance(error, ToolResultInvalid)
    return isinstance(error, (*CONTROL_FLOW, GeneratorExit))


def _option(tool: ToolsetTool[Any], name: str, default: str) -> str:
    """What the tool's author wants: `on_crash`, for a call that was interrupted, and `on_tool_error`."""
    metadata = tool.tool_def.metadata or {}
    options = metadata.get("durable")
    return str(options.get(name, default)) if isinstance(options, dict) else default


class Durability(AbstractCapability[Any]):
    """The capability that an attempt adds to the agent.

    Args:
        wrap: Puts the recording toolset around all others.
    """

    def __init__(self, wrap: Callable[[AbstractToolset[Any]], AbstractToolset[Any]]) -> None:
        self._wrap = wrap

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """Wrap the assembled toolset."""
        return self._wrap(toolset)


class Healing(AbstractCapability[Any]):
    """Records what the user's hooks make of a tool's failure: they make it once.

    Args:
        record: Where the calls are recorded.
        asides: What they do beside.
    """

    def __init__(self, record: Record, asides: Asides) -> None:
        self._record = record
        self._asides = asides

    def get_ordering(self) -> CapabilityOrdering:
        """Outside of all others."""
        return CapabilityOrdering(position="outermost")

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: Any,  # noqa: ARG002
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Call the tool with all hooks, or use what they made of its failure."""
        entry = self._record.known(call.tool_call_id)
        outcome = ledger.decode(entry) if entry is not None else None
        if outcome is not None and outcome.healed:
            self._asides.replay(ctx, outcome.aside)
            return outcome.value
        value = await handler(args)
        self._record.healed(call.tool_call_id, value)
        return value


class Resumption(AbstractCapability[Any]):
    """Uses a response that an earlier attempt has had from the model already, instead of a request.

    It is around all other capabilities: what they made of that request and its response is in the conversation, and
    must not be made of it again.
    """

    def __init__(self, completed: ModelResponse) -> None:
        self._completed: ModelResponse | None = completed

    def get_ordering(self) -> CapabilityOrdering:
        """Outside of all others."""
        return CapabilityOrdering(position="outermost")

    async def wrap_model_request(
        self,
        ctx: RunContext[Any],  # noqa: ARG002
        *,
        request_context: Any,
        handler: Any,
    ) -> ModelResponse:
        """Use the response that is there."""
        completed, self._completed = self._completed, None
        return completed or await handler(request_context)


class Telling(AbstractCapability[Any]):
    """The capability that hears the events of a run, as whoever follows it does: after all that the user's own
    capabilities make of them. With it each node is streamed, inside of the hooks around it.

    Args:
        tell: Takes the events of one node, and gives them on.
    """

    def __init__(self, tell: Callable[[AsyncIterable[Any]], AsyncIterable[Any]]) -> None:
        self._tell = tell

    def get_ordering(self) -> CapabilityOrdering:
        """Outside of all others."""
        return CapabilityOrdering(position="outermost")

    def wrap_run_event_stream(
        self,
        ctx: RunContext[Any],  # noqa: ARG002
        *,
        stream: AsyncIterable[Any],
    ) -> AsyncIterable[Any]:
        """Hear, and give on."""
        return self._tell(stream)
