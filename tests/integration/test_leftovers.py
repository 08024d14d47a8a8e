"""A call that the run goes on without is closed: nobody's answer to it is lost without a word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunHandle, TaskCompletion
from durable.chunks import Chunk, ToolError, ToolOutputDenied
from durable.decisions import Answer, Decisions
from durable.doctor import Doctor
from durable.errors import AlreadyDecided, InvalidRequest, LeaseLost, RunFailed, StoreUnavailable
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store
from durable.writer import Ending, Note, RunWriter, Waiting
from tests.conftest import eventually
from tests.workbench import Workbench, finish

Tool = tuple[str, str, dict[str, Any]]
SEND: Tool = ("send", "c1", {})
FINAL: Tool = ("final_result", "c2", {"title": "done"})


class Report(BaseModel):
    title: str


class Desk:
    """An agent whose model calls `send`, which has to be approved, and gives its final result in the same breath.

    Attributes:
        sent: What was sent.
        looked_at: Set when somebody looks at the final result: `send` waits by then.
        go_on: That goes on when this is set.
    """

    def __init__(self, *calls: Tool, **options: Any) -> None:
        self.sent: list[str] = []
        self.looked_at, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()
        self.broken = False
        self._calls = calls or (SEND, FINAL)
        model = FunctionModel(stream_function=self._answer)
        self.agent: Agent[Any, Report] = Agent(model, name="desk", output_type=Report, **options)
        self.agent.output_validator(self._validate)
        self.agent.tool_plain(requires_approval=True)(self.send)
        self.agent.tool_plain(self.hang)

    async def send(self) -> str:
        self.sent.append("sent")
        return "sent"

    async def hang(self) -> str:
        await asyncio.Event().wait()
        return "never"

    async def _validate(self, output: Report) -> Report:
        self.looked_at.set()
        await self.go_on.wait()
        if self.broken:
            raise LookupError("broken")
        return output

    async def _answer(self, messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        again = any(isinstance(message, ModelResponse) for message in messages)
        for i, (name, call, args) in enumerate((FINAL,) if again else self._calls):
            yield {i: DeltaToolCall(name=name, json_args=json.dumps(args), tool_call_id=call)}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Leases that nobody loses because the machine is busy."""
    return settings.model_copy(update={"lease_seconds": 10.0})


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def completed(handle: RunHandle) -> list[Chunk]:
    """The chunks of the run, once it has completed."""
    async with asyncio.timeout(15):
        assert (await handle.result()).output == Report(title="done")
    chunks = [chunk async for chunk in handle.observe()]
    assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))
    return chunks


def of_call(chunks: list[Chunk], call: str = "c1") -> list[str]:
    """The types of the chunks that tell what became of a call."""
    kinds = {"tool-call-approval", "tool-call-decided", "tool-output-denied", "tool-result", "tool-error"}
    return [
        chunk.type for chunk in chunks if chunk.type in kinds and getattr(chunk.payload, "tool_call_id", None) == call
    ]


async def inbox(store: Store, settings: Settings) -> list[str]:
    calls, _ = await Decisions(store, Runs(store, settings)).page()
    return [call.tool_call_id for call in calls]


async def sound(store: Store) -> None:
    assert [finding async for finding in Doctor(store).findings()] == []


@pytest.mark.parametrize("strategy", ["graceful", "exhaustive"])
async def test_a_call_that_nobody_answered_is_closed_by_the_final_result(
    connected: Any, store: Store, settings: Settings, strategy: str
) -> None:
    desk = Desk(end_strategy=strategy)
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go")
        chunks = await completed(handle)
        [decision] = (await handle.status()).decisions or []
        assert (decision.decision, decision.actor) == ("decline", "run")
        with pytest.raises(AlreadyDecided) as refused:
            await handle.approve("c1")
        assert refused.value.details["decision"]["actor"] == "run"
    assert of_call(chunks) == ["tool-call-approval", "tool-output-denied"]
    [denied] = [chunk for chunk in chunks if isinstance(chunk, ToolOutputDenied)]
    assert (denied.payload.approval.approved, denied.payload.approval.actor) == (False, "run")
    assert await inbox(store, settings) == []
    assert desk.sent == []
    await sound(store)


