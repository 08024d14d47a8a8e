"""What one attempt may still use: tokens and seconds of its run, and seconds of each step.

Tokens are looked at before each model request. Seconds are a timer, which may run out in the middle of a step. The
run's seconds go on where the attempts before have stopped; the time of a step begins anew with each attempt at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from durable.chunks import BudgetReachedPayload
from durable.runs import RunRecord, RunRequest


class BudgetSpent(BaseException):
    """Raised between two steps of a run that has used up a budget. Not an error: no hook may heal it.

    Attributes:
        reached: Which budget.
    """

    def __init__(self, reached: BudgetReachedPayload) -> None:
        super().__init__(reached.budget)
        self.reached = reached


class Budget:
    """The limits of one attempt.

    Args:
        record: The run, as it was when it was claimed.
        request: What it is asked to do.
        step_seconds: Of each step, unless the request says otherwise; None for no limit.
        on_time: Called when the run's seconds are used up.
        on_step: Called when a step takes too long.
    """

    def __init__(
        self,
        record: RunRecord,
        request: RunRequest,
        step_seconds: float | None,
        *,
        on_time: Callable[[], None] = lambda: None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.ends = request.on_budget == "end"
        self._max_tokens = record.max_tokens
        self._max_seconds = record.max_seconds
        self._used_before = record.seconds_used
        self._step_seconds = request.step_seconds or step_seconds
        self._on_time = on_time
        self._on_step = on_step
        self._begun: float | None = None
        self._run_timer: asyncio.TimerHandle | None = None
        self._step_timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """How long the run was executed so far."""
        now = asyncio.get_running_loop().time()
        return self._used_before + (0.0 if self._begun is None else now - self._begun)

    def start(self) -> None:
        """The attempt begins, and with it its time."""
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        if self._max_seconds is not None:
            self._run_timer = loop.call_later(max(0.0, self._max_seconds - self._used_before), self._on_time)

    def stop(self) -> None:
        """The attempt is about to end: no time matters any more."""
        self.end_step()
        if self._run_timer is not None:
            self._run_timer.cancel()
            self._run_timer = None

    def begin_step(self) -> None:
        """A step begins; or an attempt goes on with one that was begun before. Harmless within a step."""
        if self._step_seconds is not None and self._step_timer is None:
            self._step_timer = asyncio.get_running_loop().call_later(self._step_seconds, self._on_step)

    def end_step(self) -> None:
        """The step has ended."""
        if self._step_timer is not None:
            self._step_timer.cancel()
            self._step_timer = None

    def reached(self, tokens: int) -> BudgetReachedPayload | None:
        """The budget that is used up, if one is.

        Args:
            tokens: That the run has used.
        """
        if self._max_tokens is not None and tokens >= self._max_tokens:
            return BudgetReachedPayload(budget="max_tokens", limit=self._max_tokens, used=tokens)
        if self._max_seconds is not None and self.seconds >= self._max_seconds:
            return self.out_of_time()
        return None

    def out_of_time(self) -> BudgetReachedPayload:
        """What is told of seconds that are used up."""
        limit = self._max_seconds or 0.0
        # A timer may come a moment before its time.
        return BudgetReachedPayload(budget="max_seconds", limit=limit, used=round(max(self.seconds, limit), 3))
