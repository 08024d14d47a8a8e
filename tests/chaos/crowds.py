"""An agent with as many background tasks as its prompt says, of a tool of which a few may be executed at once."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any, Final

from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, UserPromptPart

from durable import create_evented_agent, tool_context
from tests.chaos.agents import Piece, calling, prompt_of, requests, scripted
from tests.chaos.effects import Effect, note

PLACES: Final = 3
"""Tasks that may be executed at a time."""


async def occupy(ctx: RunContext[Any], n: int) -> int:
    """Take a place for a while, and tell who did, from when to when."""
    call = tool_context(ctx)
    name = f"{os.getpid()} {call.idempotency_key}"
    note(Effect("begin", name, call.attempt))
    await asyncio.sleep(0.02 * (1 + n % 5))
    note(Effect("end", name, call.attempt))
    return n


def _turn(messages: list[ModelMessage]) -> Sequence[Piece]:
    if requests(messages):
        parts = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
        return [json.dumps(sorted(int(str(part.content).rpartition(": ")[2]) for part in parts[1:]))]
    return calling(*(("occupy", f"c{n}", {"n": n}) for n in range(int(prompt_of(messages)))))


crowd = create_evented_agent(
    Agent(
        scripted(_turn),
        name="crowd",
        tools=[Tool(occupy, metadata={"durable": {"background": True, "max_concurrency": PLACES}})],
    )
)
