"""A durable run in one process: no Redis, no worker, no server. Good for notebooks and tests.

The store is in memory here, and ends with the process. With `DURABLE_REDIS_URL` set, the same lines use Redis.
"""

from __future__ import annotations

import asyncio

from durable import create_durable_agent
from durable.chunks import TextDelta
from examples.agents import agent


async def main() -> None:
    """Ask, watch, and look at the result."""
    async with create_durable_agent(agent) as durable:
        run = await durable.stream("How warm is it in Lisbon in October?")
        async for chunk in run:
            if isinstance(chunk, TextDelta):
                print(chunk.payload.text, end="", flush=True)
        result = await run.result()
    print(f"\n\nrun {result.run_id}: {result.usage.total_tokens} tokens, {len(result.all_messages())} messages")


if __name__ == "__main__":
    asyncio.run(main())
