"""What a run tells the run that has started it while it is executed: that it is, and what its tool says.

What a tool says is gathered for a while and told together; of very much, only the newest. Invariant: nothing of it is
told after the run's end, nor twice, nor by whoever has lost the run.

A run that is nested tells all that it writes: the script takes that from its log, so that order and seqs are those of
the log and nothing is left out, also where another attempt goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import Final

from durable.chunks import Chunk, ToolOutput, encode_body
from durable.errors import StoreUnavailable
from durable.leases import Lease
from durable.probes import Point, Probe, silent
from durable.runs.reports import Report
from durable.scripts import MIRROR, Arg
from durable.store import Store

log = logging.getLogger(__name__)

PAUSE: Final = 0.25
"""Seconds for which a tool's words are gathered."""
MOST: Final = 50
"""Of the words of one such time, at most so many are told."""


class Mirror:
    """Tells a parent of one attempt at its child.

    Args:
        store: Where both are.
        lease: The attempt's.
        report: Words it.
        probe: Passed at each point.
        nested: Whether all that the run writes is told.
    """

    def __init__(
        self, store: Store, lease: Lease, report: Report, probe: Probe = silent, *, nested: bool = False
    ) -> None:
        self.report = report
        self._probe = probe
        self._store = store
        self._lease = lease
        self._waiting: deque[Chunk] = deque(maxlen=MOST)
        self._nested = nested
        self._news = False
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def tell(self, *chunks: Chunk) -> None:
        """Write chunks to the parent's log. Nothing is lost but news if Redis does not answer."""
        self._probe(Point.MIRROR_BEFORE)
        self._number += 1
        bodies = b"\n".join(encode_body(chunk) for chunk in chunks)
        args: list[Arg] = [self._lease.run_id, self._lease.token, self._number, bodies]
        try:
            await self._store.run(MIRROR, [self._store.keys.run(self._lease.run_id)], args)
        except StoreUnavailable:
            log.info("run %s: its parent is not told what it does", self._lease.run_id)
        self._probe(Point.MIRROR_AFTER)

    def hear(self, chunk: Chunk) -> None:
        """Take what the run writes to its own log."""
        if isinstance(chunk, ToolOutput) and not self._nested:
            self._waiting.append(self.report.output(chunk))
            self._tell_soon()

    def stored(self) -> None:
        """The run's own log has more."""
        if self._nested:
            self._news = True
            self._tell_soon()

    async def flush(self) -> None:
        """Tell what waits."""
        if self._task is not None:
            self._hurry.set()
            await self._task

    def end(self) -> None:
        """Tell no more."""
        if self._task is not None:
            self._task.cancel()

    def _tell_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell_all(), name="mirror")

    async def _tell_all(self) -> None:
        """One after the other: a message that is sent again is known by the number of the last one."""
        while self._waiting or self._news:
            with suppress(TimeoutError):
                async with asyncio.timeout(PAUSE):
                    await self._hurry.wait()
            chunks = list(self._waiting)
            self._waiting.clear()
            self._news = False
            await self.tell(*chunks)