async def test_an_answer_that_comes_before_the_final_result_counts_is_told_to_be_of_no_use(
    connected: Any, store: Store, settings: Settings
) -> None:
    desk = Desk()
    desk.go_on.clear()
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go")
        await asyncio.wait_for(desk.looked_at.wait(), 15)
        assert await inbox(store, settings) == ["c1"]
        await handle.approve("c1", actor="ada")
        desk.go_on.set()
        chunks = await completed(handle)
        [decision] = (await handle.status()).decisions or []
        assert (decision.decision, decision.actor) == ("approve", "ada")
        await handle.approve("c1", actor="ada")  # the same again
    assert of_call(chunks) == ["tool-call-approval", "tool-call-decided", "tool-error"]
    [error] = [chunk for chunk in chunks if isinstance(chunk, ToolError)]
    assert error.payload.error.code == "not_called"
    assert desk.sent == []
    await sound(store)


async def test_a_decline_that_comes_then_needs_no_more_words(connected: Any, store: Store) -> None:
    desk = Desk()
    desk.go_on.clear()
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go")
        await asyncio.wait_for(desk.looked_at.wait(), 15)
        await handle.decline("c1", actor="ada")
        desk.go_on.set()
        assert of_call(await completed(handle)) == ["tool-call-approval", "tool-output-denied"]
        [decision] = (await handle.status()).decisions or []
        assert (decision.decision, decision.actor) == ("decline", "ada")
    await sound(store)


async def test_a_call_is_closed_before_anybody_judges_the_result(
    connected: Any, store: Store, settings: Settings
) -> None:
    desk, waiting, refusals = Desk(), list[list[str]](), list[str]()

    async def enough(_: Any, output: Any) -> bool:
        waiting.append(await inbox(store, settings))
        await answered("judged")
        return len(waiting) > 1

    async def blocked(_: Any, output: Any) -> None:
        await answered("guarded")

    async def answered(when: str) -> None:
        try:
            await handle.approve("c1")
        except AlreadyDecided:
            refusals.append(when)

    completion = TaskCompletion(scorers=[enough], max_iterations=3)
    async with connected(desk.agent, completion=completion, output_guardrails=[blocked]) as agent:
        handle = await agent.handle("judged-run")
        await agent.stream("go", run_id="judged-run")
        chunks = await completed(handle)
    assert waiting == [[], []]
    assert refusals == ["judged", "judged", "guarded"]
    assert of_call(chunks) == ["tool-call-approval", "tool-output-denied"]
    await sound(store)


async def test_an_answer_that_was_of_no_use_makes_no_call_after_a_takeover(
    connected: Any, settings: Settings, store: Store
) -> None:
    desk, guarded, release = Desk(), asyncio.Event(), asyncio.Event()
    desk.go_on.clear()

    async def hold(_: Any, output: Any) -> None:
        guarded.set()
        await release.wait()

    async with connected(desk.agent, output_guardrails=[hold]) as agent:
        handle = await agent.stream("go")
        await asyncio.wait_for(desk.looked_at.wait(), 15)
        await handle.approve("c1")
        desk.go_on.set()
        await asyncio.wait_for(guarded.wait(), 15)
        run_id = handle.run_id
    release.set()

    async def given_back() -> bool:
        return (await Runs(store, settings).get(run_id)).status == "queued"

    await eventually(given_back, what="the run to be given back")
    async with connected(desk.agent, output_guardrails=[hold]) as agent:
        handle = await agent.handle(run_id)
        await (await agent._backend()).dispatch(await Runs(store, settings).get(run_id))
        chunks = await completed(handle)
    assert of_call(chunks) == ["tool-call-approval", "tool-call-decided", "tool-error"]
    assert desk.sent == []
    await sound(store)


async def test_a_budget_that_ends_the_run_in_the_middle_of_a_step_closes_its_calls(
    connected: Any, store: Store, settings: Settings
) -> None:
    desk = Desk(SEND, ("hang", "c3", {}))
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go", max_seconds=1.0, on_budget="end")

        async def ended() -> bool:
            return bool((await handle.status()).ended)

        await eventually(ended, what="the run to use up its time")
        view = await handle.status()
        assert (view.status, view.reason) == ("completed", "budget_reached")
        assert [(decision.decision, decision.actor) for decision in view.decisions or []] == [("decline", "run")]
        with pytest.raises(AlreadyDecided):
            await handle.approve("c1")
        chunks = [chunk async for chunk in handle.observe()]
    assert of_call(chunks) == ["tool-call-approval", "tool-output-denied"]
    assert await inbox(store, settings) == []
    await sound(store)


