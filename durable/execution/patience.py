"""How long a tool call is waited for, and what a call that was given up may still do: nothing.

An asynchronous tool is interrupted. A synchronous one can't be: its thread goes on, but nobody waits for it any more.
Invariant: what a call says after it was given up never gets into the run's log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from durable.chunks import Chunk
from durable.errors import ConfigurationError, LeaseLost


class ToolTimedOut(Exception):
    """A tool took longer than its `timeout`.

    Attributes:
        seconds: The timeout.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"longer than {seconds:g} s")
        self.seconds = seconds


class Voice:
    """What a call says while it is made.

    Args:
        write: Puts a chunk into the run's log.
    """

    def __init__(self, write: Callable[[Chunk], None]) -> None:
        self._write = write
        self._given_up = False

    def __call__(self, chunk: Chunk) -> None:
        """Put a chunk into the run's log.

        Raises:
            LeaseLost: The call was given up.
        """
        if self._given_up:
            raise LeaseLost("This call was given up; nobody waits for it any more.")
        self._write(chunk)

    @asynccontextmanager
    async def waited_for(self, seconds: float | None) -> AsyncIterator[None]:
        """Make the call, for so long at most.

        Raises:
            ToolTimedOut: It took longer.
        """
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield
        except asyncio.CancelledError:
            self._given_up = True
            raise
        except Exception as error:
            if seconds is None or not limit.expired():
                raise
            self._given_up = True
            raise ToolTimedOut(seconds) from error


def timeout_of(options: Mapping[str, Any]) -> float | None:
    """The `timeout` of a tool's `durable` metadata, in seconds; None for no limit.

    Raises:
        ConfigurationError: It is not a number above 0.
    """
    seconds = options.get("timeout")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigurationError("A tool's timeout is a number of seconds above 0.")
    return float(seconds)
