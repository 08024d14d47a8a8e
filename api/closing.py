"""Ending open streams when the server is told to stop.

A server waits for its open responses before it stops; streams of runs may stay open for days. So at the first signal to
stop they end, and their readers go on elsewhere from their cursors.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def on_stop_signals(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in the event loop at SIGTERM or SIGINT, before whoever handles them now. Does nothing outside of the
    main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
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
