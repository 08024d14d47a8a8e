"""Cancelling: whatever a run is doing, it ends soon, keeps what it said and what it used, and ends once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import DurableAgent, RunHandle, create_durable_agent, emit_sync
from durable.chunks import Chunk, Usage
from durable.errors import ConfigurationError, LeaseLost, RunCancelled, RunEnded, RunFailed
from durable.execution import Engine, Outcome
from durable.fold import fold_text
from durable.leases import Refusal, claim
from durable.runs import RunRecord, Runs
from durable.settings import Settings
from durable.store import Store
from durable.tool_options import functions_of
from tests.conftest import eventually
from tests.workbench import Workbench, delta


async def calls_act(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Calls the tool `act`, then says so."""
    if len(messages) == 1:
        yield {0: DeltaToolCall(name="act", json_args="{}", tool_call_id="c1")}
    else:
        yield "acted"


async def goes_on_and_on(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
    """Says two words, and is then silent for ever."""
    yield "one "
    yield "two "
    await asyncio.Event().wait()


def acting(act: Callable[..., Any], **options: Any) -> Agent[Any, str]:
    agent = Agent(FunctionModel(stream_function=calls_act), name="acting")
    agent.tool(name="act", **options)(act)
    return agent


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Leases that nobody loses because the machine is busy."""
    return settings.model_copy(update={"lease_seconds": 10.0})


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    """Another process: it knows the runs, and executes none."""
    async with Workbench(settings) as found:
        yield found


async def said(bench: Workbench, run_id: str, text: str) -> None:
    async def has() -> bool:
        return fold_text(await bench.chunks(run_id)) == text

    await eventually(has, what=f"the log to say {text!r}")


async def cancelled(handle: RunHandle) -> list[Chunk]:
    """Wait for the run's end, which must be that of a cancelled one; its chunks."""
    async with asyncio.timeout(10):
        with pytest.raises(RunCancelled):
            await handle.result()
    chunks = [chunk async for chunk in handle.observe()]
    assert [chunk.type for chunk in chunks[-2:]] == ["abort", "finish"]
    assert chunks[-1].payload.step_result.reason == "abort"
    assert [chunk.seq for chunk in chunks if chunk.final] == [len(chunks)]
    return chunks


async def test_in_the_middle_of_a_response_what_was_said_stays(connected: Any, bench: Workbench) -> None:
    async with connected(Agent(FunctionModel(stream_function=goes_on_and_on), name="endless")) as agent:
        handle = await agent.stream("go")
        await said(bench, handle.run_id, "one two ")
        assert await bench.runs.cancel(handle.run_id, reason="enough", actor="ada")
        chunks = await cancelled(handle)
    assert fold_text(chunks) == "one two "
    assert (chunks[-2].payload.reason, chunks[-2].payload.actor) == ("enough", "ada")


async def test_in_the_middle_of_an_asynchronous_tool_that_is_interrupted(connected: Any, bench: Workbench) -> None:
    begun, interrupted = asyncio.Event(), asyncio.Event()

    async def act(_: RunContext[Any]) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            interrupted.set()
            raise
        return "unreachable"

    async with connected(acting(act)) as agent:
        handle = await agent.stream("go")
        await asyncio.wait_for(begun.wait(), 10)
        assert await bench.runs.cancel(handle.run_id)
        chunks = await cancelled(handle)
        assert interrupted.is_set()
    assert not {"tool-result", "tool-error"} & {chunk.type for chunk in chunks}


async def test_a_synchronous_tool_is_left_alone_and_what_it_says_later_is_refused(
    connected: Any, bench: Workbench
) -> None:
    begun, released = threading.Event(), threading.Event()
    refused: list[type[BaseException]] = []

    def act(ctx: RunContext[Any]) -> str:
        begun.set()
        released.wait(20)
        try:
            emit_sync(ctx, "late")
        except BaseException as error:
            refused.append(type(error))
            raise
        return "late"

    async with connected(acting(act)) as agent:
        handle = await agent.stream("go")
        assert await asyncio.to_thread(begun.wait, 10)
        assert await bench.runs.cancel(handle.run_id)
        chunks = await cancelled(handle)
        released.set()

        async def told() -> bool:
            return bool(refused)

        await eventually(told, what="the tool to be refused")
        assert refused == [LeaseLost]
        assert await bench.chunks(handle.run_id) == chunks
        assert "c1" not in str([name for name in await bench.runs.ledger(handle.run_id) if "!" in name])


async def test_a_tool_that_swallows_it_ends_no_later_than_its_step(connected: Any, bench: Workbench) -> None:
    begun = asyncio.Event()

    async def act(_: RunContext[Any]) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "I go on"
        return "unreachable"

    async with connected(acting(act)) as agent:
        handle = await agent.stream("go")
        await asyncio.wait_for(begun.wait(), 10)
        assert await bench.runs.cancel(handle.run_id)
        chunks = await cancelled(handle)
    assert [chunk.type for chunk in chunks].count("step-start") == 1


async def test_a_suspended_run_ends_at_once_with_what_it_has_used(connected: Any, bench: Workbench) -> None:
    async def act(_: RunContext[Any]) -> str:
        return "done"

    async with connected(acting(act, requires_approval=True)) as agent:
        handle = await agent.stream("go")

        async def waits() -> bool:
            return str((await handle.status()).status) == "suspended"

        await eventually(waits, what="the run to wait")
        before = await handle.status()
        assert before.usage is not None
        assert before.usage.total_tokens > 0
        assert await bench.runs.cancel(handle.run_id)
        view = await handle.status()
        assert (view.status, view.usage, view.attempt) == ("cancelled", before.usage, before.attempt)
        chunks = await cancelled(handle)
    assert chunks[-1].payload.output.usage == before.usage


async def test_a_lost_run_ends_at_once_with_its_checkpoints_usage_and_its_attempt(
    settings: Settings, bench: Workbench
) -> None:
    stopped = asyncio.Event()

    async def act(_: RunContext[Any]) -> str:
        stopped.set()
        await asyncio.Event().wait()
        return "unreachable"

    durable = create_durable_agent(acting(act), cache=settings)
    async with engine_of(settings, durable) as engine:
        run_id = await bench.create(agent="acting")
        execution = asyncio.create_task(executed(engine, run_id))
        await asyncio.wait_for(stopped.wait(), 10)
        record = await bench.runs.get(run_id)
        # As if its process had fallen silent for longer than the lease.
        await bench.store.redis.zadd(bench.store.keys.leases, {f"{run_id}:{record.token}": 1})
        assert await bench.runs.cancel(run_id)
        end = (await bench.runs.get(run_id)).view()
        assert (end.status, end.attempt) == ("cancelled", record.token)
        assert end.usage is not None
        assert end.usage.total_tokens > 0
        final = (await bench.chunks(run_id))[-1]
        assert final.payload.output.usage == end.usage
        log = await bench.wire(run_id)
        assert await execution is Outcome.LOST
        assert await bench.wire(run_id) == log


async def test_who_lost_the_lease_of_a_cancelled_run_writes_nothing_and_nobody_claims_it(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    await bench.store.redis.zadd(bench.store.keys.leases, {writer.lease.member: 1})
    assert await bench.runs.cancel(run_id)
    log = await bench.wire(run_id)
    writer.write(delta("zombie"))
    with pytest.raises(LeaseLost):
        await writer.flush()
    assert await claim(bench.store, bench.settings, run_id, "next") == Refusal("ended")
    assert await bench.wire(run_id) == log
    assert (await bench.runs.get(run_id)).view().attempt == 1


@asynccontextmanager
async def engine_of(settings: Settings, durable: DurableAgent) -> AsyncIterator[Engine]:
    """An engine that executes nothing by itself."""
    async with Workbench(settings) as own:

        async def wake(_: RunRecord) -> None:
            return

        engine = Engine(own.store, settings, {durable.name: durable.definition}, redispatch=wake)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


async def executed(engine: Engine, run_id: str) -> Outcome | None:
    """Execute a run until it is not handed back any more."""
    outcome: Outcome | None = Outcome.HANDED_BACK
    while outcome is Outcome.HANDED_BACK:
        outcome = await engine.execute(run_id)
    return outcome


@pytest.mark.of_an_attempt
async def test_a_run_that_is_told_to_end_while_it_is_handed_back_needs_nobody_else(
    settings: Settings, bench: Workbench
) -> None:
    entered, stopping, let_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def act(_: RunContext[Any]) -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await let_go.wait()
        return "unreachable"

    async with engine_of(settings, create_durable_agent(acting(act), cache=settings)) as engine:
        run_id = await bench.create(agent="acting")
        execution = asyncio.create_task(engine.execute(run_id))
        await asyncio.wait_for(entered.wait(), 10)
        engine.hand_back(run_id)
        await asyncio.wait_for(stopping.wait(), 10)
        assert await bench.runs.cancel(run_id, reason="enough")
        let_go.set()
        assert await asyncio.wait_for(execution, 10) is Outcome.HANDED_BACK
        assert (await bench.runs.get(run_id)).status == "cancelled"
    chunks = await bench.chunks(run_id)
    assert [chunk.type for chunk in chunks[-2:]] == ["abort", "finish"]
    assert chunks[-2].payload.reason == "enough"


@pytest.mark.of_an_attempt
async def test_who_stops_waits_until_its_runs_are_given_back(settings: Settings, bench: Workbench) -> None:
    """Else it would close the connection by which they are."""
    entered, giving_back, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def act(_: RunContext[Any]) -> str:
        entered.set()
        await asyncio.Event().wait()
        return "unreachable"

    async def wake(_: RunRecord) -> None:
        giving_back.set()
        await go_on.wait()

    durable = create_durable_agent(acting(act), cache=settings)
    engine = Engine(bench.store, settings, {durable.name: durable.definition}, redispatch=wake)
    await engine.start()
    run_id = await bench.create(agent="acting")
    execution = asyncio.create_task(engine.execute(run_id))
    await asyncio.wait_for(entered.wait(), 10)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.wait_for(giving_back.wait(), 10)
    for _ in range(20):
        await bench.store.ping()
    assert not stopping.done()
    go_on.set()
    await asyncio.wait_for(stopping, 10)
    assert await execution is Outcome.HANDED_BACK


@pytest.mark.parametrize("waits", [False, True], ids=["finish", "suspension"])
async def test_against_an_end_or_a_suspension_there_is_one_winner(
    settings: Settings, bench: Workbench, waits: bool
) -> None:
    async def act(_: RunContext[Any]) -> str:
        return "done"

    durable = create_durable_agent(acting(act, requires_approval=waits), cache=settings)
    ends: list[str] = []
    async with engine_of(settings, durable) as engine:
        for turn in range(50):
            run_id = await bench.create(agent="acting")
            execution = asyncio.create_task(executed(engine, run_id))
            await asyncio.sleep(turn * 0.0008)
            try:
                await bench.runs.cancel(run_id)
                won = True
            except RunEnded:
                won = False
            await asyncio.wait_for(execution, 10)  # whatever it tells, it does not raise
            record, chunks = await bench.runs.get(run_id), await bench.chunks(run_id)
            assert record.status == ("cancelled" if won else "completed")
            assert [chunk.seq for chunk in chunks if chunk.final] == [len(chunks)]
            assert chunks[-1].payload.step_result.reason == ("abort" if won else "stop")
            ends.append(record.status)
    assert "cancelled" in ends


@pytest.mark.parametrize("synchronous", [False, True], ids=["async", "sync"])
async def test_a_tool_that_takes_longer_than_its_timeout_is_given_up_and_the_model_is_told(
    connected: Any, bench: Workbench, synchronous: bool
) -> None:
    released, late = threading.Event(), list[str]()

    async def slow(_: RunContext[Any]) -> str:
        await asyncio.Event().wait()
        return "unreachable"

    def stuck(ctx: RunContext[Any]) -> str:
        released.wait(20)
        try:
            emit_sync(ctx, "late")
        except LeaseLost:
            late.append("refused")
        return "too late"

    limits = {"metadata": {"durable": {"timeout": 0.05}}}
    async with connected(acting(stuck if synchronous else slow, **limits)) as agent:
        handle = await agent.stream("go")
        async with asyncio.timeout(10):
            result = await handle.result()
        released.set()
        assert result.output == "acted"

        async def told() -> bool:
            return late == (["refused"] if synchronous else [])

        await eventually(told, what="the late tool to be refused")
        chunks = await bench.chunks(handle.run_id)
        entries = await bench.runs.ledger(handle.run_id)
    [error] = [chunk for chunk in chunks if chunk.type == "tool-error"]
    assert error.payload.error.code == "tool_timeout"
    assert "tool-output" not in {chunk.type for chunk in chunks}
    assert list(entries) == ["1:c1"]
    assert b"took longer than 0.05 s" in entries["1:c1"]


@pytest.mark.parametrize("given", [0, -1, "soon", True])
async def test_a_timeout_that_is_none_fails_the_run_before_the_tool_is_called(connected: Any, given: Any) -> None:
    """Of a tool that is there only after the agent was wrapped; of any other it is told then."""
    called: list[int] = []

    async def act(_: RunContext[Any]) -> str:
        called.append(1)
        return "done"

    late = acting(act, metadata={"durable": {"timeout": given}})
    with pytest.raises(ConfigurationError, match="timeout"):
        connected(late)
    bare = acting(act)
    durable = connected(bare)
    next(iter(functions_of(bare).values())).metadata = {"durable": {"timeout": given}}
    async with durable as agent:
        with pytest.raises(RunFailed) as failed:
            await agent.generate("go")
    assert failed.value.failure_code == "configuration_error"
    assert called == []


@pytest.mark.of_an_attempt
async def test_an_attempt_that_is_slow_to_stop_does_not_hide_its_successor(
    connected: Any, store: Store, bench: Workbench
) -> None:
    """Both are in one process: it has lost the run, and has taken it over itself."""
    entered, let_go = [asyncio.Event(), asyncio.Event()], asyncio.Event()

    async def act(_: RunContext[Any]) -> str:
        mine = next(event for event in entered if not event.is_set())
        mine.set()
        try:
            await asyncio.Event().wait()
        finally:
            if mine is entered[0]:
                await let_go.wait()
        return "never"

    async with connected(acting(act)) as agent:
        handle = await agent.stream("go")
        async with asyncio.timeout(15):
            await entered[0].wait()
        lease = f"{handle.run_id}:1"
        await store.redis.zrem(store.keys.leases, lease)
        engine = next(iter(agent._backends.values())).engine
        assert engine is not None

        async def unkept() -> bool:
            return not engine._keeper._leases

        await eventually(unkept, what="the lease to be known as lost")
        await store.redis.zadd(store.keys.leases, {lease: 1})
        async with asyncio.timeout(15):
            await entered[1].wait()
        let_go.set()

        async def stopped() -> bool:
            return sum(task.get_name() == f"run-{handle.run_id}" for task in asyncio.all_tasks()) == 1

        await eventually(stopped, what="the first attempt to stop")
        assert engine.under_way == 1
        assert await bench.runs.cancel(handle.run_id)
        with pytest.raises(RunCancelled):
            async with asyncio.timeout(15):
                await handle.result()


async def test_answers_that_cannot_be_read_keep_nobody_from_being_cancelled(
    connected: Any, store: Store, bench: Workbench
) -> None:
    entered = asyncio.Event()

    async def act(_: RunContext[Any]) -> str:
        entered.set()
        await asyncio.Event().wait()
        return "never"

    async with connected(acting(act)) as agent:
        handle = await agent.stream("go")
        async with asyncio.timeout(15):
            await entered.wait()
        await store.redis.hset(store.keys.ledger(handle.run_id), "1!0:c9", "{")
        assert await store.redis.publish(store.keys.nudges, f"decided {handle.run_id}") == 1
        assert await bench.runs.cancel(handle.run_id)
        with pytest.raises(RunCancelled):
            async with asyncio.timeout(4):  # before anybody looks whether a message was lost
                await handle.result()


async def test_usage_that_was_read_before_the_run_got_on_is_read_again(
    connected: Any, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, read = Runs._used, list[str]()

    async def outdated(self: Runs, run_id: str) -> tuple[RunRecord, Usage | None]:
        read.append(run_id)
        return (RunRecord(run_id, {}), None) if len(read) == 1 else await used(self, run_id)

    async def act(_: RunContext[Any]) -> str:
        return "never"

    async with connected(acting(act, requires_approval=True)) as agent:
        handle = await agent.stream("go")

        async def waits() -> bool:
            return bool((await handle.status()).status == "suspended")

        await eventually(waits, what="the run to wait")
        before = (await handle.status()).usage
        monkeypatch.setattr(Runs, "_used", outdated)
        assert await bench.runs.cancel(handle.run_id)
        assert before is not None
        assert (await handle.status()).usage == before
    assert len(read) == 2
