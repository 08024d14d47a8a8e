"""How long to wait before the next try: longer each time, at random, never beyond a cap.

Invariant: clients that lost the same server at the same moment do not come back at the same moment.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Backoff:
    """The plan.

    Attributes:
        first: The longest first pause, in seconds.
        cap: The longest pause of all, in seconds. What a server asks for by `Retry-After` may be longer.
        patience: For how many seconds to go on trying without any success; None is for ever.
    """

    first: float = 0.25
    cap: float = 8.0
    patience: float | None = 60.0

    def start(self) -> Tries:
        """Count tries from now on."""
        return Tries(self)


@dataclass(slots=True)
class Tries:
    """The tries of one undertaking."""

    plan: Backoff
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    _deadline: float | None = field(default=None, init=False)

    def succeeded(self) -> None:
        """Begin anew: the next failure counts as the first."""
        self.failures = 0
        self._deadline = None

    def reached(self) -> None:
        """There was an answer, though no success: patience begins anew, and the pauses go on growing."""
        self._deadline = None

    def pause(self, *, at_least: float = 0) -> float | None:
        """Count a failure.

        Args:
            at_least: What the server asked for, in seconds.

        Returns:
            How long to wait before the next try, in seconds; None when patience is at its end.
        """
        now = self.clock()
        if self._deadline is None and self.plan.patience is not None:
            self._deadline = now + self.plan.patience
        longest = min(self.plan.cap, self.plan.first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        delay = at_least + _RANDOM.uniform(0, longest)
        return None if self._deadline is not None and now + at_least >= self._deadline else delay
