"""Agents whose models say when they speak, so that an observer can tell how long it took to hear them.

The prompt is JSON: `hold_ms` before the first word, `deltas` of them, `pause_ms` after each. The first delta carries
the moment at which the model was asked; every delta carries its own, as `@<ns>@` of `time.monotonic_ns()`, a clock that
all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Final

from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from benchmarks.bodies import stay, work
from durable import EventedAgent, create_durable_agent, create_evented_agent, emit

ASKED: Final = re.compile(rb"asked @(\d+)@")
SAID: Final = re.compile(rb"said @(\d+)@")
LIMIT: Final = 50
"""Tasks of `limited` at a time."""


def prompt(*, deltas: int, hold_ms: float = 0, pause_ms: float = 0) -> str:
    """What to ask the agents."""
    return json.dumps({"deltas": deltas, "hold_ms": hold_ms, "pause_ms": pause_ms})


async def speak(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    """The model."""
    asked = time.monotonic_ns()
    order = json.loads(_last_prompt(messages))
    await asyncio.sleep(order["hold_ms"] / 1000)
    for number in range(order["deltas"]):
        yield f"asked @{asked}@ said @{time.monotonic_ns()}@ " if number == 0 else f"said @{time.monotonic_ns()}@ "
        await asyncio.sleep(order["pause_ms"] / 1000)


def _last_prompt(messages: list[ModelMessage]) -> str:
    parts = [part for part in messages[-1].parts if isinstance(part, UserPromptPart)]
    return str(parts[-1].content)


in_worker = create_evented_agent(Agent(FunctionModel(stream_function=speak), name="in-worker"))


async def ask(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """A model that pays, once somebody has approved it."""
    if len(messages) > 1:
        yield "paid"
    else:
        yield {0: DeltaToolCall(name="pay", json_args='{"amount":500}', tool_call_id="c1")}


async def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


asking = create_evented_agent(
    Agent(FunctionModel(stream_function=ask), name="asking", tools=[Tool(pay, requires_approval=True)])
)


async def call_wait(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """A model that calls a tool."""
    yield {0: DeltaToolCall(name="wait", json_args="{}", tool_call_id="c1")}


async def wait(ctx: RunContext[None]) -> str:
    """Say so, and wait for ever."""
    await emit(ctx, "the tool waits")
    await asyncio.Event().wait()
    return "unreachable"


waiting_in_tool = create_evented_agent(
    Agent(FunctionModel(stream_function=call_wait), name="waiting-in-tool", tools=[Tool(wait)])
)
in_process = create_durable_agent(Agent(FunctionModel(stream_function=speak), name="in-process"))


async def delegate(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """A model that calls a tool with its prompt as the list to stay for, and speaks whenever it is asked again."""
    asked = time.monotonic_ns()
    if len(messages) > 1:
        yield f"asked @{asked}@"
    else:
        args = json.dumps({"until": _last_prompt(messages), "called": f"called @{asked}@"})
        yield {0: DeltaToolCall(name="stay_away", json_args=args, tool_call_id="c1")}


def stay_away(until: str, called: str) -> str:
    """Stay until told."""
    return f"{called} {stay(until)}"


delegating = create_evented_agent(
    Agent(
        FunctionModel(stream_function=delegate),
        name="delegating",
        tools=[Tool(stay_away, metadata={"durable": {"background": True}})],
    )
)


async def spread(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """A model that calls a tool as often as its prompt, JSON with `calls` and `hold_ms`, says."""
    if len(messages) > 1:
        yield "spread"
    else:
        order = json.loads(_last_prompt(messages))
        args = json.dumps({"hold_ms": order["hold_ms"]})
        yield {i: DeltaToolCall(name="work", json_args=args, tool_call_id=f"c{i}") for i in range(order["calls"])}


def _spreading(name: str, **options: int) -> EventedAgent:
    tool: Tool[None] = Tool(work, metadata={"durable": {"background": True, **options}})
    return create_evented_agent(Agent(FunctionModel(stream_function=spread), name=name, tools=[tool]))


spreading = _spreading("spreading")
limited = _spreading("limited", max_concurrency=LIMIT)
