"""What a process is told of its runs is heeded at once, however slow it is to find out what one of them is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunHandle
from durable.decisions import Answer, Decisions
from durable.errors import RunCancelled
from durable.execution import engine
from durable.execution.lookout import Lookout
from durable.execution.start import StartPoint
from durable.settings import Settings
from tests.conftest import eventually
from tests.workbench import Workbench


class Desk:
    """An agent whose model calls `second` and `first` at once, or waits for ever.

    Attributes:
        done: The calls that were made, in order.
        gate: `second` goes on when it is set.
    """

    def __init__(self, *, both: bool) -> None:
        self.done: list[str] = []
        self.gate = asyncio.Event()
        self.agent: Agent[Any, str] = Agent(FunctionModel(stream_function=self._answer), name="desk")
        self.agent.tool_plain(requires_approval=True)(self.first)
        self.agent.tool_plain(requires_approval=both)(self.second)

    async def first(self) -> str:
        self.done.append("first")
        self.gate.set()
        return "done"

    async def second(self) -> str:
        await self.gate.wait()
        self.done.append("second")
        return "done"

    async def _answer(self, messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if len(messages) > 1:
            yield "all done"
        elif "wait" in str(messages[0].parts[-1]):
            yield "I am waiting"
            await asyncio.Event().wait()
        else:
            for i, name in enumerate(("second", "first")):
                yield {i: DeltaToolCall(name=name, json_args="{}", tool_call_id=name)}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Leases that nobody loses because the machine is busy."""
    return settings.model_copy(update={"lease_seconds": 10.0})


@pytest.fixture(autouse=True)
def _nudges_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found by looking again after a silence."""
    monkeypatch.setattr(engine, "LISTEN_SECONDS", 60.0)


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    """Another process: it knows the runs, and executes none."""
    async with Workbench(settings) as found:
        yield found


async def pending(handle: RunHandle, status: str, *calls: str) -> None:
    async def so() -> bool:
        view = await handle.status()
        return view.status == status and {call.tool_call_id for call in view.pending or []} == set(calls)

    await eventually(so, what=f"{calls} to wait")


async def output(handle: RunHandle) -> Any:
    async with asyncio.timeout(15):
        return (await handle.result()).output


async def test_a_cancel_does_not_wait_for_the_answers_of_another_run(
    connected: Any, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And however often one is told of answers, it looks for them once, and once more."""
    desk, slow, looks, answers = Desk(both=False), asyncio.Event(), list[str](), Decisions.answers

    async def slowly(self: Decisions, run_id: str) -> Any:
        looks.append(run_id)
        await slow.wait()
        return await answers(self, run_id)

    monkeypatch.setattr(Decisions, "answers", slowly)
    async with connected(desk.agent) as agent:
        decided, other = await agent.stream("go"), await agent.stream("wait")
        await pending(decided, "running", "first")
        await eventually(lambda: _says(bench, other.run_id), what="the other run's words")
        await decided.approve("first")
        for _ in range(50):
            await bench.store.redis.publish(bench.store.keys.nudges, f"decided {decided.run_id}")
        await bench.runs.cancel(other.run_id)
        async with asyncio.timeout(10):
            with pytest.raises(RunCancelled):
                await other.result()
        assert looks == [decided.run_id], "one look is under way"
        slow.set()
        assert await output(decided) == "all done"
    assert desk.done == ["first", "second"]
    assert len(looks) == 2, "all that was said meanwhile was one more reason to look"


async def test_an_answer_that_comes_while_its_run_is_loaded_is_used_in_place(
    connected: Any, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls beside it need not come to an end first."""
    desk, load, late = Desk(both=True), StartPoint.load, list[str]()
    decisions = Decisions(bench.store, bench.runs)

    async def load_slowly(*args: Any) -> StartPoint:
        start = await load(*args)
        if late:
            run_id = late.pop()
            await decisions.decide(run_id, "first", Answer(kind="approve"))
            slot = (await agent._backend()).engine._attempts[run_id]
            await eventually(lambda: _true(slot.decided), what="the answer to be heard of")
        return start

    monkeypatch.setattr(StartPoint, "load", load_slowly)
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go")
        await pending(handle, "suspended", "first", "second")
        late.append(handle.run_id)
        await handle.approve("second")
        assert await output(handle) == "all done"
    assert desk.done == ["first", "second"]


async def test_who_has_ended_looks_no_more() -> None:
    looks: list[int] = []

    async def look() -> None:
        looks.append(1)
        await asyncio.Event().wait()

    lookout = Lookout(look)
    lookout.look_soon()
    await eventually(lambda: _true(bool(looks)), what="the look to begin")
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "look"]
    lookout.look_soon()
    lookout.end()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    lookout.look_soon()
    await asyncio.sleep(0)
    assert len(looks) == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "look"]


async def _says(bench: Workbench, run_id: str) -> bool:
    return bool(await bench.texts(run_id))


async def _true(value: bool) -> bool:
    return value
