"""Calls that the run goes on, or completes, without: the model's final result came first.

Invariant: once it is known that a call will not be made, nobody can answer it any more, and whoever has just answered
it is told in the log. Both count in every attempt: a call that was closed so is not made after a takeover either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from durable import ledger
from durable.decisions import RUN, Answer, Call
from durable.errors import StoreUnavailable
from durable.execution.failures import ToolFailure
from durable.execution.record import CallRecord
from durable.writer import RunWriter

UNNEEDED: Final = Answer(kind="decline", reason="The run went on without this call.", actor=RUN)
NOT_CALLED: Final = "The run went on without this call before its answer could be used. The call was not made."
RETRY_SECONDS: Final = 0.2
"""How long Redis is waited for before it is asked again."""

ReadOpen = Callable[[], Awaitable[list[Call]]]
Settle = Callable[[str, tuple[int, int], Answer], Awaitable[Answer]]


class Leftovers:
    """The calls of an attempt that are left over.

    Args:
        writer: Writes to the run's log, under the attempt's lease.
        record: What is recorded of the calls.
        read_open: Reads which calls wait for an answer, or have one and were not made.
        settle: Answers one unless it has an answer; gives the one that stands.
    """

    def __init__(self, writer: RunWriter, record: CallRecord, read_open: ReadOpen, settle: Settle) -> None:
        self._writer = writer
        self._record = record
        self._read_open = read_open
        self._settle = settle

    async def close(self) -> None:
        """Close what is open of the run's calls: none of them will be made any more.

        Raises:
            LeaseLost: The run has another owner.
        """
        while True:
            await self._writer.flush()  # what was made is stored, and the lease is still ours
            try:
                await self._close()
            except StoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return await self._writer.flush()

    async def _close(self) -> None:
        for call in await self._read_open():
            if call.step != self._record.step or self._record.has_outcome(call.tool_call_id):
                continue  # its result came from the agent's own code, or in place of the call
            standing = call.answer or await self._settle(call.tool_call_id, call.place, UNNEEDED)
            if standing.kind != "decline":
                self._tell(call)

    def _tell(self, call: Call) -> None:
        """Somebody was faster. That the answer came to nothing is what the call has come to."""
        failure = ToolFailure(call.question.tool_name, "not_called", NOT_CALLED)
        entry = ledger.encode(ledger.Outcome(failed=NOT_CALLED))
        self._record.failed(call.tool_call_id, call.round + 1, failure, entry)
