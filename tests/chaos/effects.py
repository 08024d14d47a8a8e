"""What tools and models did to the world outside: one line each in a file that no crash takes back.

A line is written with one `write` to a file opened for appending, so lines of many processes never mix.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import orjson

VARIABLE: Final = "CHAOS_EFFECTS"
"""The environment variable that names the file. Nothing is noted without it."""


@dataclass(frozen=True)
class Effect:
    """Something that was done.

    Attributes:
        kind: The tool's name, or `model` for a request.
        key: The idempotency key of the call, or the number of the request.
        attempt: The attempt that did it.
        at: When, in seconds since 1970.
    """

    kind: str
    key: str
    attempt: int = 0
    at: float = field(default_factory=time.time)


def note(effect: Effect) -> None:
    """Write an effect down."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, orjson.dumps(asdict(effect)) + b"\n")
    finally:
        os.close(file)


def of_this_process() -> list[Effect]:
    """All effects in the file that this process notes its own in."""
    return read(Path(os.environ[VARIABLE]))


def read(path: Path) -> list[Effect]:
    """All effects in a file, in the order in which they were written; none when there is no file."""
    if not path.exists():
        return []
    return [Effect(**orjson.loads(line)) for line in path.read_bytes().splitlines()]
