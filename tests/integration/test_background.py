"""Calls that are made in the background: begun once, told once, and the run that goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel

from durable import (
    Background,
    RunHandle,
    agent_tool,
    create_durable_agent,
    create_evented_agent,
    emit,
    resume_data,
    suspend,
)
from durable.errors import RunConflict
from durable.execution import mirror
from durable.runs import Runs
from durable.scripts import MIRROR
from durable.settings import Settings
from durable.store import Store, text
from tests.conftest import eventually

STARTED = ("background-task-started", "background-task-running")
Call = tuple[str, dict[str, Any]]


def calling(*calls: Call) -> FunctionModel:
    """A model that calls these tools at once, and then tells all that it was told of them, in every turn."""

    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if any(isinstance(message, ModelResponse) for message in messages):
            yield json.dumps(heard(messages))
            return
        for i, (name, args) in enumerate(calls, 1):
            yield {i: DeltaToolCall(name=name, json_args=json.dumps(args), tool_call_id=f"c{i}")}

    return FunctionModel(stream_function=respond)


def heard(messages: list[ModelMessage]) -> list[Any]:
    """What a model was told of its calls."""
    found: list[Any] = []
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                found.append([part.tool_call_id, part.outcome, part.content])
            elif isinstance(part, UserPromptPart) and str(part.content).startswith("Background task"):
                found.append(str(part.content).split(") ", 1)[1])
    return found


async def told(handle: RunHandle) -> list[Any]:
    async with asyncio.timeout(15):
        found: list[Any] = json.loads((await handle.result()).output)
    return found


async def types(handle: RunHandle) -> list[str]:
    return [chunk.type async for chunk in handle.observe()]


def agent_of(body: Any, *, calls: int = 1, **options: Any) -> Agent[Any, str]:
    """An agent whose model calls one tool so often."""
    agent = Agent(calling(*[("work", {"n": n}) for n in range(1, calls + 1)]), name="support")
    agent.tool(name="work", metadata={"durable": options})(body)
    return agent


class Gate:
    """Holds the tasks until it is opened, and counts them."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.open = asyncio.Event()

    async def work(self, _: RunContext[Any], n: int) -> str:
        await self.open.wait()
        self.done.append(n)
        return f"done {n}"


async def test_a_deferred_call_does_not_hold_the_run_and_its_result_is_told_in_a_further_turn(connected: Any) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True)) as agent:
        handle = await agent.stream("go", until_idle=True)

        async def idle() -> bool:
            view = await handle.status()
            return (view.status, view.reason) == ("suspended", "background")

        await eventually(idle, what="the run to wait for its task")
        gate.open.set()
        [placeholder, result] = await told(handle)
        assert placeholder[:2] == ["c1", "success"]
        assert placeholder[2].startswith("Background task started.")
        assert result == "completed. Its result: done 1"
        assert gate.done == [1]
        seen = [kind for kind in await types(handle) if kind.startswith(("background", "finish", "tool-result"))]
        assert sorted(seen[:4]) == sorted([*STARTED, "finish", "background-task-progress"])
        assert seen[4:] == ["background-task-completed", "tool-result", "finish"]


async def test_an_awaited_call_waits_and_the_model_is_told_its_result_as_that_of_any_call(connected: Any) -> None:
    gate = Gate()
    gate.open.set()
    async with connected(agent_of(gate.work, background="awaited", calls=3)) as agent:
        handle = await agent.stream("go")
        assert await told(handle) == [[f"c{n}", "success", f"done {n}"] for n in (1, 2, 3)]
        assert sorted(gate.done) == [1, 2, 3]
        assert (await types(handle)).count("tool-result") == 3


async def idle(handle: RunHandle, *, reason: str = "background") -> None:
    """Wait until the run waits."""

    async def waits() -> bool:
        view = await handle.status()
        return (view.status, view.reason) == ("suspended", reason)

    await eventually(waits, what="the run to wait")


