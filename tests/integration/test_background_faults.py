"""What may go wrong with calls in the background: bad results, cancels, lost workers, races."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import ProcessHistory
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunHandle, agent_tool, emit, tool_context
from durable.announcements import Announcements
from durable.definition import AgentDefinition
from durable.diagnosis import diagnose, examine, views
from durable.errors import LeaseLost, LimitReached
from durable.execution import engine as engines
from durable.execution.attempt import Attempt
from durable.execution.waits import Waits
from durable.leases import Refusal, claim, suspend
from durable.probes import Point
from durable.runs import Parent, RunRequest, ToolCallRequest
from durable.settings import Settings
from durable.store import Store, text
from durable.sweeper import Sweeper
from tests.chaos.flows import Flow
from tests.chaos.play import let_them_be_found, play, sweep
from tests.chaos.stage import Stage
from tests.chaos.task_flows import CANCELLED, TASK_FLOWS, UNTIL_IDLE
from tests.conftest import eventually
from tests.integration.test_background import Gate, agent_of, calling, children, heard, idle, told, types
from tests.workbench import Workbench, completed, finish, new_run

ENDS = ("background-task-completed", "background-task-failed", "background-task-cancelled")
AWAITED, DEFERRED = TASK_FLOWS["awaited"], TASK_FLOWS["deferred"]


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def ended(handle: RunHandle) -> Any:
    """How a run ends."""

    async def over() -> bool:
        return (await handle.status()).ended

    await eventually(over, what="the run to end")
    return await handle.status()


async def no_json(_: RunContext[Any], n: int) -> Any:
    return {"n": n, "garbage": object()}


async def too_much(_: RunContext[Any], n: int) -> str:
    return "x" * n * 5_000_000


class TestResults:
    @pytest.mark.parametrize("body", [no_json, too_much])
    async def test_a_result_that_can_not_be_stored_fails_the_task_and_is_told(
        self, connected: Any, store: Store, body: Any
    ) -> None:
        async with connected(agent_of(body, background=True, retries=3)) as agent:
            handle = await agent.stream("go", until_idle=True)
            assert (await told(handle))[1].startswith("failed: The tool 'work' returned ")
            [task] = await children(store, handle)
            view = await (await agent.handle(task)).status()
            assert (view.status, view.error.code, view.attempt) == ("failed", "tool_result_invalid", 1)

    async def test_many_results_at_once_are_told_once_each(self, connected: Any) -> None:
        gate = Gate()
        async with connected(agent_of(gate.work, background=True, calls=10)) as agent:
            handle = await agent.stream("go", until_idle=True)
            await idle(handle)
            gate.open.set()
            found = await told(handle)
            assert sorted(found[10:]) == sorted(f"completed. Its result: done {n}" for n in range(1, 11))
            seen = await types(handle)
            assert seen.count("background-task-completed") == seen.count("tool-result") == 10

    async def test_what_comes_when_the_run_was_cancelled_changes_nothing_of_it(
        self, connected: Any, store: Store
    ) -> None:
        begun, stubborn = asyncio.Event(), asyncio.Event()

        async def work(_: RunContext[Any], n: int) -> str:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await stubborn.wait()
            return str(n)

        async with connected(agent_of(work, background=True)) as agent:
            handle = await agent.stream("go", until_idle=True)
            await idle(handle)
            await begun.wait()
            await handle.cancel()
            last = (await ended(handle)).last_seq
            [task] = await children(store, handle)
            stubborn.set()
            assert (await ended(await agent.handle(task))).status == "cancelled"
            assert (await handle.status()).last_seq == last

    async def test_what_comes_when_the_run_has_failed_changes_nothing_of_it(self, connected: Any, store: Store) -> None:
        gate = Gate()
        agent = Agent(calling(("work", {"n": 1}), ("fail", {})), name="support")
        agent.tool(name="work", metadata={"durable": {"background": True}})(gate.work)

        @agent.tool_plain(metadata={"durable": {"background": "awaited"}})
        def fail() -> str:
            raise LookupError

        async with connected(agent) as durable:
            handle = await durable.stream("go", until_idle=True)
            failed = await ended(handle)
            assert (failed.status, failed.error.code) == ("failed", "tool_failed")
            [task] = [
                chunk.payload.task_id
                async for chunk in handle.observe()
                if chunk.type == "background-task-started" and chunk.payload.tool_name == "work"
            ]
            gate.open.set()
            assert (await (await durable.handle(task)).result()).output == "done 1"
            assert await handle.status() == failed
        assert await store.redis.hget(store.keys.children(handle.run_id), task) == b"ended"

    @pytest.mark.parametrize(
        ("point", "made"),
        [(Point.TOOL_END_BEFORE, 2), (Point.TOOL_END_AFTER, 2), (Point.FINISH_BEFORE, 1), (Point.FINISH_AFTER, 1)],
    )
    async def test_a_worker_that_is_lost_between_a_result_and_its_delivery_neither_loses_nor_doubles_it(
        self, stage: Stage, point: Point, made: int
    ) -> None:
        run_id = await stage.bench.create(agent=AWAITED.agent)
        assert stage.execute(run_id).outcome == "suspended"
        _, task, _ = await stage.family(run_id)
        assert stage.execute(task, point, of=run_id).crashed
        await let_them_be_found(stage, [run_id])
        await play(stage, AWAITED, run_id)
        assert json.loads((await stage.record(run_id)).json("output")) == AWAITED.told
        assert len(stage.effects(run_id, "pay")) == made
        kinds = [chunk.type for chunk in await stage.bench.chunks(run_id)]
        assert (kinds.count("background-task-completed"), kinds.count("tool-result")) == (2, 2)

    async def test_one_that_comes_just_before_the_run_is_suspended_is_no_result_as_it_is_stored(
        self, connected: Any, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The call has just been found to wait, and the step's calls that wait are about to be looked at."""
        late: list[Waits] = []
        resolve = Waits.resolve

        async def resolve_later(waits: Waits, *args: Any) -> Any:
            if not late:
                late.append(waits)
                run_id = waits._writer.lease.run_id

                async def there() -> bool:
                    return list(await store.redis.hvals(store.keys.children(run_id))) == [b"ended"]

                await eventually(there, what="the task to end")
            return await resolve(waits, *args)

        monkeypatch.setattr(Waits, "resolve", resolve_later)
        gate = Gate()
        gate.open.set()
        async with connected(agent_of(gate.work, background="awaited")) as agent:
            handle = await agent.stream("go")
            assert await told(handle) == [["c1", "success", "done 1"]]
            assert (await types(handle)).count("tool-result") == 1
        assert late


