"""Research that goes on while nobody looks: three searches in the background, a caller that leaves and comes back.

The model begins three searches at once and ends its turn without them. The run waits for them, holds nothing meanwhile,
and goes on under the same id with each result that comes, until nothing is left to wait for.

Run it as it stands, `.venv/bin/python examples/background_research.py`: everything happens in this process. Or let
workers do the work, and leave for good. With `DURABLE_REDIS_URL` set everywhere, start
`DURABLE_AGENTS=examples.background_research make dev`, then

    .venv/bin/python examples/background_research.py leave
    .venv/bin/python examples/background_research.py come-back RUN CHUNK

The model is a script and needs no provider; it says so.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import DurableAgent, EventedAgent, create_durable_agent, create_evented_agent, emit
from durable.chunks import BackgroundTaskOutput, BackgroundTaskRunning, Chunk, Finish, TextDelta, ToolResult

QUESTION: Final = "Is tea or coffee the older drink?"
SEARCHES: Final = ("search_papers", "search_archive", "ask_librarian")
PACE: Final = 0.3
"""Seconds that the quickest search takes; the others take two and three times as long."""
_RESULT: Final = re.compile(r"Background task .* completed\. Its result: (.*)", re.DOTALL)


async def _respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    said = [str(part.content) for part in parts if isinstance(part, UserPromptPart)]
    found = [match[1] for words in said if (match := _RESULT.match(words))]
    if len(found) == len(SEARCHES):
        yield f"(This is a script, not a language model.) {' '.join(sorted(found))}"
    elif found:
        yield f"{len(found)} of {len(SEARCHES)} searches are done."
    elif any(isinstance(part, ToolReturnPart) for part in parts):
        yield f"{len(SEARCHES)} searches are under way; I shall tell you what they find."
    else:
        args = json.dumps({"question": said[0]})
        yield {i: DeltaToolCall(name=name, json_args=args) for i, name in enumerate(SEARCHES)}


agent = Agent(
    FunctionModel(stream_function=_respond, model_name="research-script"),
    name="research",
    description="Looks a question up in three places at once, and takes its time for it.",
)
in_background: Any = {"durable": {"background": True, "timeout": 60, "retries": 2, "max_concurrency": 10}}


@agent.tool(metadata=in_background)
async def search_papers(ctx: RunContext[object], question: str) -> str:
    """Search scientific papers."""
    await emit(ctx, f"searching papers for {question!r}")
    await asyncio.sleep(PACE)
    return "A paper dates tea leaves from a tomb to the second century BC."


@agent.tool(metadata=in_background)
async def search_archive(ctx: RunContext[object], question: str) -> str:
    """Search an archive of old prints."""
    await emit(ctx, f"searching prints for {question!r}")
    await asyncio.sleep(2 * PACE)
    return "The archive first has coffee in the fifteenth century."


@agent.tool(metadata=in_background)
async def ask_librarian(ctx: RunContext[object], question: str) -> str:
    """Ask somebody who knows."""
    await emit(ctx, f"asking a librarian: {question}")
    await asyncio.sleep(3 * PACE)
    return "The librarian says that tea is the older one."


research = create_evented_agent(agent)


async def leave(asked: DurableAgent | EventedAgent) -> tuple[str, int]:
    """Ask, read until the first turn has ended, and go. The searches go on, and so does the run."""
    run = await asked.stream(QUESTION, until_idle=True)
    cursor = 0
    async with aclosing(run.observe()) as chunks:
        async for chunk in chunks:
            cursor = chunk.seq
            show(chunk)
            if isinstance(chunk, Finish):
                break
    print(f"\nleft run {run.run_id} after chunk {cursor}", flush=True)
    return run.run_id, cursor


async def come_back(asked: DurableAgent | EventedAgent, run_id: str, cursor: int) -> None:
    """Read what was missed, and stay until all is idle."""
    run = await asked.handle(run_id)
    async for chunk in run.observe(cursor):
        show(chunk)
    print(f"\nall is idle; the answer: {(await run.result()).output}")


def show(chunk: Chunk) -> None:
    """A chunk in words, if it says anything to a person."""
    match chunk:
        case TextDelta():
            print(chunk.payload.text, end="", flush=True)
        case BackgroundTaskRunning():
            print(f"  [{chunk.payload.tool_name} has begun]", flush=True)
        case BackgroundTaskOutput():
            print(f"  [{chunk.payload.tool_name}: {chunk.payload.payload['payload']['output']}]", flush=True)
        case ToolResult() if chunk.payload.tool_name in SEARCHES:
            print(f"  [{chunk.payload.tool_name}: {chunk.payload.result}]", flush=True)
        case Finish():
            print(flush=True)
        case _:
            pass


async def main(arguments: list[str]) -> None:
    """Leave and come back here, or do one of the two with what workers execute."""
    match arguments:
        case []:
            async with create_durable_agent(agent) as asked:
                await come_back(asked, *await leave(asked))
        case ["leave"]:
            async with research:
                await leave(research)
        case ["come-back", run_id, cursor]:
            async with research:
                await come_back(research, run_id, int(cursor))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
