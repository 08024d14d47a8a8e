"""Agents with scripted models, for workers of tests. A prompt is a little program, so that a test chooses what happens.

say <words>             answers with the words, one delta each
slowly <n> <words>      the same, with n ms before each
call <tool> <json>      calls a tool, then answers with what it returned
calls <tool> <json>;…   calls several tools at once
as <id> <tool> <json>   calls a tool under an id of its own, a JSON string
fail                    the model fails at once
break <words>           the model fails after the words
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator

from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.output import NativeOutput, PromptedOutput
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset

from durable import agent_tool, create_durable_agent, create_evented_agent, emit, emit_sync, resume_data, suspend


async def script(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """The scripted model."""
    returned = _returned(messages)
    verb, _, rest = ("say", "", f"The tool said {returned}") if returned else _prompt(messages).partition(" ")
    if verb == "Background":
        verb, rest = "say", "Heard of a task"
    if verb == "as":
        call_id, end = json.JSONDecoder().raw_decode(rest)
        name, _, args = rest[end:].strip().partition(" ")
        yield {0: DeltaToolCall(name=name, json_args=args or "{}", tool_call_id=call_id)}
        return
    if verb in {"call", "calls"}:
        for index, call in enumerate(rest.split(";")):
            name, _, args = call.strip().partition(" ")
            yield {index: DeltaToolCall(name=name, json_args=args or "{}", tool_call_id=f"call-{index}")}
        return
    pause, _, words = rest.partition(" ") if verb == "slowly" else ("0", "", rest)
    for word in words.split():
        await asyncio.sleep(int(pause) / 1000)
        yield f"{word} "
    if verb not in {"say", "slowly"}:
        raise ModelHTTPError(500 if verb == "break" else 503, "scripted")


def _prompt(messages: list[ModelMessage]) -> str:
    texts = [
        part.content
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, UserPromptPart) and isinstance(part.content, str)
    ]
    return texts[-1]


def _returned(messages: list[ModelMessage]) -> str | None:
    last = messages[-1]
    if isinstance(last, ModelRequest):
        returns = [part.model_response_str() for part in last.parts if isinstance(part, ToolReturnPart)]
        return " and ".join(returns) or None
    return None


agent = Agent(FunctionModel(stream_function=script), name="scripted")


@agent.tool_plain
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@agent.tool
async def wait(ctx: RunContext[object], ms: int) -> str:
    """Take some time, and say so."""
    await emit(ctx, {"waiting": ms})
    await asyncio.sleep(ms / 1000)
    return f"waited {ms} ms"


@agent.tool_plain
def explode(secret: str = "hunter2") -> str:  # noqa: S107 - it must not turn up anywhere
    """Raise, with a secret in the text."""
    raise ValueError(f"the password is {secret}")


@agent.tool_plain
def opaque() -> object:
    """Return what has no JSON form."""
    return object()


@agent.tool_plain
def huge() -> str:
    """Return 20 MB."""
    return "x" * 20_000_000


@agent.tool
def block(ctx: RunContext[object]) -> str:
    """Say so, and never return."""
    emit_sync(ctx, {"blocked": True})
    threading.Event().wait()
    return "unreachable"


@agent.tool_plain
def kill_worker() -> str:
    """End the worker as a crash would."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


scripted = create_evented_agent(agent)
forgiving = create_evented_agent(
    Agent(FunctionModel(stream_function=script), name="forgiving", tools=[explode, opaque, add]),
    on_tool_error="continue",
)
here = create_durable_agent(
    Agent(FunctionModel(stream_function=script), name="in-process", tools=[add]),
)
limited = create_evented_agent(
    Agent(FunctionModel(stream_function=script), name="short-lived", tools=[add]), retention=1
)
gated_agent = Agent(
    FunctionModel(stream_function=script),
    name="gated",
    tools=[add],
    toolsets=[ExternalToolset([ToolDefinition(name="outside", parameters_json_schema={"type": "object"})])],
)


class Colour(BaseModel):
    """What a person is asked for."""

    colour: str


