"""Everything that one process, in one event loop, needs of the run layer: put together here and nowhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Self

from durable.announcements import Announcements
from durable.background.descent import Descent
from durable.background.feed import Feed
from durable.background.tasks import Tasks
from durable.budgets import Budgets, Raise
from durable.chunks.base import Json
from durable.decisions import Answer, Decisions, with_calls
from durable.definition import AgentDefinition
from durable.diagnosis import views
from durable.dispatch import CeleryDispatcher, Dispatcher, InProcessDispatcher
from durable.errors import AlreadyDecided, RunExpired, ThreadBusy, UnknownCall, UnknownRun
from durable.execution import Engine
from durable.messages import Messages
from durable.observer import Hub, Observer
from durable.runs import TASK, NewRun, RunRecord, Runs
from durable.settings import Settings
from durable.store import Store
from durable.sweeper import StandIn, Sweeper
from durable.thread_feed import ThreadFeed
from durable.trees.observer import TreeObserver
from durable.views import RunView


class Backend:
    """The run layer of a process.

    Args:
        store: Where the runs are. Closed with the backend.
        settings: Times, limits and addresses.
        definitions: The agents that this process executes, by name. Without any it executes nothing.
        celery: Whether there are workers that runs can go to.
        in_process: Whether this process executes by itself what it is asked for, if it has the agent. A worker does
            not: it executes what Celery brings.
        on_stall: Called when this process's event loop stood still for too long.
        on_hung: Called when most of this process's threads for tools hang.

    Attributes:
        engine: Executes runs; None in a process without agents.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        definitions: Mapping[str, AgentDefinition] | None = None,
        *,
        celery: bool = True,
        in_process: bool = True,
        on_stall: Callable[[], None] = lambda: None,
        on_hung: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.definitions = definitions or {}
        self.runs = Runs(store, settings)
        self.hub = Hub(store)
        self.observer = Observer(store, self.runs, self.hub)
        self.trees = TreeObserver(store, self.runs, self.hub)
        self.decisions = Decisions(store, self.runs)
        self.budgets = Budgets(store, self.runs)
        self.messages = Messages(store, self.runs)
        self.announcements = Announcements(store)
        self._descent = Descent(store, self.decisions)
        self.tasks = Tasks(store, self.runs, self.announcements, self.decisions)
        self.feed = Feed(store, self.hub, self.tasks)
        self.thread_feed = ThreadFeed(store, self.runs, self.hub, self.observer)
        self.engine: Engine | None = None
        self._celery = CeleryDispatcher(settings.celery_broker_url) if celery else None
        self._here: Dispatcher | None = None
        self._sweeper: Sweeper = StandIn(store, settings)
        if self.definitions:
            self.engine = Engine(
                store,
                settings,
                self.definitions,
                redispatch=self.dispatch_again,
                wake=self.dispatch,
                on_stall=on_stall,
                on_hung=on_hung,
            )
            self._here = InProcessDispatcher(self.engine.execute, settings.concurrency) if in_process else None
            self._sweeper = Sweeper(store, settings, self.dispatch, self.engine.owner)

    async def __aenter__(self) -> Self:
        if self._celery is not None:
            await self._celery.open()
        if self.engine is not None:
            await self.engine.start()
        self._sweeper.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sweeper.stop()
        if self.engine is not None:
            await self.engine.stop()
        await self.hub.stop()
        if self._celery is not None:
            self._celery.close()
        await self.store.aclose()

    def abandon(self) -> None:
        """Let go of a backend whose event loop was closed before it: all that can still be closed without the loop.
        Its lease thread ends by itself."""
        if self._celery is not None:
            self._celery.close()
        self.store.sync.close()

    async def submit(self, new: NewRun) -> tuple[RunRecord, bool]:
        """Create a run and wake somebody who executes it. Returns its record and whether this call created it.

        Raises:
            InvalidRequest, RunConflict, RunExpired, ThreadBusy, ThreadConflict, StoreUnavailable: see `Runs.create`.
        """
        return await self._started(self.runs.create(new))

    async def retry(self, run_id: str, *, idempotency_key: str | None = None) -> tuple[RunRecord, bool]:
        """Go on with a failed or cancelled run as a new one. Returns that one, and whether this call created it.

        Raises:
            UnknownRun, RunExpired, RunConflict, ThreadBusy, StoreUnavailable: see `Runs.retry`.
        """
        return await self._started(self.runs.retry(run_id, idempotency_key=idempotency_key))

    async def _started(self, creation: Awaitable[tuple[RunRecord, bool]]) -> tuple[RunRecord, bool]:
        try:
            record, created = await creation
        except ThreadBusy as error:
            [calls] = await self.decisions.calls([error.details["runId"]])
            waiting = [call.pending().model_dump(mode="json", by_alias=True) for call in calls if call.answer is None]
            if waiting:
                error.details["pending"] = waiting
            raise
        if created and not record.behind:
            await self.dispatch(record)
        return record, created

    async def dispatch(self, record: RunRecord) -> None:
        """Wake somebody who executes the run: this process or a worker. Where there are no workers, the run of an agent
        that this process does not have waits for a process that has it."""
        if self._here is not None and self._serves(record):
            await self._here.dispatch(record)
        elif self._celery is not None:
            await self._celery.dispatch(record)

    def _serves(self, record: RunRecord) -> bool:
        """Whether this process executes the run: it has the agent, and no workers of its own are named for it."""
        definition = self.definitions.get(record.agent)
        if definition is None or self._celery is None or record.kind != TASK:
            return definition is not None
        return record.queue == definition.queue_of(self.settings.prefix)

    async def decide(self, run_id: str, tool_call_id: str, answer: Answer, *, question: str | None = None) -> None:
        """Answer a tool call that waits, and wake its run. One that is none of the run may be one of what it has
        started.

        Raises:
            AmbiguousCall: It is not one of the run, and several below it may be meant; `details` name them.
            InvalidRequest, UnknownRun, RunExpired, UnknownCall, AlreadyDecided, RunEnded, StoreUnavailable: see
                `Decisions.decide`.
        """
        try:
            record = await self.decisions.decide(run_id, tool_call_id, answer, question=question)
        except (UnknownCall, AlreadyDecided) as error:
            if question is not None and isinstance(error, AlreadyDecided):
                raise  # it is this question that was answered
            child = await self._descent.place(run_id, tool_call_id, question)
            if child is None:
                raise
            record = await self.decisions.decide(child, tool_call_id, answer, question=question)
        if record is not None:
            await self.dispatch(record)

    async def resume_task(self, task_id: str, answer: Answer, *, question: str | None = None) -> None:
        """Answer the one call of a background task that waits, and wake it.

        Raises:
            AmbiguousCall: Several calls wait, as it may be in the run of a sub-agent: `details` name them.
            InvalidRequest, UnknownRun, RunExpired, UnknownCall, AlreadyDecided, RunEnded, StoreUnavailable: see
                `Decisions.decide`.
        """
        await self.decide(task_id, await self.tasks.call_of(task_id), answer, question=question)

    async def cancel(self, run_id: str, *, reason: str | None = None, actor: str | None = None) -> bool:
        """Ask a run to end, and wake the run that waits for it. False when it is cancelled already.

        Raises:
            InvalidRequest, UnknownRun, RunExpired, RunEnded, StoreUnavailable: see `Runs.cancel`.
        """
        requested = await self.runs.cancel(run_id, reason=reason, actor=actor)
        for record in await self.runs.take_woken():
            await self.dispatch(record)
        return requested

    async def wait_for_tasks(self, run_id: str, seconds: float) -> None:
        """Let a run go on when its background tasks end after its turn, for so long in a row. Of a task or a sub-agent
        it is the run that somebody has asked for: those below it end with their turn.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        record = await self.runs.get(run_id)
        try:
            while record.parent_run_id is not None:
                record = await self.runs.get(record.parent_run_id)
        except (UnknownRun, RunExpired):
            return  # it has ended long ago
        await self.runs.wait_for_tasks(record.run_id, seconds)

    async def raise_budget(self, run_id: str, wanted: Raise) -> None:
        """Let a run that reached a budget go on, and wake it.

        Raises:
            InvalidRequest, UnknownRun, RunExpired, BudgetNotReached, RunEnded, StoreUnavailable: see `Budgets.raise_`.
        """
        record = await self.budgets.raise_(run_id, wanted)
        if record is not None:
            await self.dispatch(record)

    async def send(
        self, run_id: str, content: Json, *, message_id: str | None = None, actor: str | None = None
    ) -> bool:
        """Tell the model of a run something, before its next request. False when this was done before.

        Raises:
            InvalidRequest, UnknownRun, RunExpired, RunConflict, RunEnded, StoreUnavailable: see `Messages.send`.
        """
        told, record = await self.messages.send(run_id, content, message_id=message_id, actor=actor)
        if record is not None:
            await self.dispatch(record)
        return told

    async def views(self, records: Sequence[RunRecord]) -> list[RunView]:
        """Runs as callers see them: one that waits for somebody to serve its agent, or for a place, says so, and each
        tells of its calls that wait, or were answered.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        shown = await views(self.store, self.announcements, records)
        asked = [record.run_id for record in records if record.asked]
        calls = dict(zip(asked, await self.decisions.calls_and_answers(asked), strict=True))
        going_on = [record.run_id for record in records if record.begat and not record.status.ended]
        below = dict(zip(going_on, await self._descent.waiting(going_on), strict=True))
        return [with_calls(view, *calls.get(view.run_id, ([], [])), below=below.get(view.run_id, [])) for view in shown]

    async def dispatch_again(self, record: RunRecord) -> None:
        """Wake somebody else, if there is anybody else: this process has handed the run back."""
        if self._celery is not None:
            await self._celery.dispatch(record)
        elif self._here is not None:
            await self._here.dispatch(record)