class TestWakeUps:
    async def test_none_is_lost_when_a_task_ends_just_as_its_run_is_suspended(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        run_id = await stage.bench.create(agent=AWAITED.agent)

        async def suspend_later(store: Store, lease: Any, *args: Any, **options: Any) -> str:
            if lease.run_id == run_id and not seen:
                for task in (await stage.family(run_id))[1:]:
                    assert stage.execute(task, of=run_id).outcome == "completed"
            found = await suspend(store, lease, *args, **options)
            seen.append(found)
            return found

        monkeypatch.setattr(engines, "suspend", suspend_later)
        async with stage.engine() as engine:
            assert await engine.execute(run_id) == "handed-back"
            assert seen == ["decided"]
            assert await engine.execute(run_id) == "completed"

    async def test_none_is_lost_when_what_a_task_came_to_is_known_only_after_the_run_has_found_nothing_to_tell(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever hears of answers has looked meanwhile: that they are known is not that they were used."""
        run_id = await stage.bench.create(agent=DEFERRED.agent, asked=DEFERRED.asked)
        waits, looked = Attempt._wait, list[str]()

        async def wait_later(attempt: Attempt, raised: Any) -> Any:
            if not looked:
                for task in (await stage.family(run_id))[1:]:
                    looked.append(str(stage.execute(task, of=run_id).outcome))
                await attempt._look()
            return await waits(attempt, raised)

        monkeypatch.setattr(Attempt, "_wait", wait_later)
        async with stage.engine() as engine:
            assert await engine.execute(run_id) == "handed-back"
            assert set(looked) == {"completed"}
            assert await engine.execute(run_id) == "completed"

    @pytest.mark.parametrize("flow", [AWAITED, DEFERRED], ids=["awaited", "deferred"])
    @pytest.mark.parametrize("point", [Point.SUSPEND_BEFORE, Point.SUSPEND_AFTER])
    async def test_none_is_lost_when_the_worker_of_the_run_is_lost_as_its_tasks_end(
        self, stage: Stage, flow: Flow, point: Point
    ) -> None:
        run_id = await stage.bench.create(agent=flow.agent, asked=flow.asked)
        assert stage.execute(run_id, point).crashed
        for task in (await stage.family(run_id))[1:]:
            assert stage.execute(task, of=run_id).outcome == "completed"
        await let_them_be_found(stage, [run_id])
        await play(stage, flow, run_id)
        assert json.loads((await stage.record(run_id)).json("output")) == flow.told

    async def test_a_task_whose_queue_has_no_worker_does_not_keep_its_run_for_ever(self, stage: Stage) -> None:
        run_id = await stage.bench.create(agent=DEFERRED.agent, asked={"max_idle": 0.05})
        assert stage.execute(run_id).outcome == "suspended"

        async def woken() -> bool:
            await sweep(stage)
            return run_id in stage.woken

        await eventually(woken, what="the run to have waited for long enough")
        assert stage.execute(run_id).outcome == "completed"
        statuses = [(await stage.record(each)).status for each in await stage.family(run_id)]
        assert statuses == ["completed", "queued", "queued"]


class TestStarts:
    async def test_who_has_lost_a_run_starts_no_task_for_it(self, bench: Workbench) -> None:
        run_id = await bench.create()
        first = await bench.claim(run_id)
        await bench.store.redis.zadd(bench.store.keys.leases, {first.member: 0})
        second = await bench.claim(run_id)
        with pytest.raises(LeaseLost):
            await bench.runs.create(task_of(run_id, first.token))
        assert not await bench.store.redis.exists(bench.store.keys.children(run_id))
        assert (await bench.runs.create(task_of(run_id, second.token)))[1]

    async def test_a_run_that_is_cancelled_while_it_starts_a_task_cancels_it(self, stage: Stage) -> None:
        run_id = await stage.bench.create(agent=AWAITED.agent)

        def probe(point: Point) -> None:
            if point is Point.DELEGATE_AFTER:
                engine.cancel(run_id)

        async with stage.engine(probe) as engine:
            assert await engine.execute(run_id) == "cancelled"
        await sweep(stage)
        statuses = [(await stage.record(each)).status for each in await stage.family(run_id)]
        assert len(statuses) >= 2
        assert set(statuses) == {"cancelled"}
        assert stage.effects(run_id, "pay", "send") == []

    @pytest.mark.parametrize("when", [None, Point.MIRROR_AFTER, Point.TOOL_START_BEFORE, Point.TOOL_START_AFTER])
    async def test_a_task_that_is_cancelled_while_it_starts_makes_no_call_and_its_run_is_told(
        self, stage: Stage, when: Point | None
    ) -> None:
        run_id = await stage.bench.create(agent=AWAITED.agent)
        assert stage.execute(run_id).outcome == "suspended"
        _, task, other = await stage.family(run_id)

        def probe(point: Point) -> None:
            if point is when:
                engine.cancel(task)

        if when is None:
            await stage.bench.runs.cancel(task)
        else:
            async with stage.engine(probe) as engine:
                assert await engine.execute(task) == "cancelled"
        assert (await stage.record(task)).status == "cancelled"
        assert stage.effects(run_id, "pay") == []
        assert stage.execute(other, of=run_id).outcome == "completed"
        assert stage.execute(run_id).outcome == "completed"
        heard_of = json.loads((await stage.record(run_id)).json("output"))
        assert heard_of == AWAITED.told | {"c1": ["failed", CANCELLED]}

    async def test_a_task_that_an_earlier_version_of_the_tool_has_started_is_the_task(self, stage: Stage) -> None:
        """The call's task was started, the worker was lost, and the next one has a tool with other options."""
        run_id = await stage.bench.create(agent=AWAITED.agent)
        assert stage.execute(run_id, Point.DELEGATE_AFTER).crashed
        [task, *_] = (await stage.family(run_id))[1:]
        keys, redis = stage.bench.store.keys, stage.bench.store.redis
        await redis.hset(keys.run(task), "requestHash", "another")
        await let_them_be_found(stage, [run_id])
        await play(stage, AWAITED, run_id)
        assert json.loads((await stage.record(run_id)).json("output")) == AWAITED.told

    async def test_a_call_that_was_begun_in_its_run_stays_there_when_a_place_comes_free(
        self, connected: Any, store: Store, settings: Settings
    ) -> None:
        """Its worker was lost in it: it is made again there, under its key, and not in a task besides."""
        keys: list[str] = []
        lost = asyncio.Event()

        async def work(ctx: RunContext[Any], n: int) -> str:
            keys.append(tool_context(ctx).idempotency_key)
            if len(keys) == 1:
                lost.set()
                await asyncio.Event().wait()
            return f"done {n}"

        options: dict[str, Any] = {"background": True, "max_concurrency": 1, "on_limit": "foreground"}
        limit = f"{settings.prefix}:limit:tool:support:work"
        await store.redis.sadd(limit, "somebody")
        async with connected(agent_of(work, **options)) as agent:
            handle = await agent.stream("go")
            await lost.wait()
            await store.redis.delete(limit)
            (await agent._backend()).engine.hand_back(handle.run_id)
            assert await told(handle) == [["c1", "success", "done 1"]]
            assert await children(store, handle) == []
            assert keys == [f"{handle.run_id}:1:c1"] * 2


def task_of(run_id: str, token: int, call: str = "c1", **fields: Any) -> Any:
    """A background task to create."""
    parent = Parent(run_id, token, 1, 0, call, "work", "deferred")
    request = RunRequest(
        tool_call=ToolCallRequest(tool_name="work", tool_call_id=call, args={}, idempotency_key=f"{run_id}:1:{call}")
    )
    return replace(new_run(), kind="task", request=request, parent=parent, run_id=f"task-{call}-{run_id}", **fields)


class TestLimits:
    @pytest.fixture
    async def parent(self, bench: Workbench) -> Any:
        """Makes tasks of a run that is executed."""
        lease = await bench.claim(await bench.create())

        async def make(call: str, **fields: Any) -> str:
            record, _ = await bench.runs.create(
                task_of(lease.run_id, lease.token, call, **{"limits": {"one": 1}, **fields})
            )
            return record.run_id

        return make

    async def test_a_place_that_was_offered_to_a_task_that_is_cancelled_goes_to_the_next(
        self, bench: Workbench, parent: Any
    ) -> None:
        first, second, third = [await parent(f"c{n}") for n in range(3)]
        writer = await bench.writer(first)
        assert await limited(bench, second)
        assert await limited(bench, third)
        await writer.finish(completed(), finish())
        assert await woken(bench) == [second]
        await bench.runs.cancel(second)
        assert await woken(bench) == [third]
        await bench.claim(third)

    async def test_one_that_finds_no_place_when_it_is_created_is_woken_when_there_is_one_and_not_before(
        self, bench: Workbench, parent: Any
    ) -> None:
        redis, keys = bench.store.redis, bench.store.keys
        first = await parent("c1")
        writer = await bench.writer(first)
        second, third = await parent("c2"), await parent("c3", limits={"one": 1, "two": 1})
        [view, _] = await views(
            bench.store, Announcements(bench.store), [await bench.runs.get(task) for task in (second, third)]
        )
        assert (view.status, view.reason) == ("queued", "limit_reached")
        assert await redis.zmscore(keys.wakeups, [second, third]) == [None, None]
        await writer.finish(completed(), finish())
        assert await woken(bench) == [second]
        writer = await bench.writer(second)
        await writer.finish(completed(), finish())
        assert await woken(bench) == [third]
        await bench.claim(third)

    async def test_nobody_tries_to_execute_one_that_has_no_place(
        self, connected: Any, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claimed: list[str] = []

        async def noted(store: Store, settings: Settings, run_id: str, *args: Any, **options: Any) -> Any:
            claimed.append(run_id)
            return await claim(store, settings, run_id, *args, **options)

        monkeypatch.setattr(engines, "claim", noted)
        gate = Gate()
        async with connected(agent_of(gate.work, calls=3, background=True, max_concurrency=1)) as agent:
            one = await agent.stream("go", until_idle=True)
            await idle(one)

            async def taken() -> bool:
                views = [await (await agent.handle(task)).status() for task in await children(store, one)]
                return any(view.status == "running" for view in views)

            await eventually(taken, what="the place to be taken")
            other = await agent.stream("go", until_idle=True)
            await idle(other)
            tasks = set(await children(store, other))
            assert len(tasks) == 3
            assert not tasks & set(claimed)
            gate.open.set()
            assert len(await told(one)) == len(await told(other)) == 6
            assert tasks < set(claimed)

    async def test_a_place_that_nobody_takes_goes_to_the_next(self, bench: Workbench, parent: Any) -> None:
        """The one that it was offered to is in a queue that no worker reads."""
        first, second, third = [await parent(f"c{n}") for n in range(3)]
        writer = await bench.writer(first)
        assert await limited(bench, second)
        assert await limited(bench, third)
        await writer.finish(completed(), finish())
        assert await woken(bench) == [second]
        await due(bench, second)
        assert third in await woken(bench)
        await bench.claim(third)
        assert await limited(bench, second)

    async def test_a_place_of_a_lost_worker_comes_free_and_is_not_given_twice(
        self, bench: Workbench, parent: Any
    ) -> None:
        first, second = [await parent(f"c{n}") for n in range(2)]
        lease = await bench.claim(first)
        assert await limited(bench, second)
        await bench.store.redis.zadd(bench.store.keys.leases, {lease.member: 0})
        assert await limited(bench, second), "as long as nobody has noticed"
        await sweep_of(bench)
        assert second in await woken(bench)
        await bench.claim(second)
        assert await limited(bench, first)

    async def test_one_that_is_not_to_wait_has_its_place_from_the_beginning(
        self, bench: Workbench, parent: Any
    ) -> None:
        first = await parent("c1", on_limit="reject")
        with pytest.raises(LimitReached):
            await parent("c2", on_limit="reject")
        second = await parent("c3")
        assert await limited(bench, second)
        await bench.runs.cancel(first)
        assert await woken(bench) == [second]
        await bench.claim(second)

    async def test_one_under_two_limits_takes_no_place_while_it_waits_for_the_other(
        self, bench: Workbench, parent: Any
    ) -> None:
        first = await parent("c1", limits={"a": 1})
        both = await parent("c2", limits={"a": 1, "b": 1})
        other = await parent("c3", limits={"b": 1})
        writer = await bench.writer(first)
        assert await limited(bench, both)
        await bench.claim(other)
        await writer.finish(completed(), finish())
        assert await woken(bench) == [both]
        assert await limited(bench, both)
        assert not await bench.store.redis.exists(f"{bench.settings.prefix}:limit:a")

    async def test_one_that_waits_for_a_place_says_first_that_no_worker_serves_it(
        self, bench: Workbench, parent: Any
    ) -> None:
        first, second = [await parent(f"c{n}") for n in range(2)]
        announcements = Announcements(bench.store)
        await announcements.announce([AgentDefinition("nobody", Agent(calling(), name="nobody"), "evented")])
        await bench.claim(first)
        assert await limited(bench, second)

        async def reasons() -> list[str | None]:
            records = [await bench.runs.get(task) for task in (first, second)]
            found = await examine(bench.store, bench.runs, announcements, bench.settings, second)
            return [diagnose(found).reason, *(view.reason for view in await views(bench.store, announcements, records))]

        assert await reasons() == ["no_worker", None, "no_worker"]
        await announcements.show("worker", ["nobody"])
        assert await reasons() == ["limit_reached", None, "limit_reached"]


async def limited(bench: Workbench, task: str) -> bool:
    """Whether there is no place for a task."""
    return await claim(bench.store, bench.settings, task, "test") == Refusal("limited")


async def woken(bench: Workbench) -> list[str]:
    """The tasks that a script has woken since."""
    return [text(task) for task in await bench.store.redis.lpop(bench.store.keys.woken, 100) or []]


async def due(bench: Workbench, task: str) -> None:
    """Let a wake-up be taken for lost, and the sweeper come."""
    assert await bench.store.redis.zadd(bench.store.keys.wakeups, {task: 0}, xx=True, ch=True) == 1
    await sweep_of(bench)


async def sweep_of(bench: Workbench) -> None:
    async def nobody(_: Any) -> None:
        """It is claimed by the test."""

    await Sweeper(bench.store, bench.settings, nobody, "test").sweep()


class TestHandingBack:
    async def test_a_task_that_is_handed_back_at_a_deploy_goes_on_elsewhere(self, stage: Stage) -> None:
        run_id = await stage.bench.create(agent=DEFERRED.agent, asked=UNTIL_IDLE)
        assert stage.execute(run_id).outcome == "suspended"
        task = (await stage.family(run_id))[1]

        def probe(point: Point) -> None:
            if point is Point.TOOL_START_AFTER:
                engine.hand_back(task)

        async with stage.engine(probe) as engine:
            assert await engine.execute(task) == "handed-back"
        record = await stage.record(task)
        assert (record.status, record.claims) == ("queued", 0)
        await play(stage, DEFERRED, run_id)
        assert json.loads((await stage.record(run_id)).json("output")) == DEFERRED.told


class TestRetriedRuns:
    """A run has failed: one of its tasks is done, one is under way, one has failed."""

    class Site:
        def __init__(self) -> None:
            self.keys: list[tuple[int, str]] = []
            self.fails = True
            self.free = asyncio.Event()

        async def work(self, ctx: RunContext[Any], n: int) -> str:
            self.keys.append((n, tool_context(ctx).idempotency_key))
            if n == 2:
                await self.free.wait()
            if n == 3 and self.fails:
                raise LookupError("secret")
            return f"done {n}"

    @pytest.fixture
    def site(self) -> TestRetriedRuns.Site:
        return TestRetriedRuns.Site()

    async def failed(self, agent: Any, site: Any) -> RunHandle:
        handle: RunHandle = await agent.stream("go")
        assert (await ended(handle)).status == "failed"
        assert sorted(n for n, _ in site.keys) == [1, 2, 3]
        site.fails = False
        return handle

    async def test_what_is_done_or_under_way_is_not_made_again(self, connected: Any, site: Any) -> None:
        async with connected(agent_of(site.work, background="awaited", calls=3)) as agent:
            handle = await self.failed(agent, site)
            record, _ = await (await agent._backend()).retry(handle.run_id)
            again = await agent.handle(record.run_id)
            site.free.set()
            assert await told(again) == [[f"c{n}", "success", f"done {n}"] for n in (1, 2, 3)]
            assert sorted(n for n, _ in site.keys) == [1, 2, 3, 3]
            assert {key for n, key in site.keys if n == 3} == {f"{handle.run_id}:1:c3"}

    async def test_a_second_retry_takes_nothing_away_from_the_first(self, connected: Any, site: Any) -> None:
        async with connected(agent_of(site.work, background="awaited", calls=3)) as agent:
            handle = await self.failed(agent, site)
            retries = [(await (await agent._backend()).retry(handle.run_id))[0].run_id for _ in range(2)]
            site.free.set()
            for run_id in retries:
                assert await told(await agent.handle(run_id)) == [[f"c{n}", "success", f"done {n}"] for n in (1, 2, 3)]
            assert {key for _, key in site.keys} == {f"{handle.run_id}:1:c{n}" for n in (1, 2, 3)}
            assert [n for n, _ in site.keys].count(1) == 1

    async def test_the_awaited_calls_of_a_cancelled_run_are_made_again(
        self, connected: Any, store: Store, site: Any
    ) -> None:
        site.fails = False
        async with connected(agent_of(site.work, background="awaited", calls=2)) as agent:
            handle = await agent.stream("go")

            async def waits() -> bool:
                return sorted(n for n, _ in site.keys) == [1, 2] and (await handle.status()).status == "suspended"

            await eventually(waits, what="the tasks to be under way")
            await handle.cancel()
            for task in await children(store, handle):
                await ended(await agent.handle(task))
            site.free.set()
            record, _ = await (await agent._backend()).retry(handle.run_id)
            assert await told(await agent.handle(record.run_id)) == [[f"c{n}", "success", f"done {n}"] for n in (1, 2)]
            assert {key for _, key in site.keys} == {f"{handle.run_id}:1:c{n}" for n in (1, 2)}


class TestBeside:
    """Tasks, and what else a run may have."""

    async def test_a_thread_has_what_its_run_was_told_of_its_tasks(self, connected: Any) -> None:
        gate = Gate()
        gate.open.set()
        async with connected(agent_of(gate.work, background=True)) as agent:
            handle = await agent.stream("go", thread_id="talk", until_idle=True)
            first = await told(handle)
            following = await agent.stream("and now?", thread_id="talk")
            assert await told(following) == first

    async def test_what_an_agent_used_that_was_asked_counts_for_the_budget(self, connected: Any) -> None:
        async def answer(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
            yield "word " * 500 if messages else ""

        other = connected(Agent(FunctionModel(stream_function=answer), name="other"))
        boss = Agent(calling(("other", {"prompt": "why?"})), name="boss", tools=[agent_tool(other)])
        async with connected(boss) as agent:
            handle = await agent.stream("go", max_tokens=300)
            await idle(handle, reason="budget_reached")
            await handle.raise_budget(max_tokens=5000)
            [[call, how, _]] = await told(handle)
            assert (call, how) == ("c1", "success")

    async def test_a_task_that_ends_while_a_budget_is_used_up_is_told_when_that_is_raised(
        self, connected: Any, store: Store
    ) -> None:
        gate = Gate()
        async with connected(agent_of(gate.work, background=True)) as agent:
            handle = await agent.stream("go", max_tokens=1, until_idle=True)
            await idle(handle, reason="budget_reached")
            gate.open.set()

            async def done() -> bool:
                return list(await store.redis.hvals(store.keys.children(handle.run_id))) == [b"ended"]

            await eventually(done, what="the task to end")
            assert (await handle.status()).reason == "budget_reached"
            await handle.raise_budget(max_tokens=5000)
            assert "completed. Its result: done 1" in await told(handle)

    async def test_a_history_processor_sees_the_news_and_does_not_lose_them(self, connected: Any) -> None:
        gate, seen = Gate(), []
        gate.open.set()

        def newest(messages: list[ModelMessage]) -> list[ModelMessage]:
            seen.append(heard(messages))
            return messages

        agent = Agent(calling(("work", {"n": 1})), name="support", capabilities=[ProcessHistory(newest)])
        agent.tool(name="work", metadata={"durable": {"background": True}})(gate.work)
        async with connected(agent) as durable:
            handle = await durable.stream("go", until_idle=True)
            assert "completed. Its result: done 1" in await told(handle)
            assert "completed. Its result: done 1" in seen[-1]

    async def test_an_agent_with_a_structured_output_goes_on_until_all_is_idle(self, connected: Any) -> None:
        class Summary(BaseModel):
            heard: list[Any]

        async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
            if any(isinstance(message, ModelResponse) for message in messages):
                args = json.dumps({"heard": [item for item in heard(messages) if isinstance(item, str)]})
                yield {1: DeltaToolCall(name="final_result", json_args=args, tool_call_id=f"f{len(messages)}")}
            else:
                yield {1: DeltaToolCall(name="work", json_args='{"n": 1}', tool_call_id="c1")}

        gate = Gate()
        model = FunctionModel(stream_function=respond)
        agent = Agent(model, name="support", output_type=Summary)
        agent.tool(name="work", metadata={"durable": {"background": True}})(gate.work)
        async with connected(agent) as durable:
            handle = await durable.stream("go", until_idle=True)
            await idle(handle)
            gate.open.set()
            result = await handle.result()
            assert result.output == Summary(heard=["completed. Its result: done 1"])

    async def test_a_run_whose_model_calls_the_tool_again_tells_both_results(self, connected: Any) -> None:
        """Models may use an id again in another step."""
        gate, turns = Gate(), []
        gate.open.set()

        async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
            turns.append(messages)
            number = sum(isinstance(message, ModelResponse) for message in messages)
            if number < 2:
                yield {1: DeltaToolCall(name="work", json_args=json.dumps({"n": number}), tool_call_id="c")}
            else:
                yield json.dumps(heard(messages))

        agent = Agent(FunctionModel(stream_function=respond), name="support")
        agent.tool(name="work", metadata={"durable": {"background": True}})(gate.work)
        async with connected(agent) as durable:
            handle = await durable.stream("go", until_idle=True)
            found = [item for item in await told(handle) if isinstance(item, str)]
            assert sorted(found) == [f"completed. Its result: done {n}" for n in (0, 1)]


async def test_what_a_task_says_is_told_in_order_and_once(connected: Any) -> None:
    async def talk(ctx: RunContext[Any], n: int) -> str:
        for i in range(60):
            await emit(ctx, {"part": i})
            await asyncio.sleep(0.01)
        return str(n)

    async with connected(agent_of(talk, background="awaited")) as agent:
        handle = await agent.stream("go")
        await told(handle)
        said = [
            c.payload.payload["payload"]["output"]["part"]
            async for c in handle.observe()
            if c.type == "background-task-output"
        ]
        assert said == list(range(60))
