"""Whether, and when, a service that ended by itself is started again.

Invariant: a service that dies at once, again and again, is given up; one that was killed by hand now and then never is.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

QUICK_SECONDS: Final = 10.0
"""A service that ended earlier after its start than this died quickly."""
MOST_QUICK_DEATHS: Final = 5
"""So many quick deaths in a row are forgiven."""
LONGEST_PAUSE: Final = 8.0
HOPELESS: Final = frozenset({78})
"""Exit codes of a service that is not set up: starting it again won't help."""


@dataclass
class Comeback:
    """The deaths of one service."""

    quick_deaths: int = 0

    def pause_after(self, exit_code: int, lived_seconds: float) -> float | None:
        """Count a death.

        Args:
            exit_code: As of `subprocess`: negative after a signal.
            lived_seconds: For how long it ran.

        Returns:
            Seconds until it is started again; None to give it up.
        """
        if exit_code in HOPELESS:
            return None
        self.quick_deaths = self.quick_deaths + 1 if lived_seconds < QUICK_SECONDS else 0
        if self.quick_deaths > MOST_QUICK_DEATHS:
            return None
        return min(LONGEST_PAUSE, 2.0 ** (self.quick_deaths - 2)) if self.quick_deaths > 1 else 0.0


def end_of(name: str, exit_code: int) -> str:
    """How a service ended, in words."""
    if exit_code >= 0:
        return f"{name} ended with code {exit_code}"
    number = -exit_code
    if number in {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}:
        return f"{name} was killed (signal {number})"
    return f"{name} crashed (signal {number})"