async def started(handle: RunHandle) -> list[str]:
    """The tasks that a run has started, as its log tells."""
    return [c.payload.task_id async for c in handle.observe() if c.type == "background-task-started"]


async def children(store: Store, handle: RunHandle) -> list[str]:
    return sorted(map(text, await store.redis.hkeys(store.keys.children(handle.run_id))))


async def test_results_that_come_while_the_run_goes_on_are_told_before_the_next_request(connected: Any) -> None:
    gate, held = Gate(), asyncio.Event()
    requests: list[list[Any]] = []

    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        requests.append(heard(messages))
        match len(requests):
            case 1:
                yield {1: DeltaToolCall(name="work", json_args='{"n": 1}', tool_call_id="c1")}
            case 2:
                yield {1: DeltaToolCall(name="hold", json_args="{}", tool_call_id="c2")}
            case _:
                yield "done"

    agent = Agent(FunctionModel(stream_function=respond), name="support")
    agent.tool(name="work", metadata={"durable": {"background": True}})(gate.work)

    @agent.tool_plain
    async def hold() -> str:
        await held.wait()
        return "held"

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        gate.open.set()

        async def arrived() -> bool:
            return "background-task-completed" in [c.type async for c in _sofar(handle)]

        await eventually(arrived, what="the task to end")
        held.set()
        assert (await handle.result()).output == "done"
    assert requests[2][1:] == [["c2", "success", "held"], "completed. Its result: done 1"]


async def _sofar(handle: RunHandle) -> AsyncIterator[Any]:
    last = (await handle.status()).last_seq
    async for chunk in handle.observe():
        yield chunk
        if chunk.seq >= last:
            return


async def test_a_run_that_does_not_wait_ends_with_its_turn_and_its_task_goes_on_without_it(
    connected: Any, store: Store
) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True)) as agent:
        handle = await agent.stream("go")
        assert len(await told(handle)) == 1
        last = (await handle.status()).last_seq
        [task] = await children(store, handle)
        gate.open.set()
        result = await (await agent.handle(task)).result()
        assert result.output == "done 1"
        assert (await handle.status()).last_seq == last


async def test_a_task_is_suspended_and_resumed_as_a_run_is(connected: Any, store: Store) -> None:
    async def ask(ctx: RunContext[Any], n: int) -> str:
        data = resume_data(ctx)
        if data is None:
            raise suspend({"question": n})
        return f"answered {data}"

    async with connected(agent_of(ask, background="awaited")) as agent:
        handle = await agent.stream("go")
        await idle(handle)
        [task] = await children(store, handle)

        async def waits() -> bool:
            return bool((await (await agent.handle(task)).status()).status == "suspended")

        await eventually(waits, what="the task to wait")
        await (await agent.handle(task)).resume("c1", "blue")
        assert await told(handle) == [["c1", "success", "answered blue"]]
        seen = await types(handle)
        assert seen.count("background-task-suspended") == 1
        assert seen.count("background-task-resumed") == 1


async def test_a_call_is_approved_before_its_task_begins(connected: Any, store: Store) -> None:
    gate = Gate()
    gate.open.set()
    agent = Agent(calling(("work", {"n": 1})), name="support")
    agent.tool(name="work", metadata={"durable": {"background": "awaited"}}, requires_approval=True)(gate.work)
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await idle(handle, reason="decision")
        assert await children(store, handle) == []
        await handle.approve("c1")
        assert await told(handle) == [["c1", "success", "done 1"]]


async def test_a_task_whose_tool_raises_is_made_again_until_it_does_well(connected: Any) -> None:
    tries: list[int] = []

    async def flaky(_: RunContext[Any], n: int) -> str:
        tries.append(n)
        if len(tries) < 3:
            raise RuntimeError("secret")
        return "at last"

    async with connected(
        agent_of(flaky, background="awaited", retries=2, retry_seconds=0.01, on_crash="fail")
    ) as agent:
        handle = await agent.stream("go")
        assert await told(handle) == [["c1", "success", "at last"]]
        assert len(tries) == 3


