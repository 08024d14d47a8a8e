"""Random programs for an agent: what it says and which tools it calls, and so what has to come of a run.

A program is the run's prompt, as JSON: a list of steps, each with words to say and calls to make. All that happens
follows from it; only who executes it, and how often that one is killed, is left to chance.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Final

import orjson
from pydantic_ai import Agent, ModelRetry, RunContext, Tool, ToolFailed
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import create_evented_agent, emit, resume_data, suspend
from tests.chaos.agents import act, prompt_of, requests

AGAIN: Final = "+1"
"""What the key of an effect ends with when the tool was called again with data."""
DECIDED: Final = ("risk", "inquire")
"""Tools whose calls wait for somebody."""
TASKS: Final = ("errand", "chore")
"""Tools whose calls are made in the background: awaited, and deferred."""
HEARD: Final = "Heard. "
"""What is said in each turn that follows because a task has ended."""


@dataclass(frozen=True)
class Call:
    """A tool call.

    Attributes:
        tool: `work`, `work_sync`, `break_off` (fails), `insist` (asks for another try), `risk` (has to be approved),
            `inquire` (waits for data), `errand` (a task that is awaited) or `chore` (one that is not).
        ms: How long it takes.
    """

    tool: str
    ms: int


@dataclass(frozen=True)
class Step:
    """A model response: its words, with a pause before each, and its calls."""

    words: list[str]
    pause_ms: int
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True)
class Program:
    """What a run does. Only the last step has no calls."""

    steps: list[Step]

    @property
    def prompt(self) -> str:
        return orjson.dumps([asdict(step) for step in self.steps]).decode()

    @property
    def text(self) -> str:
        """All that it says."""
        return "".join(word for step in self.steps for word in step.words)

    @property
    def calls(self) -> dict[str, Call]:
        """The calls by their names in the ledger."""
        return {
            f"{number}:c{number}-{index}": call
            for number, step in enumerate(self.steps, 1)
            for index, call in enumerate(step.calls)
        }

    @classmethod
    def random(cls, chance: Random, name: str, *, alone: bool = False) -> Program:
        """A program of one to four steps; `alone`: without calls that wait for somebody, or are tasks."""
        count = chance.choice((1, 2, 2, 3, 4))
        steps = []
        for number in range(1, count + 1):
            words = [f"{name}.{number}.{index} " for index in range(chance.randint(1, 25))]
            calls = [_call(chance, alone=alone) for _ in range(chance.choice((1, 1, 3)))] if number < count else []
            steps.append(Step(words, chance.choice((0, 5, 30)), calls))
        return cls(steps)

    @classmethod
    def of(cls, prompt: str) -> Program:
        """Read a prompt."""
        return cls(
            [Step(**{**step, "calls": [Call(**call) for call in step["calls"]]}) for step in orjson.loads(prompt)]
        )


def _call(chance: Random, *, alone: bool) -> Call:
    waiting = () if alone else (*DECIDED, *TASKS)
    tool = chance.choice(("work", "work", "work_sync", "break_off", "insist", *waiting))
    return Call(tool, chance.choice((0, 10, 80, 300)))


async def _play(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    number, steps = requests(messages), Program.of(prompt_of(messages)).steps
    if number >= len(steps):
        yield HEARD
        return
    step = steps[number]
    for word in step.words:
        await asyncio.sleep(step.pause_ms / 1000)
        yield word
    for index, call in enumerate(step.calls):
        name = f"c{number + 1}-{index}"
        yield {index + 1: DeltaToolCall(name=call.tool, json_args=f'{{"ms":{call.ms}}}', tool_call_id=name)}


async def work(ctx: RunContext[Any], ms: int) -> str:
    """Work, and leave a trace in the middle."""
    await asyncio.sleep(ms / 2000)
    act(ctx)
    await asyncio.sleep(ms / 2000)
    return f"worked {ms} ms"


def work_sync(ctx: RunContext[Any], ms: int) -> str:
    """The same, in a thread."""
    time.sleep(ms / 2000)
    act(ctx)
    time.sleep(ms / 2000)
    return f"worked {ms} ms in a thread"


async def break_off(ctx: RunContext[Any], ms: int) -> str:
    """Work in vain."""
    act(ctx)
    await asyncio.sleep(ms / 1000)
    raise ToolFailed("in vain")


async def insist(ctx: RunContext[Any], ms: int) -> str:
    """Never be content; the model goes on all the same."""
    act(ctx)
    await asyncio.sleep(ms / 1000)
    raise ModelRetry("once more")


async def risk(ctx: RunContext[Any], ms: int) -> str:
    """Do what nobody wants to happen twice, or against somebody's will."""
    return await work(ctx, ms)


async def inquire(ctx: RunContext[Any], ms: int) -> str:
    """Ask for data, once."""
    data = resume_data(ctx)
    act(ctx, part=AGAIN if data is not None else "")
    await asyncio.sleep(ms / 1000)
    if data is None:
        raise suspend({"ms": ms})
    return f"heard {data}"


async def errand(ctx: RunContext[Any], ms: int) -> str:
    """Work elsewhere, and be waited for."""
    return await work(ctx, ms)


async def chore(ctx: RunContext[Any], ms: int) -> str:
    """Work elsewhere meanwhile."""
    await emit(ctx, {"ms": ms})
    return await work(ctx, ms)


program = create_evented_agent(
    Agent(
        FunctionModel(stream_function=_play, model_name="scripted"),
        name="program",
        tools=[
            *(work, work_sync, break_off, insist, inquire),
            Tool(risk, requires_approval=True),
            Tool(errand, metadata={"durable": {"background": "awaited"}}),
            Tool(chore, metadata={"durable": {"background": "deferred", "max_concurrency": 5}}),
        ],
        retries=10,
    )
)
