"""What a process executes runs with: its appender, its leases, its ear for cancels, and the attempts under way.

An engine belongs to one event loop. It claims a run before it touches it, and gives back what it can't finish.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from pydantic_ai import Agent

from durable.appender import Appender
from durable.chunks import AbortPayload, ErrorInfo
from durable.chunks.base import Json
from durable.conversation import Conversation
from durable.decisions import Decisions, RunAnswers
from durable.definition import AgentDefinition
from durable.errors import DurableError, StoreUnavailable
from durable.execution.attempt import ENDS, EXHAUSTED, UNREADABLE, Attempt, Outcome, Stop
from durable.execution.failures import places
from durable.execution.isolation import PATIENCE, Isolation
from durable.execution.leftovers import Leftovers
from durable.execution.mirror import Mirror
from durable.execution.retrying import Postponement
from durable.execution.start import StartPoint
from durable.execution.threads import ToolThreads
from durable.leases import ALONE, Lease, LeaseKeeper, Refusal, claim, release, suspend
from durable.probes import Point, Probe, silent
from durable.runs import WAKE_GRACE, NewRun, RunRecord, RunRequest, Runs
from durable.runs.reports import Report
from durable.settings import Settings
from durable.store import UNAVAILABLE, Store, close_pubsub, text
from durable.threads import given
from durable.writer import RunWriter

log = logging.getLogger(__name__)

LISTEN_SECONDS: Final = 5.0
"""How long cancels may be silent before the runs' records are asked."""

Redispatch = Callable[[RunRecord], Awaitable[None]]


@dataclass(eq=False)
class _Slot:
    """A run that is under way here; its attempt is made after it was claimed.

    Attributes:
        attempt: The attempt, once it is made.
        decided: Whether a call of the run was answered before that.
    """

    attempt: Attempt | None = None
    decided: bool = False


