"""A retry goes on with the calls of the run that it repeats: under their keys, and with what was decided of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import DurableAgent, RunHandle, create_durable_agent, ledger, resume_data, suspend, tool_context
from durable.chunks import ToolResult
from durable.decisions import Decisions
from durable.doctor import Doctor
from durable.errors import AlreadyDecided, RunCancelled, RunEnded, RunFailed
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store
from durable.suspension import Suspension
from durable.writer import Ending, Note
from tests.conftest import eventually
from tests.workbench import Workbench, finish


@dataclass
class Counter:
    """A tool that can be broken, or stands still, and notes under which keys it was called.

    Attributes:
        steps: How often the model calls it, one step after the other.
        does: What it does in place of its work.
        keys: Of all calls, in order.
        told: What the model was told of its calls.
        at_work: Set when the tool is called.
    """

    steps: int = 1
    does: Callable[[RunContext[Any]], Any] | None = None
    keys: list[str] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    at_work: asyncio.Event = field(default_factory=asyncio.Event)

    async def model(self, messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        self.told = [part.content for part in returns]
        if len(returns) < self.steps:
            yield {0: DeltaToolCall(name="charge", json_args=json.dumps({"n": 1}), tool_call_id="c1")}
        else:
            yield "done"

    async def charge(self, ctx: RunContext[Any], n: int) -> str:
        self.keys.append(tool_context(ctx).idempotency_key)
        self.at_work.set()
        if self.does is not None:
            await self.does(ctx)
        return f"charged {n}"

    def agent(self, **options: Any) -> Agent[Any, str]:
        agent: Agent[Any, str] = Agent(FunctionModel(stream_function=self.model), name="counter")
        agent.tool(**options)(self.charge)
        return agent


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def breaks(_: RunContext[Any]) -> None:
    raise LookupError("broken")


async def stands_still(_: RunContext[Any]) -> None:
    await asyncio.Event().wait()


async def waits_for(handle: RunHandle, call: str = "c1") -> None:
    async def waits() -> bool:
        view = await handle.status()
        return view.status == "suspended" and [found.tool_call_id for found in view.pending or []] == [call]

    await eventually(waits, what=f"{call} to wait")


async def retried(agent: DurableAgent, run_id: str) -> RunHandle:
    record, _ = await (await agent._backend()).retry(run_id)
    return await agent.handle(record.run_id)


async def torn(handle: RunHandle, counter: Counter) -> None:
    """End the run while its tool is at work."""
    async with asyncio.timeout(15):
        await counter.at_work.wait()
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result()
    counter.at_work.clear()


async def fails(handle: RunHandle) -> None:
    async with asyncio.timeout(15):
        with pytest.raises(RunFailed):
            await handle.result()


async def done(handle: RunHandle) -> None:
    async with asyncio.timeout(15):
        assert (await handle.result()).output == "done"


async def approvals(handle: RunHandle) -> list[tuple[str, str | None]]:
    """The calls whose result in the log tells of an approval, and whose that was."""
    results = [chunk async for chunk in handle.observe() if isinstance(chunk, ToolResult)]
    return [(chunk.payload.tool_call_id, chunk.payload.approval.actor) for chunk in results if chunk.payload.approval]


async def test_a_torn_call_keeps_its_key_in_a_retry_and_in_a_retry_of_that(connected: Any) -> None:
    counter = Counter(does=stands_still)
    async with connected(counter.agent()) as agent:
        first = await agent.stream("charge")
        await torn(first, counter)
        second = await retried(agent, first.run_id)
        await torn(second, counter)
        counter.does = None
        await done(await retried(agent, second.run_id))
    assert counter.keys == [f"{first.run_id}:1:c1"] * 3


@pytest.mark.parametrize("always_resume", [False, True])
async def test_a_call_that_a_retry_makes_itself_has_a_key_of_its_own(
    settings: Settings,
    always_resume: bool,
) -> None:
    """Whoever retries a run twice makes two calls of the step after the checkpoint, whatever the model names them."""
    counter = Counter(steps=2)
    cache = settings.model_copy(update={"always_resume": always_resume})

    async def breaks_at_last(_: RunContext[Any]) -> None:
        if len(counter.keys) > 1:
            raise LookupError("broken")

    async with create_durable_agent(counter.agent(), cache=cache) as agent:
        counter.does = breaks
        first = await agent.stream("charge")
        await fails(first)
        counter.keys.clear()
        counter.does = breaks_at_last
        second = await retried(agent, first.run_id)
        await fails(second)
        third = await retried(agent, second.run_id)
        counter.does = None
        await done(third)
        await done(await retried(agent, first.run_id))
    one, two = f"{first.run_id}:1:c1", f"{second.run_id}:2:c1"
    assert counter.keys[:3] == [one, two, two]
    [again, own] = counter.keys[3:]
    assert again == one
    assert own.endswith(":2:c1")
    assert own not in counter.keys[:3]


@pytest.mark.parametrize("how", ["failed", "torn"])
async def test_an_approval_counts_for_the_retry_and_tells_who_gave_it(connected: Any, store: Store, how: str) -> None:
    counter = Counter(does=breaks if how == "failed" else stands_still)
    async with connected(counter.agent(requires_approval=True)) as agent:
        old = await agent.stream("charge")
        await waits_for(old)
        await old.approve("c1", args={"n": 7}, actor="alice")
        await (fails(old) if how == "failed" else torn(old, counter))
        counter.does = None
        new = await retried(agent, old.run_id)
        await done(new)
        assert await approvals(new) == [("c1", "alice")]
        [decision] = (await new.status()).decisions or []
        assert (decision.tool_call_id, decision.decision, decision.actor) == ("c1", "approve", "alice")
        assert decision == ((await old.status()).decisions or [])[0]
        await new.approve("c1", args={"n": 7}, actor="bob")  # the same again
        with pytest.raises(AlreadyDecided) as refused:
            await new.decline("c1")
        assert refused.value.details["decision"]["actor"] == "alice"
    assert counter.told == ["charged 7"]
    assert counter.keys == [f"{old.run_id}:1:c1"] * 2
    assert [finding async for finding in Doctor(store).findings()] == []


async def test_a_call_that_nobody_answered_is_asked_anew_and_the_old_runs_is_closed(
    connected: Any, store: Store, settings: Settings
) -> None:
    counter = Counter()
    async with connected(counter.agent(requires_approval=True)) as agent:
        old = await agent.stream("charge")
        await waits_for(old)
        await old.cancel()
        new = await retried(agent, old.run_id)
        await waits_for(new)
        assert (await new.status()).decisions is None
        assert [run_id async for run_id in _inbox(store, settings)] == [new.run_id]
        with pytest.raises(RunEnded):
            await old.approve("c1")
        await new.approve("c1")
        await done(new)


async def test_of_a_call_that_was_asked_twice_the_open_question_is_asked_anew(connected: Any, store: Store) -> None:
    counter, seen = Counter(), list[Any]()

    async def asks(ctx: RunContext[Any]) -> None:
        seen.append(resume_data(ctx))
        if seen[-1] != "second":
            raise suspend({"asked": len(seen)})

    counter.does = asks
    async with connected(counter.agent()) as agent:
        old = await agent.stream("charge")
        await waits_for(old)
        await old.resume("c1", "first")
        await eventually(lambda: _asked(old, 2), what="the second question")
        await old.cancel()
        new = await retried(agent, old.run_id)
        await eventually(lambda: _asked(new, 3), what="the second question in the new run")
        assert (await new.status()).decisions == (await old.status()).decisions, "with the answer to the first one"
        await new.resume("c1", "second")
        await done(new)
        decisions = (await new.status()).decisions or []
        assert [decision.question_id for decision in decisions] == ["1.0", "1.1"]
    assert [finding async for finding in Doctor(store).findings()] == []
    assert seen == [None, "first", "first", "second"]


async def test_a_question_whose_deadline_has_failed_the_run_is_asked_anew(
    connected: Any, store: Store, settings: Settings
) -> None:
    counter = Counter()

    async def asks(_: RunContext[Any]) -> None:
        raise suspend("when?", expires_in=0.1, on_expiry="fail")

    counter.does = asks
    async with connected(counter.agent(requires_approval=True)) as agent:
        old = await agent.stream("charge")
        await waits_for(old)
        await old.approve("c1", actor="alice")
        await fails(old)
        assert [decision.decision for decision in (await old.status()).decisions or []] == ["approve", "fail"]
    record, _ = await Runs(store, settings).retry(old.run_id)
    [(calls, decisions)] = await Decisions(store, Runs(store, settings)).calls_and_answers([record.run_id])
    assert (calls, [decision.decision for decision in decisions]) == ([], ["approve"])
    assert [finding async for finding in Doctor(store).findings()] == []


async def test_what_the_agents_own_handler_allowed_was_begun_for_the_retry_too(bench: Workbench) -> None:
    """Its call had no answer from outside, and yet it was begun: whether to make it again is its tool's to say."""
    quiet = ledger.Outcome(suspended=Suspension(kind="approval", payload={"announced": True}, announced=False))
    waits = ledger.Outcome(suspended=Suspension(kind="approval", payload={"announced": False}))
    entries = {
        ledger.key(1, "begun"): ledger.encode(quiet),
        ledger.key(1, "begun", 1): ledger.STARTED,
        ledger.key(1, "quiet"): ledger.encode(quiet),
        ledger.key(1, "asked"): ledger.encode(waits),
    }
    writer = await bench.writer()
    for name, value in entries.items():
        writer.note(Note(field=name, value=value))
    await writer.finish(Ending("failed", b"", {"error": "{}"}), finish())
    record, _ = await bench.runs.retry(writer.lease.run_id)
    assert set(await bench.runs.ledger(record.run_id)) == {ledger.key(1, "begun"), ledger.key(1, "begun", 1)}


async def test_a_retry_in_memory_is_the_same_retry() -> None:
    counter = Counter(does=breaks)
    async with create_durable_agent(counter.agent(requires_approval=True)) as agent:
        old = await agent.stream("charge")
        await waits_for(old)
        await old.approve("c1", actor="alice")
        await fails(old)
        counter.does = None
        new = await retried(agent, old.run_id)
        await done(new)
        assert await approvals(new) == [("c1", "alice")]
    assert counter.keys == [f"{old.run_id}:1:c1"] * 2


async def _asked(handle: RunHandle, number: int) -> bool:
    view = await handle.status()
    return view.status == "suspended" and [call.payload for call in view.pending or []] == [{"asked": number}]


async def _inbox(store: Store, settings: Settings) -> AsyncIterator[str]:
    calls, _ = await Decisions(store, Runs(store, settings)).page()
    for call in calls:
        yield call.run_id
