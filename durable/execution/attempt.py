"""One attempt at a run, from its claim to its end.

An attempt ends in one of four ways: the run ends (completed, failed, cancelled), it waits for somebody or for its
tasks, it is handed back to the queue (at once, or to be tried again later), its lease is lost. Only the owner of the
lease writes; whoever lost it just stops.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Final
from uuid import uuid4

from pydantic_ai.exceptions import RunCancelled

from durable.chunks import (
    AbortPayload,
    BackgroundTaskProgress,
    BudgetReached,
    BudgetReachedPayload,
    Chunk,
    ErrorInfo,
    Start,
    StartPayload,
    TaskProgressPayload,
)
from durable.chunks.base import Json
from durable.client.backoff import Backoff, Tries
from durable.decisions import RunAnswers
from durable.definition import AgentDefinition, RunInfo
from durable.errors import LeaseLost
from durable.execution.budget import Budget, BudgetSpent
from durable.execution.delegation import Delegation, ReadIdling, Submit
from durable.execution.dependencies import dependencies
from durable.execution.endings import Endings
from durable.execution.failures import describe, places
from durable.execution.leftovers import Leftovers
from durable.execution.lookout import Lookout
from durable.execution.mirror import Mirror
from durable.execution.record import CallRecord
from durable.execution.recording import Again
from durable.execution.retrying import Postponement, postponement
from durable.execution.start import StartPoint
from durable.execution.turn import MISSING, Turn, TurnEnd
from durable.execution.waits import Waits
from durable.probes import Point, Probe, silent
from durable.runs import BACKGROUND, BUDGET_REACHED, RunRecord, RunRequest
from durable.scripts import Arg
from durable.settings import Settings
from durable.suspension import RunSuspended
from durable.translate.steps import usage_of
from durable.writer import Ending, RunWriter

log = logging.getLogger(__name__)

EXHAUSTED = ErrorInfo(
    code="attempts_exhausted",
    message="Each attempt at this run was lost with its worker, without any progress. It is not tried again.",
)

STEP_TIMEOUT = ErrorInfo(code="step_timeout", message="A step took longer than its time limit.")
LONGEST_PAUSE: Final = 30.0
"""Seconds, before a background task is made again."""
UNASKED = ErrorInfo(
    code="internal_error", message="A tool call of this run waits, and nobody was asked: it would wait for ever."
)
UNREADABLE = ErrorInfo(code="run_unreadable", message="What is stored of this run can't be read by this version.")


class Stop(StrEnum):
    """Why somebody stops an attempt from outside."""

    CANCEL = "cancel"
    OUT_OF_TIME = "out-of-time"
    STEP_TIMEOUT = "step-timeout"
    HAND_BACK = "hand-back"
    LOST = "lost"


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    HANDED_BACK = "handed-back"
    POSTPONED = "postponed"
    SUSPENDED = "suspended"
    LOST = "lost"


ENDS: Final = frozenset({Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED})
"""The outcomes after which there is nothing left of the run to execute."""


class HandOver(Exception):
    """Raised between two steps, to hand the run over there."""


class Attempt:
    """Executes a claimed run, once.

    Args:
        definition: The agent.
        record: The run, as it was when it was claimed.
        request: What it is asked to do.
        start: What earlier attempts have left.
        writer: Writes to its log, under the attempt's lease.
        settings: Limits.
        asked: Tells what was said when the run was cancelled.
        answers: What is answered to tool calls that wait.
        suspend: Lets the run wait, and tells so, unless there are more answers than those that were seen.
        submit: Starts a run of its own for a call of this one.
        leftovers: Makes what closes the calls that the run goes on without.
        waiting: Tells which calls of the run wait, as callers see them.
        read_idling: Tells for how long the run waits for its tasks, by what was said since it was submitted, and
            whether it has waited for so long.
        mirror: Tells the run that has started this one.
        hopeless: Why the run can only fail.
        threads: Where guardrails, scorers and judges are called that are not asynchronous.
        probe: Passed at each point.

    Attributes:
        thread_id: The run's thread, if it has one.
        postponed: When the run is tried again, if the attempt ended so.
        lookout: Is told when somebody has answered a call of the run.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        record: RunRecord,
        request: RunRequest,
        start: StartPoint,
        writer: RunWriter,
        settings: Settings,
        *,
        asked: Callable[[], Awaitable[AbortPayload]],
        answers: RunAnswers,
        suspend: Callable[..., Awaitable[str]],
        submit: Submit,
        leftovers: Callable[[CallRecord], Leftovers],
        waiting: Callable[[], Awaitable[list[Json]]],
        read_idling: ReadIdling,
        mirror: Mirror | None = None,
        hopeless: ErrorInfo | None = None,
        threads: Executor | None = None,
        probe: Probe = silent,
    ) -> None:
        self.run_id = record.run_id
        self.thread_id = record.thread_id
        self._asked = asked
        self._suspend_run = suspend
        self._hopeless = hopeless
        self.postponed: Postponement | None = None
        self._retries = request.retries or 0
        self._definition = definition
        self._record = record
        self._deps = request.deps
        self._writer = writer
        self._settings = settings
        self._probe = probe
        self._budget = Budget(
            record,
            request,
            definition.step_seconds,
            on_time=lambda: self.stop(Stop.OUT_OF_TIME),
            on_step=lambda: self.stop(Stop.STEP_TIMEOUT),
        )
        self._waiting = waiting
        self._mirror = mirror
        self._read_idling = read_idling
        self._has_begun = start.tail.begun
        self._call = request.tool_call
        self._turn = Turn(
            definition,
            request,
            start,
            writer,
            settings,
            self._boundary,
            answers,
            self._budget,
            partial(self._delegation, request, start, submit),
            leftovers,
            0 if self._call is None else self._call.retries - record.retries_used,
            (lambda _: None) if mirror is None else mirror.hear,
            threads,
            probe,
        )
        self._endings = Endings(
            definition, record, request, start.conversation, self._turn, None if mirror is None else mirror.report
        )
        if mirror is not None:
            writer.on_stored = mirror.stored
        self.lookout = Lookout(self._look)
        self._task: asyncio.Task[Outcome] | None = None
        self._begun = False
        self._closing = False
        self._stopped_by: Stop | None = None
        self._yielding = False

    def _delegation(
        self, request: RunRequest, start: StartPoint, submit: Submit, waits: Waits, told: Sequence[str]
    ) -> Delegation:
        return Delegation(
            self._definition,
            self._record,
            request,
            self._settings,
            self._writer,
            start.ledger,
            waits,
            told,
            submit,
            self._probe,
            self._read_idling,
        )

    def start(self) -> asyncio.Task[Outcome]:
        """Begin, as a task of its own."""
        self._task = asyncio.get_running_loop().create_task(self._drive(), name=f"run-{self.run_id}")
        return self._task

    def stop(self, why: Stop) -> None:
        """End the attempt soon. The first reason stands, but a lost lease overrides all.

        One that is about to write how it ends is not interrupted there: the script that ends a run knows of a cancel.
        """
        if why is Stop.LOST:
            self._writer.fail(LeaseLost())
        elif self._stopped_by is not None:
            return
        self._stopped_by = why
        if self._task is not None and self._begun and not self._closing:
            self._task.cancel()

    @property
    def has_parent(self) -> bool:
        """Whether another run has started this one."""
        return self._mirror is not None

    def yield_soon(self) -> None:
        """Hand the run back between two steps, where nothing is torn."""
        self._yielding = True

    async def _drive(self) -> Outcome:
        # A task that is cancelled before its first step never gets here: who stops it so early is heeded here instead.
        self._begun = True
        if self._stopped_by is not None:
            self._close()
            return await self._stop()
        self._budget.start()
        try:
            return await self._execute()
        except GeneratorExit:
            raise  # the event loop is gone
        except BaseException as raised:  # noqa: BLE001 - whatever it was, the run must end, or go on elsewhere
            try:
                return await self._after(raised)
            except LeaseLost:
                return Outcome.LOST
            except asyncio.CancelledError:
                # The run has ended, or waits, and the lease went with that: a renewal noticed before its answer came.
                if not self._was_lost():
                    raise
                return Outcome.LOST
        finally:
            self.lookout.end()
            if self._mirror is not None:
                self._mirror.end()

    async def _after(self, raised: BaseException) -> Outcome:
        """What the attempt ends with, after something was raised."""
        self._close()
        match raised:
            case asyncio.CancelledError():
                return await (self._settle(self._endings.failed(describe(raised))) if self._stray() else self._stop())
            case LeaseLost():
                return Outcome.LOST
            case HandOver():
                return await self._hand_over()
            case RunSuspended():
                return await self._wait(raised)
            case Again():
                return await self._try_again(raised)
            case BudgetSpent():
                return await self._spent(raised.reached)
            case RunCancelled():
                return await self._settle(self._endings.cancelled(await self._asked()))
            case _:
                return await self._fail(raised)

    async def _fail(self, raised: BaseException) -> Outcome:
        """End the run as failed, or put it off if its model's provider may answer later."""
        reason = self._turn.record.reason(raised)
        place = places(reason)  # none for what was not raised here, as a recorded failure of a tool
        log.warning("run %s failed: %s%s", self.run_id, type(reason).__name__, f" at {place}" if place else "")
        used = 0 if self._turn.record.advanced else self._record.retries_used
        self.postponed = postponement(reason, retries=self._retries, used=used)
        if self.postponed is not None:
            return await self._hand_over(Outcome.POSTPONED)
        return await self._settle(self._endings.failed(describe(reason)))

    async def _try_again(self, raised: Again) -> Outcome:
        """Put off a background task whose tool has raised."""
        kind, call, used = type(raised.__cause__).__name__, self._call, self._record.retries_used
        seconds = 1.0 if call is None else call.retry_seconds
        pause = Tries(Backoff(first=seconds, cap=LONGEST_PAUSE, patience=None), failures=used).pause()
        name = "" if call is None else call.tool_name
        error = ErrorInfo(code="tool_failed", message=f"The tool {name!r} raised {kind}.", name=kind)
        self.postponed = Postponement(pause or 0.0, error, used + 1)
        return await self._hand_over(Outcome.POSTPONED)

    async def _wait(self, raised: RunSuspended) -> Outcome:
        """Wait for somebody outside, or for a background task."""
        fields: dict[str, Arg] = {"reason": raised.reason}
        chunks: list[Chunk] = self._turn.turn_of_caller()
        if raised.turn_ended:
            tasks = self._turn.delegation.outstanding
            payload = TaskProgressPayload(task_ids=tasks, running_count=len(tasks), elapsed_ms=0)
            chunks = [*self._turn.turn_ended(), BackgroundTaskProgress(payload=payload)]
            fields["idleMs"] = int((self._turn.delegation.max_idle or 0) * 1000)
        return await self._suspend(fields, *chunks, asking=raised.reason != BACKGROUND)

    async def _execute(self) -> Outcome:
        if self._record.cancel_requested:
            return await self._settle(self._endings.cancelled(await self._asked()))
        # Others may have written to the log before: a task that a retry has taken over.
        if self._record.last_seq == self._record.watched or not self._has_begun:
            self._writer.write(Start(payload=StartPayload(id=self._definition.name, message_id=str(uuid4()))))
        if self._mirror is not None:
            await self._announce(self._mirror)
        if self._hopeless is not None:
            return await self._settle(self._endings.failed(self._hopeless))
        if (reached := self._budget.reached(tokens=0)) is not None:
            raise BudgetSpent(reached)  # its time: nothing may be begun
        metadata, token = self._record.json("metadata") or {}, self._writer.lease.token
        info = RunInfo(self.run_id, self._definition.name, token, metadata, self._deps)
        async with dependencies(self._definition, info) as deps:
            end = await self._turn.run(info, deps)
        return await self._settle(self._endings.completed(end))

    async def _announce(self, mirror: Mirror) -> None:
        """Tell the run that has started this one that it is executed."""
        fields = self._record.fields
        if "mirrored" not in fields or "wasSuspended" in fields:
            await mirror.tell(mirror.report.running(again="wasSuspended" in fields))

    def _close(self) -> None:
        """From now on only how the attempt ends is written."""
        self._closing = True
        self._budget.stop()

    def _boundary(self, *, advanced: bool, ending: bool) -> None:
        if self._stopped_by is not None:
            raise asyncio.CancelledError  # the agent's own code has swallowed the one that stopped it
        if (self._yielding and not ending) or (advanced and self._settings.always_resume):
            raise HandOver

    def _was_lost(self) -> bool:
        """Whether the attempt was stopped because its lease is gone."""
        return self._stopped_by is Stop.LOST

    def _stray(self) -> bool:
        """Whether a cancellation is nobody's: the agent's own code has raised it."""
        return self._stopped_by is None and self._task is not None and not self._task.cancelling()

    async def _hand_over(self, outcome: Outcome = Outcome.HANDED_BACK) -> Outcome:
        try:
            await self._writer.flush()
        except LeaseLost:
            return Outcome.LOST
        if self._mirror is not None:
            await self._mirror.flush()
        return outcome

    @property
    def seen(self) -> int:
        """How many answers to its calls this attempt knows of."""
        return self._turn.waits.seen

    async def _look(self) -> None:
        try:
            await self._turn.waits.look()
        except Exception as error:  # noqa: BLE001 - what is not seen now keeps the run from being suspended
            log.warning("run %s: its answers can't be read: %s", self.run_id, type(error).__name__)

    async def _spent(self, reached: BudgetReachedPayload) -> Outcome:
        """The run has used up a budget: it ends, or waits until that is raised."""
        if self._budget.ends:
            # In the middle of a step: nobody has judged what the model said last.
            guarded = bool(self._definition.output_guardrails)
            return await self._settle(self._endings.completed(TurnEnd(MISSING, budget=reached), withheld=guarded))
        fields: dict[str, Arg] = {"reason": BUDGET_REACHED, "budget": reached.model_dump_json(by_alias=True)}
        return await self._suspend(fields, BudgetReached(payload=reached), asking=False)

    async def _suspend(self, fields: dict[str, Arg], *chunks: Chunk, asking: bool) -> Outcome:
        """Give the run up until somebody answers; go on at once if somebody just has."""
        await self._writer.flush()
        usage = usage_of(self._turn.usage).model_dump_json(by_alias=True, exclude_none=True)
        if self._mirror is not None:
            await self._mirror.flush()
            told = self._mirror.report.suspended(await self._waiting())
            fields = {**fields, **told, "wasSuspended": "1"}
        self._probe(Point.SUSPEND_BEFORE)
        verdict = await self._suspend_run(
            self._turn.waits.judged, {**fields, "usage": usage, **self._endings.said(whole=True)}, chunks, asking=asking
        )
        self._probe(Point.SUSPEND_AFTER)
        match verdict:
            case "suspended":
                return Outcome.SUSPENDED
            case "cancel":
                return await self._settle(self._endings.cancelled(await self._asked()))
            case "decided":
                return Outcome.HANDED_BACK
            case "unasked":
                return await self._settle(self._endings.failed(UNASKED))
            case _:
                return Outcome.LOST

    async def _stop(self) -> Outcome:
        match self._stopped_by:
            case Stop.CANCEL:
                return await self._settle(self._endings.cancelled(await self._asked()))
            case Stop.OUT_OF_TIME:
                return await self._spent(self._budget.out_of_time())
            case Stop.STEP_TIMEOUT:
                return await self._settle(self._endings.failed(STEP_TIMEOUT))
            case Stop.LOST:
                return Outcome.LOST
            case _:
                return await self._hand_over()

    async def _settle(self, end: tuple[Ending, list[Chunk]]) -> Outcome:
        """Write the end of the run. A cancel that came before wins over completing and failing. A run that completes
        leaves no call open; for one that fails or is cancelled, answers count: a retry makes the calls."""
        self._close()
        ending, chunks = end
        if self._mirror is not None:
            await self._mirror.flush()
        try:
            verdict = await self._writer.finish(ending, *chunks)
            if verdict == "open":
                await self._turn.leftovers.close()
                verdict = await self._writer.finish(replace(ending, closed=False), *chunks)
            if verdict == "unheard":
                return Outcome.HANDED_BACK  # the next attempt goes on from the response that is there
            if verdict != "cancel":
                return Outcome(ending.status)
            cancelled, chunks = self._endings.cancelled(await self._asked())
            await self._writer.finish(cancelled, *chunks)
        except LeaseLost:
            return Outcome.LOST
        return Outcome.CANCELLED
