"""Which runs may be executed beside which others in one process.

A process that is killed costs every run that it executes an attempt, whichever of them killed it. So the last attempt
at a run that was lost before is made alone: no other run begins, those under way end or are handed back between two
steps, and only then it is claimed. Once it has got on, or has ended, others begin again. Several such runs take turns.

Invariant: a run that waits here holds no lease, so a process that is killed meanwhile costs it nothing. Nothing waits
for ever: a run under way that is in the middle of a step is waited for, since to interrupt it there means to pay for
its response again; but after `PATIENCE` leases the last attempt is made beside it. Otherwise it would never be made
where steps are long, or where the run under way waits for this very run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Final

PATIENCE: Final = 10
"""Leases that a run waits, at most, for the middle of other runs' steps."""
LOOK_SECONDS: Final = 0.5
"""How often a run that waits for its turn to begin is looked at: somebody else may have executed or cancelled it."""


class Isolation:
    """Lets runs begin beside each other, or one of them alone.

    Args:
        patience: Seconds that a run to be executed alone waits, at most, for those under way.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._present = 0
        self._at_gate: set[str] = set()
        self._turns: list[Turn] = []
        self._open = False
        self._changed = asyncio.Event()

    def at_gate(self, run_id: str) -> bool:
        """Whether the run waits until others may begin."""
        return run_id in self._at_gate

    def awaits(self, run_id: str) -> bool:
        """Whether the run waits, for others to begin or for its turn."""
        return run_id in self._at_gate or any(turn.run_id == run_id for turn in self._turns)

    def open(self) -> None:
        """Let everybody through, for good: nobody begins any more, so nobody need wait."""
        self._open = True
        self._changed.set()

    @asynccontextmanager
    async def beside_others(self, run_id: str) -> AsyncIterator[None]:
        """Wait until no run is to be executed alone. The run then counts as under way until the end of the context."""
        self._at_gate.add(run_id)
        try:
            await self._until(lambda: not self._turns)
        finally:
            self._at_gate.discard(run_id)
        with self._under_way():
            yield

    @asynccontextmanager
    async def turn(self, run_id: str) -> AsyncIterator[Turn]:
        """Let no other run begin, and wait until it is this one's turn. It counts as under way from then on."""
        turn = Turn(run_id, self)
        self._turns.append(turn)
        try:
            await self._until(lambda: self._turns[0] is turn)
            with self._under_way():
                turn.patient_until = monotonic() + self._patience
                yield turn
        finally:
            self.lift(turn)

    async def alone(self, turn: Turn) -> bool:
        """Wait a moment for those under way; whether there are none left, or it was waited for them long enough."""
        moment = min(LOOK_SECONDS, turn.patient_until - monotonic())
        try:
            async with asyncio.timeout(moment):
                await self._until(lambda: self._present == 1)
        except TimeoutError:
            return monotonic() >= turn.patient_until
        return True

    def lift(self, turn: Turn) -> None:
        """The run of this turn need not be alone any more. Repeating the call is harmless."""
        if turn in self._turns:
            self._turns.remove(turn)
            self._changed.set()

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1
            self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not self._open and not condition():
            self._changed.clear()
            await self._changed.wait()


class Turn:
    """A run's right to be the only one that is executed.

    Attributes:
        run_id: The run.
        patient_until: `time.monotonic()` until which it waits for those under way.
    """

    def __init__(self, run_id: str, isolation: Isolation) -> None:
        self.run_id = run_id
        self.patient_until = 0.0
        self._isolation = isolation

    async def alone(self) -> bool:
        """Wait a moment for those under way; whether the run may begin now."""
        return await self._isolation.alone(self)

    def lift(self) -> None:
        """Let others begin: the run has got on."""
        self._isolation.lift(self)
