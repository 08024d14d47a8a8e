"""What the tasks of the benchmarks do, whoever executes them: our workers, or bare Celery (`bare.py`).

Each tells in Redis what it saw. How many are executed at a time is counted by the bodies alone, and knows nothing of
limits.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Final

from redis import Redis

from durable.settings import Settings

BEGUN: Final = "bench:begun"
"""A list of the moments at which `note` began."""
BUSY: Final = "bench:busy"
"""How many bodies are executed now."""
BODIES: Final = "bench:bodies"
"""A list: of each body that has ended, how many were executed when it had begun, and the moment of its end."""
LONGEST_SECONDS: Final = 30


def work(hold_ms: float) -> str:
    """Be counted, and take so long."""
    at_once = _redis().incr(BUSY)
    time.sleep(hold_ms / 1000)
    with _redis().pipeline(transaction=True) as pipe:
        pipe.decr(BUSY)
        pipe.rpush(BODIES, f"{at_once} {time.monotonic_ns()}")
        pipe.execute()
    return "done"


def note() -> None:
    """Tell when it was begun."""
    begun = time.monotonic_ns()
    _redis().rpush(BEGUN, begun)


def stay(until: str) -> str:
    """Stay until something is put into a list. Returns when it was begun and when it ended."""
    begun = time.monotonic_ns()
    _redis().blpop([until], timeout=LONGEST_SECONDS)
    return f"begun @{begun}@ done @{time.monotonic_ns()}@"


@cache
def _redis() -> Redis:
    """The client of this process."""
    return Redis.from_url(Settings().store_url)