async def test_a_deferred_task_that_fails_for_good_is_told_to_the_model(connected: Any) -> None:
    async def broken(_: RunContext[Any], n: int) -> str:
        raise RuntimeError(f"secret {n}")

    async with connected(agent_of(broken, background=True)) as agent:
        handle = await agent.stream("go", until_idle=True)
        assert (await told(handle))[1] == "failed: The tool 'work' raised RuntimeError."
        seen = await types(handle)
        assert "background-task-failed" in seen
        assert "tool-error" in seen


async def test_an_awaited_task_that_fails_fails_the_run_as_the_tool_itself_would(connected: Any) -> None:
    async def broken(_: RunContext[Any], n: int) -> str:
        raise RuntimeError(f"secret {n}")

    async with connected(agent_of(broken, background="awaited")) as agent:
        handle = await agent.stream("go")
        await eventually(lambda: _ended(handle), what="the run to end")
        view = await handle.status()
        assert view.error is not None
        assert (view.status, view.error.code) == ("failed", "tool_failed")


async def _ended(handle: RunHandle) -> bool:
    return (await handle.status()).ended


async def test_a_task_that_takes_too_long_is_given_up(connected: Any, store: Store) -> None:
    async def slow(_: RunContext[Any], n: int) -> str:
        await asyncio.sleep(60)
        return str(n)

    async with connected(agent_of(slow, background="awaited", timeout=0.05)) as agent:
        handle = await agent.stream("go")
        [[call, outcome, text]] = await told(handle)
        assert (call, outcome) == ("c1", "failed")
        assert "longer than 0.05 s" in text
        [task] = await children(store, handle)
        view = await (await agent.handle(task)).status()
        assert view.error is not None
        assert (view.status, view.error.code) == ("failed", "tool_timeout")


async def test_what_a_task_says_reaches_the_observers_of_its_run(connected: Any) -> None:
    async def talk(ctx: RunContext[Any], n: int) -> str:
        for i in range(3):
            await emit(ctx, {"part": i})
        return str(n)

    async with connected(agent_of(talk, background="awaited")) as agent:
        handle = await agent.stream("go")
        await told(handle)
        said = [
            c.payload.payload["payload"]["output"] async for c in handle.observe() if c.type == "background-task-output"
        ]
        assert said == [{"part": 0}, {"part": 1}, {"part": 2}]


async def test_a_run_that_is_cancelled_cancels_its_tasks(connected: Any, store: Store) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True, calls=2)) as agent:
        handle = await agent.stream("go", until_idle=True)
        await idle(handle)
        tasks = await children(store, handle)
        await handle.cancel()

        async def gone() -> bool:
            return [(await (await agent.handle(task)).status()).status for task in tasks] == ["cancelled", "cancelled"]

        await eventually(gone, what="the tasks to be cancelled")
        assert gate.done == []


async def test_a_task_that_is_cancelled_is_told_to_the_model(connected: Any, store: Store) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True)) as agent:
        handle = await agent.stream("go", until_idle=True)
        await idle(handle)
        [task] = await children(store, handle)
        await (await agent.handle(task)).cancel()
        assert (await told(handle))[1] == "failed: The background task was cancelled."
        assert "background-task-cancelled" in await types(handle)


async def test_a_run_waits_for_its_tasks_no_longer_than_it_may(connected: Any) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True)) as agent:
        handle = await agent.stream("go", until_idle=0.2)
        assert len(await told(handle)) == 1
        gate.open.set()


async def test_no_more_tasks_are_executed_than_may_be_and_none_is_forgotten(connected: Any) -> None:
    running, most, done = 0, 0, set[int]()
    full = asyncio.Event()

    async def work(_: RunContext[Any], n: int) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        try:
            await full.wait()
            await asyncio.sleep(0.01)
        finally:
            running -= 1
        done.add(n)
        return str(n)

    async with connected(agent_of(work, background=True, calls=12, max_concurrency=3)) as agent:
        handle = await agent.stream("go", until_idle=True)
        assert len(await told(handle)) == 24
        assert done == set(range(1, 13))
        assert most == 3


