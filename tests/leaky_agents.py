"""Agents that try to leak: whatever fails in them has a secret in the text of its exception.

The prompt names the place that fails. The secret comes from the environment, so that no source text holds it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UnexpectedModelBehavior, UserError
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunInfo, create_evented_agent

SECRET = os.environ.get("LEAKY_SECRET", "")

MODEL_FAILURES: dict[str, Exception] = {
    "http": ModelHTTPError(500, SECRET, {"error": SECRET}),
    "api": ModelAPIError(SECRET, SECRET),
    "behaviour": UnexpectedModelBehavior(SECRET, SECRET),
    "user": UserError(SECRET),
    "bug": RuntimeError(SECRET),
    "group": ExceptionGroup(SECRET, [KeyError(SECRET)]),
}


class Unprintable(Exception):
    """Even asking for its text fails, and leaks."""

    def __str__(self) -> str:
        raise RuntimeError(SECRET)


async def script(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Fails as the prompt says: `model <how>` at once, `late <how>` in mid-stream, `tool <name>` in a tool."""
    [first, *_] = messages
    assert isinstance(first, ModelRequest)
    [prompt] = [part.content for part in first.parts if isinstance(part, UserPromptPart)]
    verb, _, rest = str(prompt).partition(" ")
    if verb == "tool" and len(messages) == 1:
        yield {0: DeltaToolCall(name=rest, json_args="{}", tool_call_id="call-0")}
        return
    if verb == "model":
        raise MODEL_FAILURES[rest]
    yield "so far so good "
    if verb == "late":
        raise MODEL_FAILURES[rest]


agent = Agent(FunctionModel(stream_function=script), name="leaky")


@agent.tool_plain
def chained() -> str:
    """Raise an error with a cause and a note."""
    error = ValueError(SECRET)
    error.add_note(SECRET)
    raise error from ConnectionError(SECRET)


@agent.tool_plain
async def grouped() -> str:
    """Raise several errors at once."""

    async def fail() -> None:
        raise ValueError(SECRET)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())
        tasks.create_task(fail())
    return "unreachable"


@agent.tool_plain
def unprintable() -> str:
    """Raise an error without a text."""
    raise Unprintable


@agent.tool_plain
def exiting() -> str:
    """Try to end the process."""
    sys.exit(SECRET)


@agent.tool_plain
async def exiting_loop() -> str:
    """Try to end the process, from its event loop."""
    sys.exit(SECRET)


@agent.tool_plain
async def cancelling() -> str:
    """Raise what only the owner of a task should."""
    raise asyncio.CancelledError(SECRET)


leaky = create_evented_agent(agent)

choosy_agent = Agent(FunctionModel(stream_function=script), name="choosy")


@choosy_agent.output_validator
def choose(output: str) -> str:
    """Like no output."""
    raise ValueError(f"{SECRET} {output}")


choosy = create_evented_agent(choosy_agent)


def poor(_run: RunInfo) -> object:
    """Have no dependencies to give."""
    raise LookupError(SECRET)


@asynccontextmanager
async def careless(_run: RunInfo) -> AsyncIterator[object]:
    """Fail when the run is over."""
    yield object()
    raise OSError(SECRET)


without_deps = create_evented_agent(
    Agent(FunctionModel(stream_function=script), name="without-deps"), deps_factory=poor
)
careless_deps = create_evented_agent(
    Agent(FunctionModel(stream_function=script), name="careless-deps"), deps_factory=careless
)
