"""Two calls that wait for a person: a refund that has to be approved, and a tool that asks what to write.

Run it as it stands, `.venv/bin/python examples/approvals.py`: everything happens in this process. Or let a worker
execute it, and answer from other terminals: `DURABLE_AGENTS=examples.approvals make dev`, then

    .venv/bin/durable run desk "Order 4711 came broken."
    .venv/bin/durable pending

The model is a script and needs no provider; it says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import create_durable_agent, create_evented_agent, resume_data, suspend
from durable.chunks import ToolCallApproval, ToolCallSuspended


class Letter(BaseModel):
    """What a person has to say."""

    words: str


async def _respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    returned = [part.model_response_str() for part in parts if isinstance(part, ToolReturnPart)]
    if returned:
        yield f"(This is a script, not a language model.) {'; '.join(returned)}."
    else:
        args = json.dumps({"order": "4711", "amount": 120})
        yield {1: DeltaToolCall(name="refund", json_args=args, tool_call_id="call-refund")}
        yield {2: DeltaToolCall(name="apologise", json_args='{"order": "4711"}', tool_call_id="call-apologise")}


agent = Agent(
    FunctionModel(stream_function=_respond, model_name="desk-script"),
    name="desk",
    description="Refunds orders, and apologises, if somebody lets it.",
)


@agent.tool_plain(requires_approval=True, metadata={"durable": {"expires_in": 86_400, "on_expiry": "decline"}})
def refund(order: str, amount: int) -> str:
    """Give money back."""
    return f"refunded {amount} for order {order}"


@agent.tool
def apologise(ctx: RunContext[object], order: str) -> str:
    """Write to the customer."""
    letter = resume_data(ctx, Letter)
    if letter is None:
        raise suspend({"question": f"What do we say about order {order}?"}, resume_schema=Letter)
    return f"wrote {letter.words!r}"


desk = create_evented_agent(agent)


async def main() -> None:
    """Ask, and answer as soon as somebody is asked; in real life these are different people on different days."""
    async with create_durable_agent(agent) as durable:
        run = await durable.stream("Order 4711 came broken.")
        async for chunk in run:
            match chunk:
                case ToolCallApproval():
                    print(f"{chunk.payload.tool_name} waits for approval: {chunk.payload.args}")
                    await run.approve(chunk.payload.tool_call_id, args={"order": "4711", "amount": 100}, actor="ada")
                case ToolCallSuspended():
                    print(f"{chunk.payload.tool_name} asks: {chunk.payload.suspend_payload}")
                    await run.resume(chunk.payload.tool_call_id, {"words": "We are sorry."}, actor="grace")
                case _:
                    pass
        for decision in (await run.status()).decisions or []:
            print(f"{decision.tool_name}: {decision.decision} by {decision.actor}")
        print((await run.result()).output)


if __name__ == "__main__":
    asyncio.run(main())