async def test_one_task_too_many_is_rejected_or_made_in_the_run(connected: Any) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True, calls=2, max_concurrency=1, on_limit="reject")) as agent:
        handle = await agent.stream("go")
        found = sorted(await told(handle), key=lambda item: item[1])
        assert found[0][1:] == ["failed", "As many background tasks are executed as may be."]
        assert found[1][1] == "success"
        gate.open.set()


async def test_a_tool_that_is_made_here_at_the_limit_is_made_here(connected: Any, store: Store) -> None:
    gate = Gate()
    options = {"background": True, "max_concurrency": 1, "on_limit": "foreground"}
    async with connected(agent_of(gate.work, calls=2, **options)) as agent:
        handle = await agent.stream("go")
        [_] = await until(lambda: children(store, handle), 1)
        gate.open.set()
        assert sorted(item[2][:10] for item in await told(handle)) == ["Background", "done 2"]


async def until(read: Any, count: int) -> list[str]:
    """Wait until there are so many."""
    found: list[str] = []

    async def there() -> bool:
        found[:] = await read()
        return len(found) == count

    await eventually(there, what=f"{count} of them")
    return found


async def test_a_model_chooses_where_the_tool_lets_it(connected: Any) -> None:
    gate = Gate()
    gate.open.set()
    agent = Agent(calling(("work", {"n": 1, "_background": "foreground"}), ("other", {"n": 2})), name="support")
    agent.tool(name="work", metadata={"durable": {"background": True, "model_chooses": True}})(gate.work)
    agent.tool(name="other")(gate.work)
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        assert await told(handle) == [["c1", "success", "done 1"], ["c2", "success", "done 2"]]
        assert await started(handle) == []


async def test_a_run_may_have_nothing_made_in_the_background(connected: Any) -> None:
    gate = Gate()
    gate.open.set()
    async with connected(agent_of(gate.work, background=True)) as agent:
        handle = await agent.stream("go", background=False)
        assert await told(handle) == [["c1", "success", "done 1"]]
        assert await started(handle) == []


async def test_an_agent_says_which_tools_are_made_in_the_background(connected: Any) -> None:
    gate = Gate()
    gate.open.set()
    async with connected(agent_of(gate.work), background=Background(tools={"work": "awaited"})) as agent:
        handle = await agent.stream("go")
        assert await told(handle) == [["c1", "success", "done 1"]]
        assert len(await started(handle)) == 1


async def test_a_task_whose_tool_fails_without_a_word_has_failed(connected: Any, store: Store) -> None:
    async def mute(_: RunContext[Any], n: int) -> str:
        raise ToolFailed("" if n else "never")

    async with connected(agent_of(mute, background="awaited")) as agent:
        handle = await agent.stream("go")
        [[call, outcome, _]] = await told(handle)
        assert (call, outcome) == ("c1", "failed")
        [task] = await children(store, handle)
        assert (await (await agent.handle(task)).status()).status == "failed"


async def test_a_task_is_not_retried_beside_its_run(connected: Any, store: Store, settings: Settings) -> None:
    async def broken(_: RunContext[Any], n: int) -> str:
        raise RuntimeError(f"secret {n}")

    async with connected(agent_of(broken, background=True)) as agent:
        handle = await agent.stream("go", until_idle=True)
        await told(handle)
        [task] = await children(store, handle)
        with pytest.raises(RunConflict):
            await Runs(store, settings).retry(task)


