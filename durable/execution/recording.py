"""The toolset around all tools of a run: every call passes through it, whatever toolset the tool comes from.

It gives the tool its context, and makes sure that a tool which raises, or returns what can't be recorded, has an
outcome in the log before the run ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    RunCancelled,
    ToolFailed,
    UsageLimitExceeded,
)
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ToolReturn, ToolReturnPart
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset

from durable.chunks import ErrorInfo
from durable.definition import OnToolError
from durable.errors import ToolResultInvalid
from durable.execution.failures import ToolFailure, places
from durable.tools import CALL, ToolContext

log = logging.getLogger(__name__)

# What Pydantic AI's own loop understands. Anything else that a tool raises ends the run.
CONTROL_FLOW: Final = (ApprovalRequired, CallDeferred, ModelRetry, RunCancelled, ToolFailed, UsageLimitExceeded)


class Record(Protocol):
    """Where the outcome of a call goes that the agent's own loop does not tell of."""

    def tool_failed(self, tool_call_id: str, tool_name: str, args: dict[str, Any], error: ErrorInfo) -> None: ...


@dataclass
class RecordingToolset(WrapperToolset[Any]):
    """Wraps the assembled toolset of one attempt."""

    record: Record
    context: Callable[[str, str], ToolContext]
    on_tool_error: OnToolError
    max_result_bytes: int

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """Call the tool, as the wrapped toolset does."""
        call_id = ctx.tool_call_id or name
        token = CALL.set(self.context(call_id, name))
        try:
            value = await self.wrapped.call_tool(name, tool_args, ctx, tool)
            self._check(name, call_id, value)
        except CONTROL_FLOW:
            raise
        except Exception as error:
            failure = self._failure(name, error)
            info = ErrorInfo(code=failure.code, message=failure.message, name=type(error).__name__)
            self.record.tool_failed(call_id, name, tool_args, info)
            log.warning("tool %s raised %s at %s", name, type(error).__name__, places(error))
            if self.on_tool_error == "continue":
                raise ToolFailed(failure.message) from error
            raise failure from error
        finally:
            CALL.reset(token)
        return value

    def _check(self, name: str, call_id: str, value: Any) -> None:
        content = value.return_value if isinstance(value, ToolReturn) else value
        part = ToolReturnPart(tool_name=name, content=content, tool_call_id=call_id)
        try:
            size = len(ModelMessagesTypeAdapter.dump_json([ModelRequest(parts=[part])]))
        except Exception as error:
            raise ToolResultInvalid(f"The tool {name!r} returned a value that has no JSON form.") from error
        if size > self.max_result_bytes:
            raise ToolResultInvalid(f"The tool {name!r} returned more than {self.max_result_bytes} bytes.")

    @staticmethod
    def _failure(name: str, error: Exception) -> ToolFailure:
        if isinstance(error, ToolResultInvalid):
            return ToolFailure(name, error.code, error.message)
        return ToolFailure(name, "tool_failed", f"The tool {name!r} raised {type(error).__name__}.")


class Durability(AbstractCapability[Any]):
    """The capability that an attempt adds to the agent: it puts the recording toolset around all others."""

    def __init__(self, wrap: Callable[[AbstractToolset[Any]], AbstractToolset[Any]]) -> None:
        self._wrap = wrap

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """Wrap the assembled toolset."""
        return self._wrap(toolset)
