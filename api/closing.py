"""Telling open streams that the server goes.

A server waits for its open responses before it stops; streams of runs may stay open for days. So at the first signal to
stop they end, and their readers go on elsewhere from their cursors.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Closing:
    """Whether the server is about to stop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether it is."""
        return self._event.is_set()

    def begin(self) -> None:
        """It is. To be called in the event loop."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until it is."""
        await self._event.wait()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Begin at SIGTERM or SIGINT, before whoever handles them now. Does nothing outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.begin)
            before: Any = previous[signal.Signals(number)]
            if callable(before):
                before(number, frame)

        for number in previous:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
