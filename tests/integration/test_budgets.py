"""Budgets: a run that has used one up waits until that is raised, or ends; all its attempts count together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunHandle, tool_context
from durable.announcements import Announcements
from durable.budgets import REMEMBERED, Budgets, Raise
from durable.chunks import BudgetRaised, BudgetReached, Chunk, Finish, StepStart
from durable.diagnosis import diagnose, examine
from durable.errors import BudgetNotReached, InvalidRequest, RunEnded, RunFailed, UnknownRun
from durable.fold import fold_text
from durable.leases import release, suspend
from durable.probes import Point
from durable.runs import NewRun, RunRequest
from durable.settings import Settings
from durable.writer import Note, RunWriter
from tests.chaos.stage import Stage
from tests.conftest import eventually
from tests.workbench import Workbench, delta


async def counting(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Calls the tool `act` three times, one after the other, and then says so."""
    asked = sum(1 for message in messages if isinstance(message, ModelRequest))
    if asked <= 3:
        yield {0: DeltaToolCall(name="act", json_args="{}", tool_call_id=f"c{asked}")}
    else:
        yield "acted"


def acting(act: Callable[..., Any], **options: Any) -> Agent[Any, str]:
    agent = Agent(FunctionModel(stream_function=counting), name="acting")
    agent.tool(name="act", **options)(act)
    return agent


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Leases that nobody loses because the machine is busy."""
    return settings.model_copy(update={"lease_seconds": 10.0})


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def spent(handle: RunHandle) -> BudgetReached:
    """Wait until the run waits for a budget to be raised; what it says of that."""

    async def waits() -> bool:
        view = await handle.status()
        assert not view.ended
        return view.reason == "budget_reached"

    await eventually(waits, what="the run to reach its budget")
    assert (await handle.status()).status == "suspended"
    return [chunk for chunk in await log(handle) if isinstance(chunk, BudgetReached)][-1]


async def log(handle: RunHandle) -> list[Chunk]:
    """The log as it is now."""
    found: list[Chunk] = []
    last = (await handle.status()).last_seq
    async for chunk in handle.observe():
        found.append(chunk)
        if chunk.seq == last:
            break
    return found


async def output(handle: RunHandle) -> Any:
    async with asyncio.timeout(15):
        return (await handle.result()).output


def effects_of() -> tuple[list[str], Callable[..., Any]]:
    """A tool, and the calls that it has had."""
    effects: list[str] = []

    async def act(ctx: RunContext[Any]) -> str:
        effects.append(tool_context(ctx).idempotency_key)
        return "done"

    return effects, act


class TestTokens:
    """`max_tokens` is looked at before each model request."""

    async def test_a_run_that_has_used_them_waits_and_goes_on_when_they_are_raised(self, connected: Any) -> None:
        effects, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=60)
            reached = (await spent(handle)).payload
            view = await handle.status()
            assert view.usage is not None
            assert (reached.budget, reached.limit, reached.used) == ("max_tokens", 60, view.usage.total_tokens)
            assert reached.used >= 60
            assert view.budget is not None
            assert (view.budget.max_tokens, view.budget.reached) == (60, "max_tokens")
            before = list(effects)
            assert 0 < len(before) < 3, "between two steps, and not after the last one"
            await handle.raise_budget(max_tokens=10_000, actor="ada")
            assert await output(handle) == "acted"
            chunks = [chunk async for chunk in handle.observe()]
            view = await handle.status()
        assert len(effects) == len(set(effects)) == 3
        assert view.budget is not None
        assert (view.budget.max_tokens, view.budget.reached, view.reason) == (10_000, None, None)
        [raised] = [chunk for chunk in chunks if isinstance(chunk, BudgetRaised)]
        assert (raised.payload.max_tokens, raised.payload.actor, raised.attempt) == (10_000, "ada", 0)
        assert sum(isinstance(chunk, BudgetReached) for chunk in chunks) == 1
        assert [chunk for chunk in chunks if isinstance(chunk, StepStart) and chunk.payload.void] == []
        assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))

    async def test_it_may_be_reached_and_raised_again_and_again(self, connected: Any) -> None:
        effects, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1)
            for steps in (1, 2, 3):
                used = (await spent(handle)).payload.used
                assert len(effects) == steps
                await handle.raise_budget(max_tokens=int(used) + 1)
            assert await output(handle) == "acted"
        assert len(effects) == 3

    async def test_a_run_may_end_there_as_at_the_step_limit(self, connected: Any) -> None:
        effects, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1, on_budget="end")
            assert await output(handle) == ""
            view = await handle.status()
            finish = [chunk async for chunk in handle.observe()][-1]
        assert (view.status, view.reason) == ("completed", "budget_reached")
        assert isinstance(finish, Finish)
        assert (finish.payload.budget_reached, finish.final) == ("max_tokens", True)
        assert finish.payload.max_steps_reached is None
        assert len(effects) == 1

    async def test_the_last_answer_may_be_beyond_it(self, connected: Any) -> None:
        async with connected(Agent(FunctionModel(stream_function=_hello), name="greeter")) as agent:
            handle = await agent.stream("go", max_tokens=1)
            assert await output(handle) == "hello"
            assert (await handle.status()).reason is None

    async def test_what_lost_attempts_have_used_counts(self, stage: Stage) -> None:
        run_id = await created(stage.bench, "ticking", prompt="3", max_tokens=1)
        await stage.crash(run_id, Point.CHECKPOINT_AFTER)
        await stage.crash(run_id, Point.TOOL_END_BEFORE)
        assert stage.resume(run_id) == "suspended"
        record = await stage.record(run_id)
        assert (record.reason, len(stage.effects(run_id, "model"))) == ("budget_reached", 1)
        assert await Budgets(stage.bench.store, stage.bench.runs).raise_(run_id, Raise(max_tokens=10_000)) is not None
        await stage.crash(run_id, Point.CHECKPOINT_AFTER)
        assert stage.resume(run_id) == "completed"
        assert len(stage.effects(run_id, "model")) == 4

    async def test_a_retry_may_use_what_the_old_run_was_allowed_in_the_end(self, connected: Any) -> None:
        _, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1)
            raised = int((await spent(handle)).payload.used) + 1
            await handle.raise_budget(max_tokens=raised)
            await spent(handle)
            await handle.cancel()
            again, _ = await handle._backend.runs.retry(handle.run_id)
        assert again.max_tokens == raised


async def _hello(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
    yield "hello"


async def created(bench: Workbench, agent: str = "nobody", **fields: Any) -> str:
    """A new run of this request; its id."""
    request = RunRequest(**{"prompt": "go", **fields})
    new = NewRun(agent=agent, kind="evented", queue="nowhere", request=request, retention=60)
    return (await bench.runs.create(new))[0].run_id


class TestSeconds:
    """`max_seconds` of execution; they may run out in the middle of a step."""

    async def test_a_response_that_they_cut_off_is_void_and_asked_for_again(self, connected: Any) -> None:
        asked: list[int] = []

        async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
            asked.append(1)
            yield "one "
            if len(asked) == 1:
                await asyncio.Event().wait()
            yield "two"

        async with connected(Agent(FunctionModel(stream_function=respond), name="slow")) as agent:
            handle = await agent.stream("go", max_seconds=0.3)
            reached = (await spent(handle)).payload
            assert (reached.budget, reached.limit) == ("max_seconds", 0.3)
            assert reached.used >= 0.3
            assert fold_text(await log(handle)) == "one "
            await handle.raise_budget(max_seconds=60)
            assert await output(handle) == "one two"
            chunks = [chunk async for chunk in handle.observe()]
        assert fold_text(chunks) == "one two"
        assert len(asked) == 2

    async def test_a_tool_that_they_interrupt_is_called_again_with_the_same_key(self, connected: Any) -> None:
        keys: list[str] = []

        async def act(ctx: RunContext[Any]) -> str:
            keys.append(tool_context(ctx).idempotency_key)
            if len(keys) == 2:
                await asyncio.Event().wait()
            return "done"

        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_seconds=0.5)
            await spent(handle)
            await handle.raise_budget(max_seconds=60)
            assert await output(handle) == "acted"
        assert len(keys) == 4
        assert keys[1] == keys[2]
        assert len(set(keys)) == 3

    async def test_a_run_may_end_there_with_what_it_has_said(self, connected: Any) -> None:
        async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
            yield "one "
            await asyncio.Event().wait()

        async with connected(Agent(FunctionModel(stream_function=respond), name="slow")) as agent:
            handle = await agent.stream("go", max_seconds=0.3, on_budget="end")
            await output(handle)
            view, chunks = await handle.status(), [chunk async for chunk in handle.observe()]
        assert (view.status, view.reason) == ("completed", "budget_reached")
        assert fold_text(chunks) == "one "
        assert chunks[-1].payload.budget_reached == "max_seconds"

    async def test_they_are_summed_over_attempts_and_waiting_does_not_count(self, bench: Workbench) -> None:
        run_id = await created(bench, max_seconds=100)

        async def used() -> float:
            return (await bench.runs.get(run_id)).seconds_used

        first = await bench.claim(run_id)
        await asyncio.sleep(0.03)
        assert await release(bench.store, first, wake_after=60)
        handed_back = await used()
        assert handed_back >= 0.025
        await asyncio.sleep(0.05)
        second = await bench.claim(run_id)
        assert await used() == handed_back, "the queue does not count"
        writer = RunWriter(bench.appender, second)
        await asyncio.sleep(0.03)
        writer.write(delta("x"), Note(checkpoint=b"{}"))
        await writer.flush()
        at_checkpoint = await used()
        assert at_checkpoint >= handed_back + 0.025
        assert await suspend(bench.store, second, 0, {"reason": "decision"}) == "suspended"
        suspended = await used()
        await asyncio.sleep(0.05)
        assert await used() == suspended
        await bench.runs.cancel(run_id)
        assert await used() == suspended

    async def test_who_has_none_left_begins_nothing(self, stage: Stage) -> None:
        run_id = await created(stage.bench, "ticking", prompt="1", max_seconds=60)
        await stage.bench.store.redis.hset(stage.bench.store.keys.run(run_id), "msUsed", "60000")
        assert stage.resume(run_id) == "suspended"
        assert stage.effects(run_id) == []
        assert (await stage.record(run_id)).reason == "budget_reached"

    async def test_who_takes_a_run_over_has_only_what_is_left(self, bench: Workbench, connected: Any) -> None:
        _, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1, max_seconds=60)
            await spent(handle)
            # As if the attempts so far had taken their time.
            await bench.store.redis.hset(bench.store.keys.run(handle.run_id), "msUsed", "59999")
            with pytest.raises(InvalidRequest):
                await handle.raise_budget(max_seconds=59.999, max_tokens=10_000)
            await handle.raise_budget(max_tokens=10_000, max_seconds=60.001)

            async def out_of_time() -> bool:
                view = await handle.status()
                return view.budget is not None and view.budget.reached == "max_seconds"

            await eventually(out_of_time, what="the rest to be used up")
            await handle.raise_budget(max_seconds=120)
            assert await output(handle) == "acted"


class TestRaising:
    """What raises a budget, what is refused, and that it happens once."""

    async def test_only_what_is_more_than_was_used_raises_it(self, connected: Any) -> None:
        _, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=60)
            used = int((await spent(handle)).payload.used)
            for refused in ({}, {"max_tokens": used}, {"max_seconds": 60}, {"max_tokens": 0}, {"max_seconds": -1}):
                with pytest.raises(InvalidRequest):
                    await handle.raise_budget(**refused)
            for nothing in (float("nan"), float("inf")):
                with pytest.raises(InvalidRequest):
                    await handle.raise_budget(max_seconds=nothing, max_tokens=10_000)
            assert (await handle.status()).status == "suspended"
            await handle.raise_budget(max_tokens=used + 1)

    async def test_only_a_run_that_waits_for_it_is_raised(self, connected: Any, bench: Workbench) -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def act(_: RunContext[Any]) -> str:
            begun.set()
            await go_on.wait()
            return "done"

        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=10_000)
            await asyncio.wait_for(begun.wait(), 10)
            for _ in range(2):
                with pytest.raises(BudgetNotReached):
                    await handle.raise_budget(max_tokens=10_000)
            go_on.set()
            await output(handle)
            with pytest.raises(RunEnded):
                await handle.raise_budget(max_tokens=20_000)
        with pytest.raises(UnknownRun):
            await Budgets(bench.store, bench.runs).raise_("nobody-knows-it", Raise(max_tokens=1))
        with pytest.raises(BudgetNotReached):
            await Budgets(bench.store, bench.runs).raise_(await bench.create(), Raise(max_tokens=1))

    async def test_what_was_compared_with_an_attempt_that_is_not_the_last_raises_nothing(
        self, connected: Any, bench: Workbench
    ) -> None:
        """It was raised meanwhile, and the run has reached a budget again: what it has used by then counts."""
        _, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=60)
            await spent(handle)
            before = await bench.runs.get(handle.run_id)
            await bench.store.redis.hincrby(bench.store.keys.run(handle.run_id), "token", 1)
            assert await Budgets(bench.store, bench.runs)._apply(before, Raise(max_tokens=10_000)) == "changed"
            assert (await handle.status()).status == "suspended"

    async def test_the_same_again_changes_nothing_for_ever(self, connected: Any) -> None:
        _, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1)
            await spent(handle)
            for _ in range(3):
                await handle.raise_budget(max_tokens=10_000)
            await output(handle)
            await handle.raise_budget(max_tokens=10_000, actor="late")
            with pytest.raises(RunEnded):
                await handle.raise_budget(max_tokens=10_001)
            chunks = [chunk async for chunk in handle.observe()]
        assert sum(isinstance(chunk, BudgetRaised) for chunk in chunks) == 1

    async def test_an_earlier_raise_again_changes_nothing_when_it_was_raised_since(self, connected: Any) -> None:
        """Its answer was lost, and somebody else was faster than who repeats it."""
        effects, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1)
            first = int((await spent(handle)).payload.used) + 1
            await handle.raise_budget(max_tokens=first, actor="ada")
            await spent(handle)
            await handle.raise_budget(max_tokens=first, actor="ada")  # it waits again, and has used that
            assert (await handle.status()).status == "suspended"
            with pytest.raises(InvalidRequest):
                await handle.raise_budget(max_tokens=first - 1)
            await handle.raise_budget(max_tokens=10_000, actor="bob")
            await output(handle)
            await handle.raise_budget(max_tokens=first, actor="ada")
            view = await handle.status()
            chunks = [chunk async for chunk in handle.observe()]
        assert view.budget is not None
        assert view.budget.max_tokens == 10_000
        raised = [chunk.payload for chunk in chunks if isinstance(chunk, BudgetRaised)]
        assert [(said.max_tokens, said.actor) for said in raised] == [(first, "ada"), (10_000, "bob")]
        assert len(effects) == 3

    async def test_the_last_raises_are_known_again_however_many_there_were(self, bench: Workbench) -> None:
        budgets, run_id = Budgets(bench.store, bench.runs), await bench.create()
        sizes: list[int] = []
        for number in range(1, 2 * REMEMBERED + 2):
            lease = await bench.claim(run_id)
            assert await suspend(bench.store, lease, 0, {"reason": "budget_reached"}, []) == "suspended"
            assert await budgets.raise_(run_id, Raise(max_tokens=100_000 + number, max_seconds=0.5)) is not None
            sizes.append(len((await bench.runs.get(run_id)).fields["raised"]))
        assert sizes[REMEMBERED - 1] == sizes[-1], "what is remembered has an end"
        newest = range(REMEMBERED + 2, 2 * REMEMBERED + 2)
        for number in newest:
            assert await budgets.raise_(run_id, Raise(max_tokens=100_000 + number, max_seconds=0.5)) is None
        for other in (
            Raise(max_tokens=100_000 + newest[0] - 1, max_seconds=0.5),
            Raise(max_tokens=100_000 + newest[0]),
        ):
            with pytest.raises(BudgetNotReached):
                await budgets.raise_(run_id, other)

    async def test_of_many_that_raise_it_at_once_one_counts(self, connected: Any) -> None:
        effects, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1)
            await spent(handle)
            raised = [handle.raise_budget(max_tokens=10_000 + number) for number in range(40)]
            outcomes = await asyncio.gather(*raised, return_exceptions=True)
            assert outcomes.count(None) == 1
            assert {type(outcome) for outcome in outcomes} <= {type(None), BudgetNotReached, RunEnded}
            await output(handle)
            chunks = [chunk async for chunk in handle.observe()]
            view = await handle.status()
        assert len(effects) == 3
        [chunk] = [chunk for chunk in chunks if isinstance(chunk, BudgetRaised)]
        assert view.budget is not None
        assert chunk.payload.max_tokens == view.budget.max_tokens == 10_000 + outcomes.index(None)

    async def test_against_a_cancel_there_is_one_end(self, connected: Any) -> None:
        async with connected(acting(effects_of()[1])) as agent:
            for turn in range(20):
                handle = await agent.stream("go", max_tokens=1)
                used = int((await spent(handle)).payload.used)
                first, second = handle.cancel(), handle.raise_budget(max_tokens=used + 1)
                both = (first, second) if turn % 2 else (second, first)
                outcomes = await asyncio.gather(*both, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} <= {bool, type(None), RunEnded}

                async def ended(handle: RunHandle = handle) -> bool:
                    return (await handle.status()).ended

                await eventually(ended, what="the run to end")
                chunks = [chunk async for chunk in handle.observe()]
                assert (await handle.status()).status == "cancelled"
                assert [chunk.seq for chunk in chunks if chunk.final] == [len(chunks)]

    async def test_an_observer_that_hears_of_it_may_raise_it_at_once(self, connected: Any) -> None:
        _, act = effects_of()
        async with connected(acting(act)) as agent:
            handle = await agent.stream("go", max_tokens=1)
            async with asyncio.timeout(20):
                async for chunk in handle.observe():
                    if isinstance(chunk, BudgetReached):
                        await handle.raise_budget(max_tokens=int(chunk.payload.used) + 1)
            assert await output(handle) == "acted"

    async def test_a_call_is_answered_meanwhile_and_made_once_when_the_run_goes_on(self, connected: Any) -> None:
        effects: list[str] = []
        hanging = asyncio.Event()

        async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
            if len(messages) == 1:
                yield {0: DeltaToolCall(name="send", json_args="{}", tool_call_id="c0")}
                yield {1: DeltaToolCall(name="hang", json_args="{}", tool_call_id="c1")}
            else:
                yield "sent"

        agent = Agent(FunctionModel(stream_function=respond), name="mail")

        @agent.tool_plain(requires_approval=True)
        def send() -> str:
            effects.append("sent")
            return "sent"

        @agent.tool_plain
        async def hang() -> str:
            if not hanging.is_set():
                hanging.set()
                await asyncio.Event().wait()
            return "hung"

        async with connected(agent) as durable:
            handle = await durable.stream("go", max_seconds=0.5)
            await spent(handle)
            assert [call.tool_call_id for call in (await handle.status()).pending or []] == ["c0"]
            await handle.approve("c0")
            view = await handle.status()
            assert (view.status, view.reason, view.pending) == ("suspended", "budget_reached", None)
            assert effects == []
            await handle.raise_budget(max_seconds=60)
            assert await output(handle) == "sent"
        assert effects == ["sent"]

    async def test_why_tells_which_budget_and_how_to_raise_it(self, connected: Any, bench: Workbench) -> None:
        async with connected(acting(effects_of()[1])) as agent:
            handle = await agent.stream("go", max_tokens=60)
            used = int((await spent(handle)).payload.used)
            announcements = Announcements(bench.store)
            found = diagnose(await examine(bench.store, bench.runs, announcements, bench.settings, handle.run_id))
        assert found.reason == "budget_reached"
        assert found.summary == "It has used up its budget of 60 tokens, and waits until that is raised."
        assert found.facts[0].message == f"It may use 60 tokens, and has used {used}."
        assert f"durable raise {handle.run_id} --max-tokens" in found.facts[1].message


class TestSteps:
    """`step_seconds`: a model request and its tools take no longer, or the run fails."""

    @pytest.mark.parametrize("by", ["agent", "run"])
    async def test_a_response_that_takes_too_long_fails_the_run(self, connected: Any, by: str) -> None:
        async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
            yield "one "
            await asyncio.Event().wait()

        agent = Agent(FunctionModel(stream_function=respond), name="slow")
        limits = {"step_seconds": 0.2}
        async with connected(agent, **(limits if by == "agent" else {"step_seconds": 60})) as durable:
            handle = await durable.stream("go", **(limits if by == "run" else {}))
            with pytest.raises(RunFailed) as failed:
                await output(handle)
            chunks = [chunk async for chunk in handle.observe()]
        assert failed.value.failure_code == "step_timeout"
        assert [chunk.type for chunk in chunks[-2:]] == ["error", "finish"]
        assert fold_text(chunks) == "one "

    async def test_tools_that_take_too_long_fail_it_too_and_each_step_has_its_own_time(self, connected: Any) -> None:
        calls: list[int] = []

        async def act(_: RunContext[Any]) -> str:
            calls.append(1)
            await (asyncio.Event().wait() if len(calls) == 3 else asyncio.sleep(0.4))
            return "done"

        async with connected(acting(act), step_seconds=0.7) as durable:
            with pytest.raises(RunFailed) as failed:
                await output(await durable.stream("go"))
        assert failed.value.failure_code == "step_timeout"
        assert len(calls) == 3
