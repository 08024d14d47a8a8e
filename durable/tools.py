"""What a tool may ask of the run that it belongs to.

Usable in asynchronous and synchronous tools, and in whatever they call: the call's context travels with the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from pydantic_ai import RunContext

from durable.chunks import ToolOutput, ToolOutputPayload
from durable.chunks.base import Chunk
from durable.errors import ConfigurationError
from durable.translate import to_json_value


@dataclass(frozen=True)
class ToolContext:
    """The tool call that is being executed.

    Attributes:
        run_id: Its run.
        attempt: The attempt at the run, from 1.
        tool_call_id: Names the call within its step.
        tool_name: The tool.
        idempotency_key: The same in every attempt at this call, and of no other call. A tool that is interrupted may
            run again; pass the key on to whatever must not happen twice.
        write: Puts a chunk into the run's log, from the event loop.
        loop: The event loop of the run.
    """

    run_id: str
    attempt: int
    tool_call_id: str
    tool_name: str
    idempotency_key: str
    write: Callable[[Chunk], None]
    loop: asyncio.AbstractEventLoop


CALL: Final[ContextVar[ToolContext]] = ContextVar("durable_tool_call")


def tool_context(ctx: RunContext[Any]) -> ToolContext:
    """The tool call that `ctx` belongs to.

    Raises:
        ConfigurationError: It is not called from a tool of a durable run.
    """
    call = CALL.get(None)
    if call is None or call.tool_call_id != ctx.tool_call_id:
        raise ConfigurationError("There is no durable run here: this works inside a tool of a wrapped agent.")
    return call


async def emit(ctx: RunContext[Any], output: Any) -> None:
    """Tell the run's observers something while the tool is still running, as a `tool-output` chunk.

    Args:
        ctx: The tool's context.
        output: Anything that has a JSON form.

    Raises:
        ConfigurationError: It is not called from a tool of a durable run.
    """
    emit_sync(ctx, output)
    await asyncio.sleep(0)


def emit_sync(ctx: RunContext[Any], output: Any) -> None:
    """As `emit`, for synchronous tools."""
    call = tool_context(ctx)
    payload = ToolOutputPayload(output=to_json_value(output), tool_call_id=call.tool_call_id, tool_name=call.tool_name)
    call.loop.call_soon_threadsafe(call.write, ToolOutput(payload=payload))
