"""Where a process spends its CPU time: a timer of CPU time interrupts it, and the code that it is in is noted."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Final, Self

INTERVAL_SECONDS: Final = 0.001


class Sampler:
    """Counts samples by place, as a context manager. For the main thread.

    Args:
        places: Pairs of a name and a part of a file's path. A sample counts for the first place, from the innermost
            frame outwards, that a frame lies in; `other` when there is none.
    """

    def __init__(self, places: Sequence[tuple[str, str]]) -> None:
        self.counts: Counter[str] = Counter()
        self._places = places
        self._before: object = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)

    def shares(self) -> list[tuple[str, float]]:
        """Each place with its share of all samples, largest first."""
        total = sum(self.counts.values()) or 1
        return [(name, count / total) for name, count in self.counts.most_common()]

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        while frame is not None:
            path = frame.f_code.co_filename
            for name, part in self._places:
                if part in path:
                    self.counts[name] += 1
                    return
            frame = frame.f_back
        self.counts["other"] += 1
