"""Telling a client's owner that the server does not answer, and that it does again.

Invariant: an outage is told once, however many requests meet it, and only when it has lasted a while; its end is told
once, and only if its beginning was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from durable.errors import DurableError

log = logging.getLogger(__name__)

NOTICE_SECONDS: Final = 2.0
"""A shorter outage is nobody's business."""

OnOutage: TypeAlias = Callable[[DurableError | None], None]
"""Told what is wrong, and None when it is over."""


class Outage:
    """Whether the server of one client answers.

    Args:
        server: How the log calls it.
        tell: Who is told; the log by default.
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, server: str, tell: OnOutage | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._tell = tell or self._log
        self._clock = clock
        self._since: float | None = None
        self._told = False

    async def pause(self, seconds: float, failure: DurableError, *, since: float | None = None) -> None:
        """Wait before the next try, and tell of the outage meanwhile, if it has come to that.

        Args:
            seconds: How long to wait.
            failure: What the last try ended with.
            since: When that try began, if there was never an answer to it; now by default.
        """
        now = self._clock()
        if self._since is None:
            self._since = now if since is None else since
        ahead = max(0.0, self._since + NOTICE_SECONDS - now)
        if not self._told and ahead <= seconds:
            await asyncio.sleep(ahead)
            seconds -= ahead
            self._announce(failure)
        await asyncio.sleep(seconds)

    def over(self) -> None:
        """There was an answer."""
        self._since = None
        if self._told:
            self._told = False
            self._tell(None)

    def _announce(self, failure: DurableError) -> None:
        if self._since is not None and not self._told:  # else it is over, or was told by another in the meantime
            self._told = True
            self._tell(failure)

    def _log(self, failure: DurableError | None) -> None:
        if failure is None:
            log.warning("%s answers again", self._server)
        else:
            log.warning("%s does not answer (%s); trying again", self._server, failure.code)
