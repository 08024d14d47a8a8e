"""The capabilities that an attempt adds to the agent: around, outside or inside of the agent's own."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.toolsets import AbstractToolset

from durable import ledger
from durable.execution.aside import Asides
from durable.execution.record import CallRecord


class Durability(AbstractCapability[Any]):
    """Puts the recording toolset around all others.

    Args:
        wrap: Does it.
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

    def __init__(self, record: CallRecord, asides: Asides) -> None:
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
        entry = self._record.newest(call.tool_call_id)
        outcome = ledger.decode(entry) if entry is not None else None
        if outcome is not None and outcome.healed:
            self._asides.replay(ctx, outcome.aside)
            return outcome.replay()
        try:
            healed = ledger.Outcome(value=await handler(args), healed=True)
        except ModelRetry as error:
            self._record.healed(call.tool_call_id, ledger.Outcome(retry=error.message, healed=True))
            raise
        except ToolFailed as error:
            self._record.healed(call.tool_call_id, ledger.Outcome(failed=error.message, healed=True))
            raise
        self._record.healed(call.tool_call_id, healed)
        return healed.value


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