@gated_agent.tool_plain(requires_approval=True)
def refund(amount: int) -> str:
    """Give money back."""
    return f"refunded {amount}"


@gated_agent.tool
def paint(ctx: RunContext[object]) -> str:
    """Ask which colour, and paint. Tartan is none: it asks again."""
    choice = resume_data(ctx, Colour)
    if choice is None or choice.colour == "tartan":
        raise suspend({"question": "Which colour?"}, resume_schema=Colour)
    return f"painted {choice.colour}"


@gated_agent.tool_plain
def too_late() -> str:
    """Wait until a moment in the past."""
    raise suspend(expires_in=-1)


busy_agent = Agent(FunctionModel(stream_function=script), name="busy")
in_background: dict[str, object] = {"background": True}


@busy_agent.tool_plain(metadata={"durable": in_background})
async def nap(ms: int = 0) -> str:
    """Sleep."""
    await asyncio.sleep(ms / 1000)
    return f"slept {ms}"


@busy_agent.tool_plain(requires_approval=True)
def check() -> str:
    """Wait for an approval, in the run itself."""
    return "checked"


@busy_agent.tool(metadata={"durable": in_background})
def ask(ctx: RunContext[object]) -> str:
    """Ask which colour."""
    choice = resume_data(ctx, Colour)
    if choice is None:
        raise suspend({"question": "Which colour?"}, resume_schema=Colour)
    return f"answered {choice.colour}"


@busy_agent.tool(metadata={"durable": {"background": "awaited"}}, requires_approval=True)
def choose(ctx: RunContext[object]) -> str:
    """Ask which colour, once that is approved."""
    choice = resume_data(ctx, Colour)
    if choice is None:
        raise suspend({"question": "Which colour?"}, resume_schema=Colour)
    return f"chose {choice.colour}"


@busy_agent.tool_plain(metadata={"durable": in_background | {"timeout": 0.05}})
async def dawdle() -> str:
    """Take too long."""
    await asyncio.sleep(60)
    return "done"


@busy_agent.tool_plain(metadata={"durable": in_background | {"retries": 1, "retry_seconds": 0.01}})
def stumble() -> str:
    """Fail."""
    raise RuntimeError("hunter2")


@busy_agent.tool_plain(metadata={"durable": in_background | {"max_concurrency": 1}})
async def alone(ms: int = 0) -> str:
    """Sleep, one at a time."""
    await asyncio.sleep(ms / 1000)
    return f"slept {ms}"


@busy_agent.tool_plain(metadata={"durable": in_background | {"queue": "durable.heavy"}})
def lift() -> str:
    """Work that has workers of its own."""
    return "lifted"


busy = create_evented_agent(busy_agent)
editor = create_evented_agent(Agent(FunctionModel(stream_function=script), name="editor", tools=[agent_tool(busy)]))
reporter = create_evented_agent(
    Agent(FunctionModel(stream_function=script), name="reporter", tools=[agent_tool(busy, nested=True)])
)


class City(BaseModel):
    """A structured output."""

    name: str
    facts: list[str]


async def compose(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """The model that gives its prompt for its output, in small pieces."""
    text = _prompt(messages)
    if info.output_tools:
        yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args="", tool_call_id="call-0")}
    for start in range(0, len(text), 8):
        await asyncio.sleep(0)
        piece = text[start : start + 8]
        yield {0: DeltaToolCall(json_args=piece)} if info.output_tools else piece


composing = FunctionModel(stream_function=compose, profile={"supports_json_schema_output": True})
by_tool = create_evented_agent(Agent(composing, name="by-tool", output_type=City))
by_native = create_evented_agent(Agent(composing, name="by-native", output_type=NativeOutput(City)))
by_prompted = create_evented_agent(Agent(composing, name="by-prompted", output_type=PromptedOutput(City)))


def large_sums(_ctx: RunContext[object], _tool: ToolDefinition, args: dict[str, object]) -> bool:
    """Whether a sum is large."""
    return int(str(args.get("a", 0))) > 100


gated = create_evented_agent(gated_agent, approval_policies={"large": large_sums})
LONG = json.dumps({"ms": 60_000})