async def test_a_retry_takes_no_task_that_has_ended_for_one_that_goes_on(
    connected: Any, store: Store, settings: Settings
) -> None:
    gate = Gate()
    gate.open.set()
    async with connected(agent_of(gate.work, background=True)) as agent:
        handle = await agent.stream("go", until_idle=True)
        await told(handle)
        tasks = await children(store, handle)
        await store.redis.hset(store.keys.run(handle.run_id), "status", "failed")
        record, _ = await Runs(store, settings).retry(handle.run_id)
        taken = await store.redis.hgetall(store.keys.children(record.run_id))
        assert {text(task): text(state) for task, state in taken.items()} == dict.fromkeys(tasks, "ended")


async def test_a_retry_says_that_it_starts_though_a_task_has_written_to_its_log_before(
    connected: Any, store: Store, settings: Settings
) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True)) as agent:
        handle = await agent.stream("go", until_idle=60)
        await idle(handle)
        await store.redis.hset(store.keys.run(handle.run_id), "status", "failed")
        record, _ = await Runs(store, settings).retry(handle.run_id)
        gate.open.set()

        async def has_ended() -> bool:
            return await store.redis.hvals(store.keys.children(record.run_id)) == [b"ended"]

        await eventually(has_ended, what="the task to end")
        backend = await agent._backend()
        await backend.dispatch(await backend.runs.get(record.run_id))
        chunks = [chunk.type async for chunk in (await agent.handle(record.run_id)).observe()]
        assert chunks.count("start") == 1
        assert chunks.index("background-task-completed") < chunks.index("start")


async def test_a_run_that_has_waited_for_long_enough_waits_anew_for_what_it_starts_after_that(
    connected: Any, store: Store, settings: Settings
) -> None:
    """A task ends after the run was woken, and before its turn has ended again."""
    gate = Gate()
    async with connected(agent_of(gate.work, background=True, calls=2)) as agent:
        handle = await agent.stream("go", until_idle=60)
        await idle(handle)
        await store.redis.hset(store.keys.run(handle.run_id), "idledOut", "1")
        assert await Runs(store, settings).idling(handle.run_id) == (None, True)
        gate.open.set()
        assert len(await told(handle)) == 4
        assert await Runs(store, settings).idling(handle.run_id) == (None, False)


