"""Looking for what somebody outside has done to a run, when it is said that there is something.

Invariant: one look is under way at most, and one more is wanted at most, however often it is said. Whatever was said
before a look began is found by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Lookout:
    """Looks for one attempt.

    Args:
        look: Looks once; raises nothing.
    """

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._wanted = False
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def look_soon(self) -> None:
        """Look as soon as no look is under way, without being waited for."""
        if self._ended:
            return
        self._wanted = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._go_on(), name="look")

    def end(self) -> None:
        """Look no more."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()

    async def _go_on(self) -> None:
        try:
            while self._wanted:
                self._wanted = False
                await self._look()
        finally:
            self._task = None
