"""The last attempt at a run that was lost before is made alone; what waits for that costs nothing and ends."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import create_evented_agent
from durable.execution import Engine, Outcome
from durable.execution import engine as engine_module
from durable.leases import ALONE, Lease, Refusal, claim
from durable.runs import RunRecord
from durable.store import Store
from tests.chaos.agents import prompt_of, requests
from tests.conftest import eventually
from tests.workbench import Workbench, on


class Stage:
    """One process with an agent that asks its model, calls a tool, and asks again; each only when it is told to.

    Attributes:
        bench: Another process's share.
        engine: This process's.
        woken: The runs that it has handed back, in order.
    """

    def __init__(self, bench: Workbench, store: Store) -> None:
        self.bench = bench
        self.woken: list[str] = []
        self._reached: set[tuple[str, str]] = set()
        self._told: defaultdict[tuple[str, str], asyncio.Event] = defaultdict(asyncio.Event)
        agent = Agent(FunctionModel(stream_function=self._model), name="told", tools=[self._act])
        definitions = {"told": create_evented_agent(agent).definition}
        self.engine = Engine(store, bench.settings, definitions, redispatch=self._wake)

    async def create(self, name: str, *, lost: int = 0) -> str:
        """A run, of which some attempts were lost."""
        run_id = await self.bench.create(prompt=name, agent="told")
        for _ in range(lost):
            lease = await self.bench.claim(run_id)
            await self.bench.store.redis.zadd(self.bench.store.keys.leases, {lease.member: 0})
        return run_id

    def execute(self, run_id: str) -> asyncio.Task[Outcome | None]:
        return asyncio.create_task(self.engine.execute(run_id))

    def tell(self, name: str, *places: str) -> None:
        """Let the run go on beyond some places."""
        for place in places:
            self._told[name, place].set()

    async def at(self, name: str, place: str) -> None:
        """Wait until the run is there."""

        async def there() -> bool:
            return self.is_at(name, place)

        await eventually(there, what=f"{name} to reach {place}")

    def is_at(self, name: str, place: str) -> bool:
        return (name, place) in self._reached

    async def waits(self, run_id: str) -> None:
        """Wait until the run waits to be executed, without a lease."""

        async def waiting() -> bool:
            return self.engine._isolation.awaits(run_id)

        await eventually(waiting, what="the run to wait")
        keys, record = self.bench.store.keys, await self.bench.runs.get(run_id)
        expiry = await self.bench.store.redis.zscore(keys.leases, f"{run_id}:{record.token}")
        assert not expiry, "it holds a lease"

    async def _model(self, messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        first = not requests(messages)
        await self._pass(prompt_of(messages), "model" if first else "end")
        if first:
            yield {0: DeltaToolCall(name="_act", json_args="{}", tool_call_id="c1")}
        else:
            yield "done"

    async def _act(self, ctx: RunContext[object]) -> str:
        await self._pass(str(ctx.prompt), "tool")
        return "acted"

    async def _pass(self, name: str, place: str) -> None:
        self._reached.add((name, place))
        await self._told[name, place].wait()

    async def _wake(self, record: RunRecord) -> None:
        self.woken.append(record.run_id)


@asynccontextmanager
async def staged(redis_url: str) -> AsyncIterator[Stage]:
    async with Workbench(on(redis_url, max_attempts=2)) as bench:
        store = Store.of(bench.settings)
        stage = Stage(bench, store)
        await stage.engine.start()
        try:
            yield stage
        finally:
            await stage.engine.stop()
            await store.aclose()


@pytest.fixture
async def stage(redis_url: str) -> AsyncIterator[Stage]:
    async with staged(redis_url) as found:
        yield found


async def test_it_begins_when_the_others_are_handed_back_and_they_go_on_when_it_has_got_on(stage: Stage) -> None:
    other, suspect = await stage.create("other"), await stage.create("suspect", lost=1)
    first = stage.execute(other)
    stage.tell("other", "model")
    await stage.at("other", "tool")
    alone = stage.execute(suspect)
    await stage.waits(suspect)
    assert not stage.is_at("suspect", "model")

    stage.tell("other", "tool")
    assert await first is Outcome.HANDED_BACK
    assert stage.woken == [other]
    await stage.at("suspect", "model")
    again = stage.execute(other)
    await stage.waits(other)
    assert await stage.engine.execute(other) is None, "its wake-up was repeated"

    stage.tell("suspect", "model")
    await stage.at("suspect", "tool")
    await stage.at("other", "end")
    stage.tell("other", "end")
    assert await again is Outcome.COMPLETED
    assert not alone.done()
    stage.tell("suspect", "tool", "end")
    assert await alone is Outcome.COMPLETED
    assert (await stage.bench.runs.get(other)).token == 2
    assert (await stage.bench.runs.get(suspect)).token == 2, "to wait is no attempt"


async def test_several_of_them_take_turns(stage: Stage) -> None:
    names = ["one", "two", "three"]
    tasks = [stage.execute(await stage.create(name, lost=1)) for name in names]
    left = set(names)
    while left:

        async def one_is_there() -> bool:
            return any(stage.is_at(name, "model") for name in left)

        await eventually(one_is_there, what="the next one to begin")
        [name] = [name for name in left if stage.is_at(name, "model")]
        left.remove(name)
        stage.tell(name, "model", "tool", "end")
    # One that is through with its first step makes room for the next one.
    outcomes = [await task for task in tasks]
    assert set(outcomes) <= {Outcome.COMPLETED, Outcome.HANDED_BACK}
    assert len(stage.woken) == outcomes.count(Outcome.HANDED_BACK)


@pytest.mark.parametrize("how", ["cancelled", "taken by another process"])
async def test_others_begin_again_when_it_need_not_be_executed_here_any_more(stage: Stage, how: str) -> None:
    other, suspect, third = [await stage.create(*of) for of in (("other",), ("suspect",), ("third",))]
    first = stage.execute(other)
    await stage.at("other", "model")
    await stage.bench.store.redis.hset(stage.bench.store.keys.run(suspect), "claims", 1)
    alone = stage.execute(suspect)
    await stage.waits(suspect)
    behind = stage.execute(third)
    await stage.waits(third)
    if how == "cancelled":
        await stage.bench.runs.cancel(suspect)
    else:
        await stage.bench.claim(suspect)

    assert await alone is None
    await stage.at("third", "model")
    assert not first.done(), "it was in the middle of a step all the time"
    stage.tell("other", "model", "tool", "end")
    stage.tell("third", "model", "tool", "end")
    assert await behind is Outcome.COMPLETED
    await first


async def test_a_worker_that_stops_waits_for_none_of_them(stage: Stage) -> None:
    other, suspect, third = await stage.create("other"), await stage.create("suspect", lost=1), await stage.create("3")
    tasks = [stage.execute(other)]
    await stage.at("other", "model")
    for run_id in (suspect, third):
        tasks.append(stage.execute(run_id))
        await stage.waits(run_id)
    async with asyncio.timeout(10):
        await stage.engine.drain(0)
        assert await asyncio.gather(*tasks) == [Outcome.HANDED_BACK, None, None]
    assert stage.woken == [other]
    assert not stage.is_at("suspect", "model")


async def test_a_cancel_by_its_task_is_heeded_when_its_turn_comes(stage: Stage) -> None:
    other, suspect = await stage.create("other"), await stage.create("suspect", lost=1)
    first = stage.execute(other)
    await stage.at("other", "model")
    alone = stage.execute(suspect)
    await stage.waits(suspect)
    stage.engine.cancel(suspect)
    stage.tell("other", "model")
    assert await first is Outcome.HANDED_BACK
    assert await alone is Outcome.CANCELLED
    assert not stage.is_at("suspect", "model")


async def test_a_step_that_does_not_end_is_not_waited_for_for_ever(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", 0.05)
    async with staged(redis_url) as stage:
        other, suspect = await stage.create("other"), await stage.create("suspect", lost=1)
        first = stage.execute(other)
        await stage.at("other", "model")
        stage.tell("suspect", "model", "tool", "end")
        assert await stage.execute(suspect) is Outcome.COMPLETED
        assert not first.done()
        stage.tell("other", "model", "tool", "end")
        await first


@pytest.mark.parametrize(
    ("lost", "most", "alone"), [(0, 1, False), (0, 2, False), (1, 2, True), (1, 3, False), (2, 3, True), (2, 2, False)]
)
async def test_only_the_last_attempt_at_a_run_that_was_lost_is_refused_to_a_crowd(
    redis_url: str, lost: int, most: int, *, alone: bool
) -> None:
    async with Workbench(on(redis_url, max_attempts=most)) as bench:
        run_id = await bench.create()
        for _ in range(lost):
            await bench.store.redis.zadd(bench.store.keys.leases, {(await bench.claim(run_id)).member: 0})
        before = await bench.runs.get(run_id)
        found = await claim(bench.store, bench.settings, run_id, "me", crowded=True)
        if alone:
            assert found == Refusal(ALONE)
            assert await bench.runs.get(run_id) == before, "a refusal changes nothing"
        else:
            assert isinstance(found, Lease)
            assert found.claims == lost + 1


async def test_a_lost_run_that_was_told_to_end_waits_for_nobody(stage: Stage) -> None:
    suspect = await stage.create("suspect", lost=1)
    await stage.bench.store.redis.hset(stage.bench.store.keys.run(suspect), "cancelRequested", "{}")
    other = stage.execute(await stage.create("other"))
    await stage.at("other", "model")
    assert await stage.engine.execute(suspect) is Outcome.CANCELLED
    stage.tell("other", "model", "tool", "end")
    assert await other is Outcome.COMPLETED