class TestSubAgents:
    async def test_an_agent_asks_another_one_that_has_a_run_of_its_own(self, connected: Any, store: Store) -> None:
        async def answer(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
            yield f"heard {messages[-1].parts[-1].content}"  # type: ignore[union-attr]

        other = connected(Agent(FunctionModel(stream_function=answer), name="other"))
        boss = Agent(calling(("other", {"prompt": "why?"})), name="boss", tools=[agent_tool(other)])
        async with connected(boss) as agent:
            handle = await agent.stream("go")
            assert await told(handle) == [["c1", "success", "heard why?"]]
            [child] = await children(store, handle)
            view = await (await agent.handle(child)).status()
            assert (view.agent, view.parent_run_id, view.output) == ("other", handle.run_id, "heard why?")
            used = (await handle.status()).usage
            assert used is not None
            assert view.usage is not None
            assert used.total_tokens > view.usage.total_tokens

    @pytest.mark.parametrize("wrap", [create_durable_agent, create_evented_agent])
    @pytest.mark.parametrize("own", [{}, {"retention": 50, "queue": "of-its-own"}], ids=["as any", "as it says"])
    async def test_the_run_of_an_agent_that_is_asked_is_as_one_that_is_submitted(
        self, connected: Any, settings: Settings, store: Store, wrap: Any, own: dict[str, Any]
    ) -> None:
        other = wrap(Agent(TestModel(), name="other"), cache=settings, **own)
        boss = Agent(calling(("other", {"prompt": "why?"})), name="boss", tools=[agent_tool(other)])
        async with connected(boss) as agent:
            handle = await agent.stream("go")
            await told(handle)
            [child] = await children(store, handle)
            runs = Runs(store, settings)
            found = await runs.get(child)
            submitted = await runs.get((await other.stream("why?")).run_id)
            await other.aclose()
        fields = ("agent", "kind", "queue", "retention")
        assert [found.fields[name] for name in fields] == [submitted.fields[name] for name in fields]

    async def test_a_deferred_agent_that_fails_is_told_to_the_model(self, connected: Any) -> None:
        async def fail(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
            if messages:
                raise RuntimeError("secret")
            yield ""

        other = connected(Agent(FunctionModel(stream_function=fail), name="other"))
        boss = Agent(
            calling(("other", {"prompt": "why?"})), name="boss", tools=[agent_tool(other, background="deferred")]
        )
        async with connected(boss) as agent:
            handle = await agent.stream("go", until_idle=True)
            assert (await told(handle))[1] == "failed: The run ended with RuntimeError."

    @pytest.mark.parametrize("background", ["awaited", "deferred"])
    @pytest.mark.parametrize("structured", [False, True], ids=["text", "structured"])
    async def test_an_agent_that_returns_too_much_has_failed_and_its_run_is_told(
        self, settings: Settings, store: Store, background: Any, structured: bool
    ) -> None:
        small = settings.model_copy(update={"max_tool_result_bytes": 2000})
        much = "x" * 3000
        model = TestModel(custom_output_args=[much]) if structured else TestModel(custom_output_text=much)
        other: Any = create_durable_agent(
            Agent(model, name="other", output_type=list[str] if structured else str), cache=small
        )
        alone = await other.generate("why?")
        assert len(str(alone.output)) >= 3000, "what nobody has asked for as a tool has no such limit"
        boss = Agent(
            calling(("other", {"prompt": "why?"})), name="boss", tools=[agent_tool(other, background=background)]
        )
        async with create_durable_agent(boss, cache=small, on_tool_error="continue") as agent:
            handle = await agent.stream("go", until_idle=True)
            words = "The agent 'other' returned more than 2000 bytes."
            ways = {"awaited": ["c1", "failed", words], "deferred": f"failed: {words}"}
            assert (await told(handle))[-1] == ways[background]
            [child] = await children(store, handle)
            view = await (await agent.handle(child)).status()
            assert (view.status, view.error and view.error.code) == ("failed", "tool_result_invalid")
            assert (await types(handle)).count("background-task-failed") == 1
        await other.aclose()


async def test_a_run_that_is_executed_learns_that_it_is_to_wait_for_its_tasks(connected: Any) -> None:
    gate, held, inside = Gate(), asyncio.Event(), asyncio.Event()
    agent = Agent(calling(("work", {"n": 1}), ("hold", {})), name="support")
    agent.tool(name="work", metadata={"durable": {"background": True}})(gate.work)

    @agent.tool_plain
    async def hold() -> str:
        inside.set()
        await held.wait()
        return "held"

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await inside.wait()
        await handle.wait_for_tasks(60)
        held.set()
        await idle(handle)
        gate.open.set()
        assert (await told(handle))[-1] == "completed. Its result: done 1"


async def test_what_a_task_says_is_told_in_order_however_slow_the_telling_is(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, first, run = asyncio.Event(), asyncio.Event(), Store.run

    async def slow(store: Store, script: Any, *args: Any) -> Any:
        if script is MIRROR and b'"part":1' in args[1][3]:
            first.set()
            await held.wait()
        return await run(store, script, *args)

    async def talk(ctx: RunContext[Any], n: int) -> str:
        await emit(ctx, {"part": 1})
        await first.wait()
        await emit(ctx, {"part": 2})
        for _ in range(20):  # whatever could overtake it has all the turns that it needs
            await asyncio.sleep(0)
        held.set()
        return str(n)

    monkeypatch.setattr(Store, "run", slow)
    monkeypatch.setattr(mirror, "PAUSE", 0)
    async with connected(agent_of(talk, background="awaited")) as agent:
        handle = await agent.stream("go")
        await told(handle)
        chunks = [chunk async for chunk in handle.observe() if chunk.type == "background-task-output"]
        assert [chunk.payload.payload["payload"]["output"] for chunk in chunks] == [{"part": 1}, {"part": 2}]