async def test_an_answer_that_comes_before_a_run_fails_makes_the_call_in_its_retry(connected: Any) -> None:
    desk = Desk()
    desk.go_on.clear()
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go")
        await asyncio.wait_for(desk.looked_at.wait(), 15)
        await handle.approve("c1", actor="ada")
        desk.broken = True
        desk.go_on.set()
        async with asyncio.timeout(15):
            with pytest.raises(RunFailed):
                await handle.result()
        assert of_call([chunk async for chunk in handle.observe()]) == ["tool-call-approval", "tool-call-decided"]
        desk.broken = False
        record, _ = await (await agent._backend()).retry(handle.run_id)
        chunks = await completed(await agent.handle(record.run_id))
    assert desk.sent == ["sent"]
    assert of_call(chunks) == ["tool-result"]


async def test_calls_are_closed_when_redis_answers_again(
    connected: Any, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    desk, tries, read = Desk(), list[int](), Decisions.open

    async def away(self: Decisions, run_id: str) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise StoreUnavailable
        return await read(self, run_id)

    monkeypatch.setattr(Decisions, "open", away)
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go")
        assert of_call(await completed(handle)) == ["tool-call-approval", "tool-output-denied"]
    assert len(tries) >= 3  # who closes them asks again, and callers may ask, too
    await sound(store)


# What ends a run


async def asking(bench: Workbench) -> RunWriter:
    """A writer of a run with a call that waits."""
    writer = await bench.writer()
    question = {"toolName": "send", "kind": "approval", "agent": "nobody"}
    body = json.dumps(question).encode()
    writer.note(Note(field="1:c1", value=b'{"kind":"started"}', waiting=Waiting("c1", 1, 0, body)))
    await writer.flush()
    return writer


async def ends(writer: RunWriter, status: str = "completed", *, closed: bool = True) -> str:
    return await writer.finish(Ending(status, b"", {}, closed=closed), finish())


async def answers(bench: Workbench, writer: RunWriter, kind: Any) -> None:
    await Decisions(bench.store, bench.runs).decide(writer.lease.run_id, "c1", Answer(kind=kind))


async def test_a_run_does_not_complete_while_a_call_is_open(bench: Workbench) -> None:
    writer = await asking(bench)
    before = await bench.wire(writer.lease.run_id)
    assert await ends(writer) == "open"
    assert await bench.wire(writer.lease.run_id) == before
    await answers(bench, writer, "approve")
    assert await ends(writer) == "open", "it is approved, and was not made"
    writer.note(Note(field="1+1:c1", value=b'{"kind":"started"}'))
    assert await ends(writer) == "written"
    assert (await bench.runs.get(writer.lease.run_id)).status == "completed"


async def after_a_decline(bench: Workbench, writer: RunWriter) -> str:
    await answers(bench, writer, "decline")
    return await ends(writer)


async def when_it_fails(_: Workbench, writer: RunWriter) -> str:
    return await ends(writer, "failed", closed=False)


async def when_nothing_more_can_be_done(_: Workbench, writer: RunWriter) -> str:
    return await ends(writer, closed=False)


@pytest.mark.parametrize("end", [after_a_decline, when_it_fails, when_nothing_more_can_be_done])
async def test_a_run_ends_all_the_same(bench: Workbench, end: Callable[[Workbench, RunWriter], Awaitable[str]]) -> None:
    writer = await asking(bench)
    assert await end(bench, writer) == "written"
    assert await Decisions(bench.store, bench.runs).page() == ([], None)


async def test_only_the_attempt_that_has_the_run_closes_a_call_of_it(bench: Workbench) -> None:
    writer = await asking(bench)
    run_id, token = writer.lease.run_id, writer.lease.token
    decisions, unneeded = Decisions(bench.store, bench.runs), Answer(kind="decline", actor="run")
    with pytest.raises(LeaseLost):
        await decisions.settle(run_id, token - 1, "c1", (1, 0), unneeded)
    assert len((await decisions.page())[0]) == 1
    assert await decisions.settle(run_id, token, "c1", (1, 0), unneeded) is not None
    assert await decisions.page() == ([], None)


async def test_who_closes_a_call_is_told_of_an_answer_that_came_before(bench: Workbench) -> None:
    writer = await asking(bench)
    await answers(bench, writer, "approve")
    decisions, unneeded = Decisions(bench.store, bench.runs), Answer(kind="decline", actor="run")
    standing = await decisions.settle(writer.lease.run_id, writer.lease.token, "c1", (1, 0), unneeded)
    assert standing.kind == "approve"


async def test_nobody_outside_speaks_for_the_run(connected: Any) -> None:
    desk = Desk(SEND)
    async with connected(desk.agent) as agent:
        handle = await agent.stream("go")

        async def waits() -> bool:
            return bool((await handle.status()).pending)

        await eventually(waits, what="the call to wait")
        with pytest.raises(InvalidRequest):
            await handle.decline("c1", actor="run")
