"""What a tool may ask of the run that it belongs to.

Usable in asynchronous and synchronous tools, and in whatever they call: the call's context travels with the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, overload

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import RunContext

from durable import exact_json
from durable.chunks import ToolOutput, ToolOutputPayload
from durable.chunks.base import Chunk, Json
from durable.errors import ConfigurationError
from durable.translate import to_json_value

T = TypeVar("T")


@dataclass(frozen=True)
class ToolContext:
    """The tool call that is being executed.

    Attributes:
        run_id: Its run.
        attempt: The attempt at the run, from 1.
        tool_call_id: Names the call within its step.
        tool_name: The tool.
        idempotency_key: The same in every attempt at this call, in a retry of its run too, and of no other call. A tool
            that is interrupted may run again; pass the key on to whatever must not happen twice.
        write: Puts a chunk into the run's log, from the event loop.
        room: Waits while too much waits for Redis.
        loop: The event loop of the run.
        resumed: Whether it was suspended, and is called again with data.
        resume: That data.
        expired: Whether it was suspended with `on_expiry="approve"`, and nobody has given it data in time.
        refused: What `resume_data` had against that data.
    """

    run_id: str
    attempt: int
    tool_call_id: str
    tool_name: str
    idempotency_key: str
    write: Callable[[Chunk], None]
    room: Callable[[], Coroutine[Any, Any, None]]
    loop: asyncio.AbstractEventLoop
    resumed: bool = False
    resume: Json = None
    expired: bool = False
    refused: list[ValidationError] = field(default_factory=list)


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


@overload
def resume_data(ctx: RunContext[Any]) -> Any: ...


@overload
def resume_data(ctx: RunContext[Any], as_type: type[T]) -> T | None: ...


def resume_data(ctx: RunContext[Any], as_type: Any = None) -> Any:
    """The data that a suspended tool was resumed with; None on its first call, before it was suspended.

    Args:
        ctx: The tool's context.
        as_type: What to read it as, such as the model given to `suspend(resume_schema=…)`. Default: JSON, as it came,
            checked against that schema.

    Raises:
        ConfigurationError: It is not called from a tool of a durable run.
        pydantic.ValidationError: The data is not of that type. A tool that lets it through is asked about once more.
    """
    call = tool_context(ctx)
    if not call.resumed:
        return None
    if as_type is None:
        return call.resume
    try:
        return TypeAdapter(as_type).validate_json(exact_json.dumps(call.resume))
    except ValidationError as error:
        call.refused.append(error)
        raise


async def emit(ctx: RunContext[Any], output: Any) -> None:
    """Tell the run's observers something while the tool is still running, as a `tool-output` chunk.

    Waits while too much of this run waits for Redis.

    Args:
        ctx: The tool's context.
        output: Anything that has a JSON form.

    Raises:
        ConfigurationError: It is not called from a tool of a durable run.
        LeaseLost: The run has another owner, or this call was given up.
    """
    await _emit(tool_context(ctx), output)


def emit_sync(ctx: RunContext[Any], output: Any) -> None:
    """As `emit`, for synchronous tools: to be called from a thread, not from the event loop.

    Raises:
        ConfigurationError, LeaseLost: As `emit`.
    """
    call = tool_context(ctx)
    if _running_loop() is call.loop:
        raise ConfigurationError("This would wait for itself: in asynchronous code use `await emit(…)`.")
    asyncio.run_coroutine_threadsafe(_emit(call, output), call.loop).result()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _emit(call: ToolContext, output: Any) -> None:
    call.write(_chunk(call, output))
    await call.room()


def _chunk(call: ToolContext, output: Any) -> ToolOutput:
    payload = ToolOutputPayload(output=to_json_value(output), tool_call_id=call.tool_call_id, tool_name=call.tool_name)
    return ToolOutput(payload=payload)
