"""Submit a run over HTTP, leave in the middle, and come back for the rest.

Needs a server: start one with `make dev`, then run `.venv/bin/python examples/client.py`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from durable import Client, fold_text


async def submit_and_leave() -> tuple[str, int]:
    """Ask, read a few chunks, and go. The run's id and the last seq are all that one needs to come back."""
    async with Client() as client:
        run = await client.submit("weather", "Where is it warmer in October, in Lisbon or in Oslo?")
        cursor = 0
        async with aclosing(client.observe(run.run_id)) as chunks:
            async for chunk in chunks:
                cursor = chunk.seq
                if cursor == 5:
                    break
    return run.run_id, cursor


async def come_back(run_id: str, cursor: int) -> None:
    """Read what is missing, whether it was written in the meantime or is yet to come."""
    async with Client() as client:
        chunks = [chunk async for chunk in client.observe(run_id, after=cursor)]
        print(f"chunks {chunks[0].seq} to {chunks[-1].seq}:")
        print(fold_text(chunks))
        run = await client.wait(run_id)
        print(f"the run is {run.status}")


async def main() -> None:
    """Both, one after the other; in real life they are different programs on different days."""
    run_id, cursor = await submit_and_leave()
    print(f"run {run_id}: left after chunk {cursor}")
    await come_back(run_id, cursor)


if __name__ == "__main__":
    asyncio.run(main())
