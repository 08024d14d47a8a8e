"""What the agent's own code decides of calls that wait: as answers, which end a question like those of people.

A handler is asked inside of the agent's loop, and says what becomes of a call. Where the call was announced, that is
stored as its answer, under the actor `handler`; the first answer stands, a person's or a handler's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering, WrapperCapability
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import ToolReturn
from pydantic_ai.tools import (
    DeferredToolRequests,
    DeferredToolResult,
    DeferredToolResults,
    ToolApproved,
    ToolDenied,
)

from durable import ledger
from durable.decisions import HANDLER, Answer
from durable.errors import ToolResultInvalid
from durable.translate import to_json_value

APPROVED = Answer(kind="approve", actor=HANDLER)


def answer_of(result: DeferredToolResult) -> Answer:
    """What a handler has decided, as an answer.

    Raises:
        ToolResultInvalid: It has changed the arguments to what has no JSON form: nobody could make the call again.
    """
    match result:
        case ToolApproved(override_args=None):
            return APPROVED
        case ToolApproved():
            try:
                edited = TypeAdapter(Any).dump_python(result.override_args, mode="json")
            except ValueError as error:
                raise ToolResultInvalid("A handler approved a call with arguments that have no JSON form.") from error
            return Answer(kind="approve", args=edited, actor=HANDLER)
        case ToolDenied():
            return Answer(kind="decline", reason=result.message, actor=HANDLER)
    data = to_json_value(getattr(result, "return_value", None))
    return Answer(kind="resume", data=data, actor=HANDLER)


def outcome_of(result: DeferredToolResult) -> ledger.Outcome:
    """What a call has come to by a result that a handler gave in its place."""
    match result:
        # A retry, too: whoever replays it would charge the model's retries, which a handler does not.
        case ToolFailed() | ModelRetry():
            return ledger.Outcome(failed=result.message)
        case ToolReturn():
            return ledger.Outcome(value=result)
    return ledger.Outcome(failed=str(getattr(result, "content", "")))


class Deferral(AbstractCapability[Any]):
    """The capability that takes the deferred calls which nobody else has resolved.

    Args:
        resolve: Gives their results, or suspends the run.
    """

    def __init__(
        self, resolve: Callable[[RunContext[Any], DeferredToolRequests], Awaitable[DeferredToolResults | None]]
    ) -> None:
        self._resolve = resolve

    def get_ordering(self) -> CapabilityOrdering:
        """After all others: the agent's own handlers decide first."""
        return CapabilityOrdering(position="innermost")

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Any], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Resolve them."""
        return await self._resolve(ctx, requests)


def others_decide(root: AbstractCapability[Any] | None) -> bool:
    """Whether the agent has handlers of its own for deferred calls: a call is then not known to wait before they were
    asked."""
    found: list[bool] = []

    def visit(capability: AbstractCapability[Any]) -> None:
        own = type(capability).handle_deferred_tool_calls
        found.append(
            own is not AbstractCapability.handle_deferred_tool_calls
            and not isinstance(capability, Deferral | WrapperCapability)
        )

    if root is not None:
        root.apply(visit)
    return any(found)