class Engine:
    """Executes the runs of the agents that it knows.

    Args:
        store: Where the runs are.
        settings: Times and limits.
        definitions: The agents, by name. Looked up when a run begins.
        redispatch: Sends the wake-up of a run that was handed back.
        wake: Sends the wake-up of the next run of a thread; default: `redispatch`.
        on_stall: Called, in another thread, when the event loop stood still for too long; a worker exits then.
        on_hung: Called when more than half of the tools' threads hang in calls that were given up; a worker is renewed.
        probe: Passed at each point where a crash could tear something apart.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        definitions: Mapping[str, AgentDefinition],
        *,
        redispatch: Redispatch,
        wake: Redispatch | None = None,
        on_stall: Callable[[], None] = lambda: None,
        on_hung: Callable[[], None] = lambda: None,
        probe: Probe = silent,
    ) -> None:
        self._probe = probe
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._store = store
        self._settings = settings
        self._definitions = definitions
        self._redispatch = redispatch
        self._wake = wake or redispatch
        self._runs = Runs(store, settings)
        self._decisions = Decisions(store, self._runs)
        self._appender = Appender(store, settings, probe)
        self._keeper = LeaseKeeper(store, settings, on_stall)
        self._isolation = Isolation(PATIENCE * settings.lease_seconds)
        self._attempts: dict[str, _Slot] = {}
        self._claiming = self._letting_go = 0
        self._early_cancels: set[str] = set()
        self._changed = asyncio.Event()
        self._threads = ToolThreads(settings.tool_threads, settings.grace_seconds, on_hung)
        self._ear: asyncio.Task[None] | None = None
        self._draining = False

    async def start(self) -> None:
        """Begin, in the running event loop."""
        self._appender.start()
        self._keeper.start()
        self._ear = asyncio.get_running_loop().create_task(self._hear_nudges(), name="nudges")

    async def stop(self) -> None:
        """Hand back what is under way, and end."""
        await self.drain(0)
        if self._ear is not None:
            self._ear.cancel()
            await asyncio.gather(self._ear, return_exceptions=True)
        await self._keeper.stop()
        await self._appender.stop()
        self._threads.close()

    @property
    def under_way(self) -> int:
        """How many runs are being executed."""
        return len(self._attempts)

    @property
    def busy_threads(self) -> int:
        """How many threads are busy with tools' calls that were given up."""
        return self._threads.busy

    async def execute(self, run_id: str) -> Outcome | None:
        """Execute a run, to its end or until it is handed back; None when it is not ours to execute.

        A run that somebody else executes, that waits, that has ended or that does not exist is left alone: the same
        message may arrive any number of times. A run that has to be executed alone waits until nothing else is, and
        others wait for it.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        if self._isolation.at_gate(run_id):
            return None  # the wake-up of a run that waits is repeated again and again
        try:
            async with self._isolation.beside_others(run_id):
                lease = await self._claim(run_id, crowded=True)
                if lease != Refusal(ALONE):
                    return await self._execute(run_id, lease)
            return await self._execute_alone(run_id)
        finally:
            if run_id not in self._attempts:
                self._early_cancels.discard(run_id)

    async def _execute_alone(self, run_id: str) -> Outcome | None:
        """Make the last attempt at a run that was lost before, when nothing else is under way."""
        log.warning("run %s was lost again and again: its last attempt waits until nothing else is executed", run_id)
        async with self._isolation.turn(run_id) as turn:
            lease: Lease | Refusal = Refusal(ALONE)
            while lease == Refusal(ALONE):
                self._make_room()
                lease = await self._claim(run_id, crowded=not await turn.alone())
            if isinstance(lease, Lease) and lease.claims < self._settings.max_attempts:
                turn.lift()  # somebody else has got it on meanwhile
            return await self._execute(run_id, lease, on_progress=turn.lift)

    async def _claim(self, run_id: str, *, crowded: bool) -> Lease | Refusal:
        if self._draining:
            return Refusal("draining")  # its wake-up is repeated, by somebody who goes on
        self._probe(Point.CLAIM_BEFORE)
        self._claiming += 1
        try:
            lease = await claim(self._store, self._settings, run_id, self.owner, self._definitions, crowded=crowded)
        finally:
            self._claiming -= 1
            self._changed.set()
        self._probe(Point.CLAIM_AFTER)
        return lease

    async def _execute(
        self, run_id: str, lease: Lease | Refusal, on_progress: Callable[[], None] = lambda: None
    ) -> Outcome | None:
        if isinstance(lease, Refusal):
            log.info("run %s is not executed here: %s", run_id, lease.reason)
            return None
        self._keeper.add(lease)
        slot = self._attempts[run_id] = _Slot()
        try:
            outcome = await self._attempt(lease, slot, on_progress)
        except asyncio.CancelledError:
            await asyncio.shield(self._hand_back(lease))
            raise
        # Whatever else is raised here is not foreseen: the lease runs out, and the claim counts. A hand-back would not,
        # and so might go on for ever.
        finally:
            self._keeper.remove(lease)
            if self._attempts.get(run_id) is slot:  # an attempt that was slow to stop may have had a successor here
                del self._attempts[run_id]
            self._changed.set()
        self._letting_go += 1
        try:
            await self._let_go(lease, outcome, slot.attempt)
        finally:
            self._letting_go -= 1
            self._changed.set()
        log.info("run %s, attempt %d: %s", run_id, lease.token, outcome)
        return outcome

    async def _let_go(self, lease: Lease, outcome: Outcome, attempt: Attempt | None) -> None:
        """Do what has to follow an attempt."""
        if outcome is Outcome.HANDED_BACK:
            await self._hand_back(lease)
        elif outcome is Outcome.POSTPONED and attempt is not None and attempt.postponed is not None:
            await self._postpone(lease, attempt.postponed)
        elif outcome in ENDS and attempt is not None and attempt.thread_id is not None:
            await self._wake_next(attempt.thread_id)
        if attempt is not None and attempt.has_parent:
            await self._wake_woken()

    def cancel(self, run_id: str) -> None:
        """End a run as cancelled, if it is executed here."""
        attempt = self._attempt_of(run_id)
        if attempt is not None:
            attempt.stop(Stop.CANCEL)
        elif run_id in self._attempts or self._isolation.awaits(run_id):
            self._early_cancels.add(run_id)

    def hand_back(self, run_id: str) -> None:
        """Give a run back to the queue, if it is executed here."""
        attempt = self._attempt_of(run_id)
        if attempt is not None:
            attempt.stop(Stop.HAND_BACK)

    async def drain(self, grace: float) -> None:
        """Begin no more runs. Those under way are handed back between two steps; those that are in the middle of one
        after `grace` seconds are handed back there."""
        self._draining = True
        self._isolation.open()
        self._make_room()
        try:
            async with asyncio.timeout(grace):
                await self._nothing_under_way()
        except TimeoutError:
            for run_id in list(self._attempts):
                self.hand_back(run_id)
            await self._nothing_under_way()

    def _make_room(self) -> None:
        """Have the runs under way handed back between two steps."""
        for attempt in [slot.attempt for slot in self._attempts.values()]:
            if attempt is not None:
                attempt.yield_soon()

    def _attempt_of(self, run_id: str) -> Attempt | None:
        slot = self._attempts.get(run_id)
        return None if slot is None else slot.attempt

    async def _nothing_under_way(self) -> None:
        while self._attempts or self._claiming or self._letting_go:
            self._changed.clear()
            await self._changed.wait()

    async def _attempt(self, lease: Lease, slot: _Slot, on_progress: Callable[[], None]) -> Outcome:
        record = await self._runs.get(lease.run_id)
        writer = RunWriter(self._appender, lease)
        writer.on_progress = on_progress
        request, start, hopeless = await self._load(record, lease)
        threads = self._threads.of_attempt()
        make = partial(
            Attempt,
            self._definitions[record.agent],
            record,
            writer=writer,
            settings=self._settings,
            asked=partial(self._asked, lease.run_id),
            answers=RunAnswers(self._decisions, lease.run_id, lease.token),
            suspend=partial(suspend, self._store, lease),
            submit=self._submit,
            leftovers=partial(
                Leftovers,
                writer,
                read_open=partial(self._decisions.open, lease.run_id),
                settle=partial(self._decisions.settle, lease.run_id, lease.token),
            ),
            waiting=partial(self._waiting, lease.run_id),
            read_idling=partial(self._runs.idling, lease.run_id),
            mirror=self._mirror(record, request, lease),
            threads=threads,
            probe=self._probe,
        )
        try:
            attempt = make(request, start, hopeless=hopeless)
        except Exception as error:  # noqa: BLE001 - as in `_load`: it would be tried, and fail so, for ever
            log.warning("run %s can't be set up: %s at %s", record.run_id, type(error).__name__, places(error))
            attempt = make(RunRequest(), StartPoint(Conversation(None, [], None)), hopeless=hopeless or UNREADABLE)
        lease.on_lost = writer.on_fenced = lambda: attempt.stop(Stop.LOST)
        slot.attempt = attempt
        with Agent.using_thread_executor(threads):
            task = attempt.start()
        if lease.lost:
            attempt.stop(Stop.LOST)
        if self._draining:
            attempt.stop(Stop.HAND_BACK)
        if lease.run_id in self._early_cancels:
            self._early_cancels.discard(lease.run_id)
            attempt.stop(Stop.CANCEL)
        if slot.decided:
            attempt.lookout.look_soon()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            attempt.stop(Stop.HAND_BACK)
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            self._threads.give_up(threads)

    def _mirror(self, record: RunRecord, request: RunRequest, lease: Lease) -> Mirror | None:
        """What tells the run that has started this one of it."""
        if record.parent_run_id is None:
            return None
        return Mirror(self._store, lease, Report(record, request.call_args), self._probe, nested=record.nested)

    async def _load(self, record: RunRecord, lease: Lease) -> tuple[RunRequest, StartPoint, ErrorInfo | None]:
        """What the run is asked to do and where it stands, and why it can't be executed if it can't."""
        hopeless = EXHAUSTED if lease.claims > self._settings.max_attempts else None
        try:
            request = await self._runs.request(record.run_id)
            conversation = await given(self._runs, record, request)
            start = await StartPoint.load(self._store, self._runs, record, conversation, request.tool_call)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - what is stored can't be read: the run ends, instead of waiting for ever
            log.warning("run %s can't be loaded: %s at %s", record.run_id, type(error).__name__, places(error))
            return RunRequest(), StartPoint(Conversation(None, [], None)), hopeless or UNREADABLE
        return request, start, hopeless

    async def _submit(self, new: NewRun) -> RunRecord:
        """Create a run that another one starts, and wake somebody who executes it, if it need not wait for a place."""
        record, created = await self._runs.create(new)
        if created and not record.limited:
            await self._wake(record)
        return record

    async def _waiting(self, run_id: str) -> list[Json]:
        """The calls of a run that wait, as callers see them; none when nobody says."""
        try:
            [calls] = await self._decisions.calls([run_id])
        except (DurableError, ValueError):
            return []
        return [call.pending().model_dump(mode="json", by_alias=True) for call in calls if call.answer is None]

    async def _asked(self, run_id: str) -> AbortPayload:
        """What was said when a run was cancelled; nothing when nobody says."""
        try:
            record = await self._runs.get(run_id)
        except DurableError:
            return AbortPayload()
        return AbortPayload.model_validate(record.json("cancelRequested") or {})

    async def _hand_back(self, lease: Lease) -> None:
        """Put the run back into the queue, and wake somebody; one that was told to end meanwhile ends instead. If that
        fails, its lease simply runs out."""
        try:
            self._probe(Point.RELEASE_BEFORE)
            released = await release(self._store, lease, wake_after=WAKE_GRACE)
            self._probe(Point.RELEASE_AFTER)
            if not released:
                return
            record = await self._runs.get(lease.run_id)
            if record.cancel_requested:
                await self._runs.cancel(lease.run_id)  # it need not wait for anybody
            else:
                await self._redispatch(record)
        except DurableError as error:
            log.warning("run %s could not be handed back: %s", lease.run_id, error.code)

    async def _postpone(self, lease: Lease, until: Postponement) -> None:
        """Put the run back into the queue, for later: the sweeper wakes somebody then. If that fails, its lease simply
        runs out."""
        try:
            self._probe(Point.RELEASE_BEFORE)
            await release(self._store, lease, wake_after=until.delay, held=True, fields=until.fields)
            self._probe(Point.RELEASE_AFTER)
        except DurableError as error:
            log.warning("run %s could not be put off: %s", lease.run_id, error.code)

    async def _wake_woken(self) -> None:
        """Wake the runs that scripts have woken meanwhile. If that fails, the sweeper does."""
        try:
            for record in await self._runs.take_woken():
                await self._wake(record)
        except DurableError as error:
            log.warning("runs that wait for others could not be woken: %s", error.code)

    async def _wake_next(self, thread_id: str) -> None:
        """Wake the run that the end of another has let begin. If that fails, the sweeper does."""
        try:
            live = (await self._runs.thread(thread_id)).get("live")
            if live is not None:
                await self._wake(await self._runs.get(live))
        except DurableError as error:
            log.warning("the next run of a thread could not be woken: %s", error.code)

    async def _hear_nudges(self) -> None:
        while True:
            pubsub = self._store.pubsub()
            try:
                await pubsub.subscribe(self._store.keys.nudges)
                await self._look_for_nudges()
                while True:
                    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=LISTEN_SECONDS)
                    if message is not None:
                        what, _, run_id = text(message["data"]).partition(" ")
                        self._nudge(run_id, cancelled=what == "cancel")
                    else:
                        await self._look_for_nudges()  # one may have been lost
            except (StoreUnavailable, *UNAVAILABLE) as error:
                log.warning("cancels and decisions are not heard: %s", type(error).__name__)
                await asyncio.sleep(0.2)
            finally:
                await close_pubsub(pubsub)

    def _nudge(self, run_id: str, *, cancelled: bool) -> None:
        """Heed a nudge without waiting for anything: others come behind it."""
        slot = self._attempts.get(run_id)
        if cancelled:
            self.cancel(run_id)
        elif slot is not None and slot.attempt is not None:
            slot.attempt.lookout.look_soon()
        elif slot is not None:
            slot.decided = True

    async def _look_for_nudges(self) -> None:
        """Cancels and decisions that were announced while nobody listened."""
        run_ids = list(self._attempts)
        if not run_ids:
            return
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hmget(self._store.keys.run(run_id), ["cancelRequested", "decisions"])
            found = await pipe.execute()
        for run_id, (cancelled, decisions) in zip(run_ids, found, strict=True):
            attempt = self._attempt_of(run_id)
            if cancelled is not None:
                self.cancel(run_id)
            elif attempt is not None and int(decisions or 0) > attempt.seen:
                attempt.lookout.look_soon()
