"""What somebody tells the model while its run is under way: told once, before the next request, whoever executes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ImageUrl, ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import JudgeContext, RunHandle, RunStatus, Score, TaskCompletion
from durable.chunks import UserMessage
from durable.doctor import Doctor
from durable.errors import InvalidRequest, RequestTooLarge, RunConflict, RunEnded, UnknownRun
from durable.settings import Settings
from durable.store import Store
from tests.conftest import eventually


class Model:
    """Answers each request with all that its user has said, as JSON; can be held while it answers.

    Attributes:
        asked: How often it was asked.
        fails: The requests, by number, at which it fails instead.
    """

    def __init__(self, **script: list[tuple[str, dict[str, Any]]]) -> None:
        self.asked = 0
        self.calls = script
        self.fails: set[int] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.busy = asyncio.Event()

    def __call__(self) -> FunctionModel:
        return FunctionModel(stream_function=self._respond)

    async def _respond(self, messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        self.asked += 1
        number = self.asked
        self.busy.set()
        await self.open.wait()
        if number in self.fails:
            raise ModelHTTPError(503, "scripted")
        for i, (name, args) in enumerate(self.calls.get(f"at_{number}", [])):
            yield {i: DeltaToolCall(name=name, json_args=json.dumps(args), tool_call_id=f"c{i}")}
        if f"at_{number}" not in self.calls:
            yield json.dumps(said(messages))


def said(messages: list[ModelMessage]) -> list[Any]:
    """What the user has said."""
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    contents = [part.content for part in parts if isinstance(part, UserPromptPart)]
    return [each if isinstance(each, str) else [getattr(item, "url", item) for item in each] for each in contents]


async def result(handle: RunHandle) -> Any:
    async with asyncio.timeout(15):
        return json.loads((await handle.result()).output)


async def told_of(handle: RunHandle) -> list[Any]:
    """What the log tells of messages."""
    return [chunk.payload.content async for chunk in handle.observe() if isinstance(chunk, UserMessage)]


async def test_a_message_that_comes_while_the_model_answers_makes_the_run_go_on(connected: Any) -> None:
    model = Model()
    model.open.clear()
    async with connected(Agent(model(), name="listener")) as agent:
        handle = await agent.stream("first")
        await model.busy.wait()
        assert await handle.send("second", message_id="m-1", actor="ada")
        assert not await handle.send("second", message_id="m-1")
        assert await handle.send("third")
        model.open.set()
        assert await result(handle) == ["first", "second", "third"]
        assert await told_of(handle) == ["second", "third"]
        with pytest.raises(RunEnded):
            await handle.send("too late")
        assert not await handle.send("second", message_id="m-1"), "it was told"


async def test_a_message_that_comes_when_the_model_is_done_makes_the_run_go_on(connected: Any) -> None:
    model = Model()
    handles: list[RunHandle] = []

    async def judge(_ctx: JudgeContext, _output: Any) -> Score:
        if len(handles) == 1:
            await handles[0].send("while it was judged")
            handles.append(handles[0])
        return Score(1)

    async with connected(Agent(model(), name="listener"), completion=TaskCompletion([judge])) as agent:
        model.open.clear()
        handles.append(await agent.stream("first"))
        model.open.set()
        assert await result(handles[0]) == ["first", "while it was judged"]
        assert model.asked == 2, "the response that was there was not asked for again"
        assert await told_of(handles[0]) == ["while it was judged"]


async def test_a_message_that_comes_while_a_tool_works_is_told_with_its_result(connected: Any) -> None:
    model = Model(at_1=[("work", {})])
    agent = Agent(model(), name="listener")
    handles: list[RunHandle] = []

    @agent.tool_plain
    async def work() -> str:
        await handles[0].send(["see", ImageUrl("https://example.invalid/cat.png")])
        return "done"

    async with connected(agent) as durable:
        model.open.clear()
        handles.append(await durable.stream("first"))
        model.open.set()
        assert await result(handles[0]) == ["first", ["see", "https://example.invalid/cat.png"]]


async def test_what_a_torn_request_was_told_is_told_again_and_the_log_has_it_once(
    connected: Any, store: Store, settings: Settings
) -> None:
    model = Model(at_1=[("work", {})])
    model.fails = {2, 3}
    agent = Agent(model(), name="listener")
    handles: list[RunHandle] = []

    @agent.tool_plain
    async def work() -> str:
        await handles[0].send("second")
        return "done"

    async with connected(agent) as durable:
        model.open.clear()
        handles.append(await durable.stream("first", retries=5))
        model.open.set()
        assert await result(handles[0]) == ["first", "second"]
        assert await told_of(handles[0]) == ["second"]
    assert await Doctor(store).examine(handles[0].run_id) == set()


async def test_a_message_for_a_run_that_has_not_begun_is_told_with_its_first_request(connected: Any) -> None:
    model = Model()
    model.open.clear()
    async with connected(Agent(model(), name="listener")) as agent:
        first = await agent.stream("one", thread_id="t")
        behind = await agent.stream("two", thread_id="t")
        assert await behind.send("and three")
        model.open.set()
        assert await result(first) == ["one"]
        assert await result(behind) == ["one", "two", "and three"]
        assert model.asked == 2
        log = [chunk.type async for chunk in behind.observe()]
        assert log[:3] == ["start", "user-message", "step-start"]
        third = await agent.stream("four", thread_id="t")
        assert await result(third) == ["one", "two", "and three", "four"], "it is part of the conversation"


async def test_a_run_whose_call_waits_is_told_once_it_goes_on(connected: Any) -> None:
    model = Model(at_1=[("pay", {})])
    agent = Agent(model(), name="listener")

    @agent.tool_plain(requires_approval=True)
    def pay() -> str:
        return "paid"

    async with connected(agent) as durable:
        handle = await durable.stream("first")

        async def waits() -> bool:
            return (await handle.status()).status is RunStatus.SUSPENDED

        await eventually(waits, what="the call to wait")
        assert await handle.send("second")
        assert await waits(), "nobody has answered"
        assert model.asked == 1
        await handle.approve("c0")
        assert await result(handle) == ["first", "second"]


async def test_a_run_that_waits_for_its_tasks_is_woken_and_goes_on_waiting(connected: Any) -> None:
    model, gate = Model(at_1=[("work", {})]), asyncio.Event()
    agent = Agent(model(), name="listener")

    @agent.tool_plain(metadata={"durable": {"background": True}})
    async def work() -> str:
        await gate.wait()
        return "done"

    async with connected(agent) as durable:
        handle = await durable.stream("first", until_idle=True)

        async def idle() -> bool:
            view = await handle.status()
            return view.status is RunStatus.SUSPENDED and view.reason == "background"

        await eventually(idle, what="the run to wait for its task")
        assert await handle.send("second")

        async def told() -> bool:
            return model.asked == 3 and await idle()

        await eventually(told, what="the model to be told, and the run to wait again")
        gate.set()
        first, second, news = await result(handle)
        assert (first, second, "done" in news) == ("first", "second", True)


async def test_a_retry_tells_what_the_failed_run_did_not_and_hears_what_it_is_told_itself(connected: Any) -> None:
    model = Model(at_1=[("work", {})])
    model.fails = {2}
    agent = Agent(model(), name="listener")
    handles: list[RunHandle] = []

    @agent.tool_plain
    async def work() -> str:
        await handles[0].send("second")
        return "done"

    async def judge(ctx: JudgeContext, _output: Any) -> Score:
        await (await durable.handle(ctx.run_id)).send("third", message_id="once")
        return Score(1)

    async with connected(agent, completion=TaskCompletion([judge])) as durable:
        model.open.clear()
        handles.append(await durable.stream("first"))
        model.open.set()

        async def failed() -> bool:
            return (await handles[0].status()).status is RunStatus.FAILED

        await eventually(failed, what="the run to fail")
        record, _ = await (await durable._backend()).retry(handles[0].run_id)
        again = await durable.handle(record.run_id)
        assert await result(again) == ["first", "second", "third"]


async def test_a_message_of_a_failed_run_that_is_sent_to_its_retry_again_is_told_once(
    connected: Any, store: Store
) -> None:
    model = Model()
    model.fails = {2}
    model.open.clear()
    async with connected(Agent(model(), name="listener")) as agent:
        failed = await agent.stream("first")
        await model.busy.wait()
        assert await failed.send("second", message_id="once")
        model.open.set()

        async def over() -> bool:
            return (await failed.status()).status is RunStatus.FAILED

        await eventually(over, what="the run to fail")
        model.open.clear()
        model.busy.clear()
        record, _ = await (await agent._backend()).retry(failed.run_id)
        again = await agent.handle(record.run_id)
        assert not await again.send("second", message_id="once")
        with pytest.raises(RunConflict):
            await again.send("another", message_id="once")
        model.open.set()
        assert await result(again) == ["first", "second"]
        assert model.asked == 3
        assert await Doctor(store).examine(again.run_id) == set()


async def test_a_run_at_its_limit_ends_whatever_it_is_told(connected: Any) -> None:
    model = Model()
    model.open.clear()
    async with connected(Agent(model(), name="listener")) as agent:
        handle = await agent.stream("first", max_steps=1)
        await model.busy.wait()
        await handle.send("second")
        model.open.set()
        assert await result(handle) == ["first"]
        assert (await handle.status()).reason == "max_steps"


async def test_what_is_no_message_is_refused(connected: Any) -> None:
    model = Model(at_1=[("work", {})])
    agent = Agent(model(), name="listener")

    @agent.tool_plain(metadata={"durable": {"background": True}})
    async def work() -> str:
        await asyncio.sleep(60)
        return "done"

    async with connected(agent) as durable:
        handle = await durable.stream("first", until_idle=True)
        wrongs: list[Any] = ["", "  ", [], [{"kind": "nothing"}], {"text": "a"}]
        for wrong in wrongs:
            with pytest.raises(InvalidRequest):
                await handle.send(wrong)
        with pytest.raises(InvalidRequest):
            await handle.send("a", message_id="a b")
        with pytest.raises(InvalidRequest):
            await handle.send("a", actor="handler")
        with pytest.raises(RequestTooLarge):
            await handle.send("a" * 300_000)
        assert await handle.send("a", message_id="m")
        with pytest.raises(RunConflict):
            await handle.send("b", message_id="m")
        with pytest.raises(UnknownRun):
            await (await durable.handle("nobody")).send("a")
        [task] = [chunk.payload.task_id async for chunk in first_task(handle)]
        with pytest.raises(InvalidRequest, match="background task"):
            await (await durable.handle(task)).send("a")
        await handle.cancel()
        with pytest.raises(RunEnded):
            await handle.send("a")


async def first_task(handle: RunHandle) -> AsyncIterator[Any]:
    async for chunk in handle.observe():
        if chunk.type == "background-task-started":
            yield chunk
            return
