"""Threads: runs of one conversation are executed one after the other, and each is given what was said before it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from itertools import groupby
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.capabilities import ProcessHistory
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunHandle, create_durable_agent
from durable.diagnosis import diagnose, examine
from durable.doctor import Doctor
from durable.errors import (
    InvalidRequest,
    RunCancelled,
    RunFailed,
    ThreadBusy,
    ThreadConflict,
    UnknownRun,
    UnknownThread,
)
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store, text
from durable.threads import UNFINISHED, thread_page
from tests.conftest import eventually
from tests.workbench import Workbench, new_run


class Talk:
    """An agent whose model tells what it has heard, and what else a test makes it do.

    Attributes:
        agent: The agent.
        gate: `wait` goes on when it is set.
        broken: Whether the model fails at `fail`.
        ink: Whether the tool does well.
        asked: The messages of each request to the model.
        at_once: How many requests there were at the same time, at most.
    """

    def __init__(self, **options: Any) -> None:
        self.gate = asyncio.Event()
        self.broken = self.ink = True
        self.asked: list[list[ModelMessage]] = []
        self.at_once = self._now = 0
        self.agent: Agent[Any, str] = Agent(FunctionModel(stream_function=self._answer), name="talk", **options)
        self.agent.tool_plain(requires_approval=True)(self.sign)

    def sign(self) -> str:
        """Needs an approval, and ink."""
        if not self.ink:
            raise LookupError("ink")
        return "signed"

    async def _answer(self, messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        self.asked.append(list(messages))
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            match messages[-1].parts[-1]:
                case ToolReturnPart() as part:
                    yield f"told {part.content}"
                case UserPromptPart(content="sign"):
                    yield {0: DeltaToolCall(name="sign", json_args="{}", tool_call_id="c1")}
                case UserPromptPart(content="fail") if self.broken:
                    raise ModelHTTPError(400, "scripted")
                case UserPromptPart(content="wait"):
                    yield "I am "
                    await self.gate.wait()
                    yield "here"
                case _:
                    yield "heard " + "|".join(prompts(messages))
        finally:
            self._now -= 1


def prompts(messages: list[ModelMessage]) -> list[str]:
    """What the user has said."""
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    return [str(part.content) for part in parts if isinstance(part, UserPromptPart)]


def lines(messages: list[ModelMessage]) -> list[str]:
    """What was said, a line for each part."""
    return [str(getattr(part, "content", part.part_kind)) for message in messages for part in message.parts]


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def ended(handle: RunHandle) -> str:
    """What the run has returned."""
    async with asyncio.timeout(30):
        return str((await handle.result()).output)


async def status(handle: RunHandle, wanted: str, reason: str | None = None) -> None:
    """Wait until the run is so."""

    async def so() -> bool:
        view = await handle.status()
        return view.status == wanted and (reason is None or view.reason == reason)

    await eventually(so, what=f"the run to be {wanted}")


async def exchanges(
    bench: Workbench, thread_id: str = "t", resource: str | None = None
) -> dict[str, list[ModelMessage]]:
    """The messages of each run of a thread."""
    found, _ = await thread_page(bench.runs, thread_id, list, resource_id=resource, limit=10_000)
    return {run_id: [said for _, said in group] for run_id, group in groupby(found, lambda one: one[0].run_id)}


async def said(bench: Workbench, thread_id: str = "t") -> list[tuple[str, list[str]]]:
    """What each run of a thread has said."""
    return [(run_id, lines(messages)) for run_id, messages in (await exchanges(bench, thread_id)).items()]


async def sound(bench: Workbench) -> None:
    assert [finding async for finding in Doctor(bench.store).findings()] == []


async def test_each_run_is_given_what_was_said_before_it(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        first = await (await agent.stream("one", thread_id="t", run_id="r1")).result()
        second = await (await agent.stream("two", thread_id="t", run_id="r2")).result()
        other = await (await agent.stream("three", thread_id="other")).result()
    assert (first.output, second.output, other.output) == ("heard one", "heard one|two", "heard three")
    assert lines(second.all_messages()) == ["one", "heard one", "two", "heard one|two"]
    assert lines(second.new_messages()) == ["two", "heard one|two"]
    assert await said(bench) == [("r1", ["one", "heard one"]), ("r2", ["two", "heard one|two"])]
    record = await bench.runs.get("r2")
    assert record.view().thread_id == "t"
    runs, _ = await bench.runs.page(thread="t")
    assert [run.run_id for run in runs] == ["r2", "r1"]
    assert await bench.runs.page(thread="t", status="failed") == ([], None)
    assert [run.run_id for run in (await bench.runs.page(thread="t", agent="talk", limit=1))[0]] == ["r2"]
    assert {message.conversation_id for message in second.new_messages()} == {"t"}
    await sound(bench)


async def test_a_hundred_submits_at_once_are_executed_one_after_the_other_in_order(
    connected: Any, bench: Workbench
) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        first = await agent.stream("wait", thread_id="t")
        await status(first, "running")
        handles = await asyncio.gather(*(agent.stream(f"p{i}", thread_id="t", run_id=f"r{i}") for i in range(100)))
        queue = [text(run) for run in await bench.store.redis.lrange(bench.store.keys.thread_queue("t"), 0, -1)]
        assert sorted(queue) == sorted(handle.run_id for handle in handles)
        assert {(await handle.status()).reason for handle in handles} == {"thread_busy"}
        await sound(bench)
        talk.gate.set()
        outputs = {handle.run_id: await ended(handle) for handle in handles}
    order = [f"p{run_id[1:]}" for run_id in queue]
    for i, run_id in enumerate(queue):
        assert outputs[run_id] == "heard " + "|".join(["wait", *order[: i + 1]])
    assert [run_id for run_id, _ in await said(bench)] == [first.run_id, *queue]
    assert talk.at_once == 1
    await sound(bench)


async def test_a_run_that_waits_for_its_thread_is_executed_by_nobody_and_says_why(
    connected: Any, bench: Workbench, settings: Settings
) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        first = await agent.stream("wait", thread_id="t")
        await status(first, "running")
        second = await agent.stream("two", thread_id="t")
        await status(second, "queued", "thread_busy")
        backend = await agent._backend()
        assert await backend.engine.execute(second.run_id) is None
        found = diagnose(await examine(bench.store, bench.runs, backend.announcements, settings, second.run_id))
        assert found.reason == "thread_busy"
        assert found.facts[0].details == {"runId": first.run_id}
        talk.gate.set()
        assert await ended(second) == "heard wait|two"


async def test_a_submit_that_does_not_want_to_wait_is_refused_and_leaves_nothing(
    connected: Any, bench: Workbench
) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        first = await agent.stream("wait", thread_id="t", on_busy="reject")
        await status(first, "running")
        with pytest.raises(ThreadBusy) as refused:
            await agent.stream("two", thread_id="t", run_id="two", on_busy="reject")
        assert refused.value.details == {"runId": first.run_id, "status": "running"}
        with pytest.raises(UnknownRun):
            await bench.runs.get("two")
        again = await agent.stream("wait", thread_id="t", run_id=first.run_id, on_busy="reject")
        assert again.run_id == first.run_id, "the same request finds its run"
        talk.gate.set()
        assert await ended(first) == "I am here"
        assert await ended(await agent.stream("two", thread_id="t", run_id="two", on_busy="reject")) == "heard wait|two"


async def test_a_suspended_run_has_to_be_decided_before_its_thread_goes_on(connected: Any, bench: Workbench) -> None:
    async with connected(Talk().agent) as agent:
        first = await agent.stream("sign", thread_id="t", run_id="r1")
        await status(first, "suspended")
        assert await said(bench) == [("r1", ["sign", "tool-call"])]
        for on_busy in ("queue", "reject", None):
            with pytest.raises(ThreadBusy) as refused:
                await agent.stream("two", thread_id="t", run_id="r2", on_busy=on_busy)
            details = refused.value.details
            assert (details["runId"], details["status"]) == ("r1", "suspended")
            assert [(call["toolCallId"], call["toolName"]) for call in details["pending"]] == [("c1", "sign")]
        await first.approve("c1")
        assert await ended(first) == "told signed"
        assert await ended(await agent.stream("two", thread_id="t", run_id="r2")) == "heard sign|two"
    assert await said(bench) == [
        ("r1", ["sign", "tool-call", "signed", "told signed"]),
        ("r2", ["two", "heard sign|two"]),
    ]
    await sound(bench)


async def test_a_run_that_waited_before_the_other_was_suspended_goes_on_waiting(
    connected: Any, bench: Workbench
) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        blocking = await agent.stream("wait", thread_id="t")
        await status(blocking, "running")
        first = await agent.stream("sign", thread_id="t")
        second = await agent.stream("two", thread_id="t")
        talk.gate.set()
        await status(first, "suspended")
        await status(second, "queued", "thread_busy")
        await sound(bench)
        await first.decline("c1")
        assert await ended(second) == "heard wait|sign|two"


async def test_a_run_that_is_cancelled_while_it_waits_takes_nobodys_place(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        first = await agent.stream("wait", thread_id="t", run_id="r1")
        await status(first, "running")
        second = await agent.stream("two", thread_id="t")
        third = await agent.stream("three", thread_id="t", run_id="r3")
        assert await second.cancel()
        await sound(bench)
        talk.gate.set()
        assert await ended(third) == "heard wait|three"
    assert [run_id for run_id, _ in await said(bench)] == ["r1", "r3"]
    assert (await bench.runs.get(second.run_id)).status == "cancelled"


async def test_what_a_cancelled_run_had_said_stays(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        first = await agent.stream("wait", thread_id="t", run_id="r1")
        await eventually(lambda: begun(first), what="the first words")
        second = await agent.stream("two", thread_id="t")
        await first.cancel()
        assert await ended(second) == "heard wait|two"
    assert (await said(bench))[0] == ("r1", ["wait", "I am "])
    await sound(bench)


async def begun(handle: RunHandle) -> bool:
    """Whether the run has said something."""
    record = await handle.status()
    return record.last_seq >= 4


async def test_a_call_that_nobody_answered_is_told_to_the_next_run_as_unfinished(
    connected: Any, bench: Workbench
) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        first = await agent.stream("sign", thread_id="t", run_id="r1")
        await status(first, "suspended")
        await first.cancel()
        assert await ended(await agent.stream("two", thread_id="t")) == "heard sign|two"
        assert await ended(await agent.stream("three", thread_id="t", run_id="r3")) == "heard sign|two|three"
    assert (await said(bench))[0] == ("r1", ["sign", "tool-call"])
    assert lines(talk.asked[-1])[:4] == ["sign", "tool-call", UNFINISHED, "two"]
    assert (await said(bench))[-1] == ("r3", ["three", "heard sign|two|three"])


async def test_a_failed_run_leaves_its_thread_as_it_was(connected: Any, bench: Workbench) -> None:
    async with connected(Talk().agent) as agent:
        await ended(await agent.stream("one", thread_id="t", run_id="r1"))
        failed = await agent.stream("fail", thread_id="t")
        with pytest.raises(RunFailed):
            await failed.result()
        assert await ended(await agent.stream("two", thread_id="t", run_id="r2")) == "heard one|two"
    assert [run_id for run_id, _ in await said(bench)] == ["r1", "r2"]
    await sound(bench)


async def test_a_run_that_fails_after_it_was_suspended_takes_back_what_it_had_said(
    connected: Any, bench: Workbench
) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        await ended(await agent.stream("one", thread_id="t", run_id="r1"))
        failed = await agent.stream("sign", thread_id="t")
        await status(failed, "suspended")
        assert len(await said(bench)) == 2
        talk.ink = False
        await failed.approve("c1")
        with pytest.raises(RunFailed):
            await failed.result()
    assert [run_id for run_id, _ in await said(bench)] == ["r1"]


async def test_a_retry_takes_the_place_of_the_run_that_it_repeats(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        await ended(await agent.stream("one", thread_id="t", run_id="r1"))
        cancelled = await agent.stream("wait", thread_id="t", run_id="r2")
        await eventually(lambda: begun(cancelled), what="the first words")
        await cancelled.cancel()
        with pytest.raises(RunCancelled):
            await cancelled.result()
        assert [run_id for run_id, _ in await said(bench)] == ["r1", "r2"]
        talk.gate.set()
        backend = await agent._backend()
        retried, _ = await backend.retry("r2")
        assert await ended(await agent.handle(retried.run_id)) == "I am here"
        assert await said(bench) == [("r1", ["one", "heard one"]), (retried.run_id, ["wait", "I am here"])]
        assert await ended(await agent.stream("two", thread_id="t")) == "heard one|wait|two"
    await sound(bench)


async def test_a_retry_goes_on_from_the_checkpoint_also_when_its_thread_has_got_on(
    connected: Any, bench: Workbench
) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        await ended(await agent.stream("one", thread_id="t", run_id="r1"))
        cancelled = await agent.stream("sign", thread_id="t", run_id="r2")
        await status(cancelled, "suspended")
        await cancelled.cancel()
        await ended(await agent.stream("two", thread_id="t", run_id="r3"))
        backend = await agent._backend()
        record, _ = await backend.retry("r2")
        retried = await agent.handle(record.run_id)
        await status(retried, "suspended")
        await retried.approve("c1")
        result = await retried.result()
        assert result.output == "told signed"
        assert lines(result.all_messages()) == ["one", "heard one", "sign", "tool-call", "signed", "told signed"]
    assert [run_id for run_id, _ in await said(bench)] == ["r1", "r2", "r3", record.run_id]
    assert (await said(bench))[-1][1] == ["sign", "tool-call", "signed", "told signed"]
    await sound(bench)


async def test_a_retry_changes_nothing_that_another_run_was_given(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        backend = await agent._backend()
        cancelled = await agent.stream("sign", thread_id="t", run_id="r1")
        await status(cancelled, "suspended")
        await cancelled.cancel()
        failed = await agent.stream("fail", thread_id="t", run_id="r2")
        with pytest.raises(RunFailed):
            await failed.result()
        first, _ = await backend.retry("r1")
        handle = await agent.handle(first.run_id)
        await status(handle, "suspended")
        assert [run_id for run_id, _ in await said(bench)] == ["r1", first.run_id]
        await handle.cancel()
        second, _ = await backend.retry(first.run_id)
        handle = await agent.handle(second.run_id)
        await status(handle, "suspended")
        await handle.approve("c1")
        assert await ended(handle) == "told signed"
    assert [run_id for run_id, _ in await said(bench)] == ["r1", second.run_id], "nobody was given the first retry"


async def test_the_end_of_a_run_that_nobody_executes_lets_the_next_one_begin(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        blocking = await agent.stream("wait", thread_id="t")
        await status(blocking, "running")
        first = await agent.stream("sign", thread_id="t")
        second = await agent.stream("two", thread_id="t")
        talk.gate.set()
        await status(first, "suspended")
        await bench.runs.cancel(first.run_id)  # by a process that wakes nobody
        assert await ended(second) == "heard wait|sign|two"


async def test_a_retry_of_a_failed_run_waits_for_its_thread_as_any_run(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    async with connected(talk.agent) as agent:
        failed = await agent.stream("fail", thread_id="t")
        with pytest.raises(RunFailed):
            await failed.result()
        blocking = await agent.stream("wait", thread_id="t", run_id="r2")
        await status(blocking, "running")
        backend = await agent._backend()
        record, _ = await backend.retry(failed.run_id)
        assert record.behind
        talk.broken = False
        talk.gate.set()
        assert await ended(await agent.handle(record.run_id)) == "heard wait|fail"
    assert [run_id for run_id, _ in await said(bench)] == ["r2", record.run_id]


async def test_a_thread_belongs_to_the_resource_that_made_it(connected: Any, bench: Workbench) -> None:
    async with connected(Talk().agent) as agent:
        await ended(await agent.stream("one", thread_id="t", resource_id="alice"))
        for other in ("bob", None):
            with pytest.raises(ThreadConflict):
                await agent.stream("mine", thread_id="t", resource_id=other, run_id="r")
        with pytest.raises(UnknownRun):
            await bench.runs.get("r")
        assert await ended(await agent.stream("two", thread_id="t", resource_id="alice")) == "heard one|two"
        await ended(await agent.stream("one", thread_id="nobodys"))
        with pytest.raises(ThreadConflict):
            await agent.stream("mine", thread_id="nobodys", resource_id="bob")
    assert len(await exchanges(bench, "t", "alice")) == 2
    with pytest.raises(ThreadConflict):
        await exchanges(bench, "t", "bob")
    with pytest.raises(UnknownThread):
        await exchanges(bench, "there-is-none")


@pytest.mark.parametrize(
    "asked",
    [
        *({"thread_id": name} for name in ("", " ", "a b", "a/b", "a:b", "{a}", "ä", "x" * 129, "a\n", "..")),
        {"thread_id": "t", "resource_id": "a b"},
        {"thread_id": "t", "resource_id": ""},
        {"resource_id": "alice"},
        {"on_busy": "reject"},
        {"thread_id": "t", "on_busy": "jump"},
    ],
    ids=str,
)
async def test_garbage_is_refused(connected: Any, bench: Workbench, asked: dict[str, Any]) -> None:
    async with connected(Talk().agent) as agent:
        with pytest.raises(InvalidRequest):
            await agent.stream("one", run_id="r", **asked)
    with pytest.raises(UnknownRun):
        await bench.runs.get("r")


async def test_a_run_of_a_thread_is_given_no_other_history(connected: Any) -> None:
    history = [ModelRequest(parts=[UserPromptPart(content="before")])]
    async with connected(Talk().agent) as agent:
        with pytest.raises(InvalidRequest):
            await agent.stream("one", thread_id="t", message_history=history)


async def test_a_thread_of_a_thousand_messages_goes_on(connected: Any, bench: Workbench) -> None:
    talk = Talk()
    before: list[dict[str, str]] = []
    for i in range(499):
        before += [{"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": f"a{i}"}]
    async with connected(talk.agent) as agent:
        await ended(await agent.stream(messages=[*before, {"role": "user", "content": "last"}], thread_id="t"))
        result = await (await agent.stream("next", thread_id="t", run_id="r2")).result()
        assert len(result.all_messages()) == 1002
        assert len(result.new_messages()) == 2
    assert [len(messages) for messages in (await exchanges(bench)).values()] == [1000, 2]
    assert lines(talk.asked[-1])[-3:] == ["last", talk_said(talk.asked[-1]), "next"]


def talk_said(messages: list[ModelMessage]) -> str:
    """The text of the last response."""
    last = next(message for message in reversed(messages) if isinstance(message, ModelResponse))
    return str(last.parts[0].content)  # type: ignore[union-attr]


async def test_a_history_processor_shortens_what_a_run_is_given_and_not_the_thread(
    connected: Any, bench: Workbench
) -> None:
    talk = Talk(capabilities=[ProcessHistory(lambda messages: messages[-1:])])
    async with connected(talk.agent) as agent:
        for i in range(3):
            assert await ended(await agent.stream(f"p{i}", thread_id="t", run_id=f"r{i}")) == f"heard p{i}"
    assert await said(bench) == [(f"r{i}", [f"p{i}", f"heard p{i}"]) for i in range(3)]


async def test_a_thread_is_kept_as_long_as_its_last_run(bench: Workbench) -> None:
    redis, keys = bench.store.redis, bench.store.keys
    names = [keys.thread("t"), keys.runs(thread="t")]

    async def lifetimes() -> list[int]:
        return [await redis.ttl(name) for name in names]

    record, _ = await bench.runs.create(new_run(retention=500, asked={"thread_id": "t"}))
    waiting, _ = await bench.runs.create(new_run(retention=60, asked={"thread_id": "t"}))
    await bench.runs.cancel(record.run_id)
    assert await lifetimes() == [-1, -1], "a run is still to come"
    await bench.runs.cancel(waiting.run_id)
    assert all(60 < seconds <= 500 for seconds in await lifetimes())
    again, _ = await bench.runs.create(new_run(retention=60, asked={"thread_id": "t"}))
    assert await lifetimes() == [-1, -1]
    assert not again.behind
    await sound(bench)


async def test_what_the_doctor_tells_of_a_thread_that_is_not_sound(bench: Workbench) -> None:
    redis, keys = bench.store.redis, bench.store.keys
    first, _ = await bench.runs.create(new_run(asked={"thread_id": "t"}))
    second, _ = await bench.runs.create(new_run(asked={"thread_id": "t"}))
    await sound(bench)
    await redis.delete(keys.thread_queue("t"))
    await redis.hdel(keys.thread("t"), "live")
    found = [finding async for finding in Doctor(bench.store).findings()]
    assert {(finding.run_id, finding.check) for finding in found} == {
        (first.run_id, "thread"),
        (second.run_id, "thread"),
    }


async def test_a_thread_in_memory_is_the_same_thread() -> None:
    talk = Talk()
    async with create_durable_agent(talk.agent) as agent:
        first = await agent.stream("wait", thread_id="t")
        second = await agent.stream("two", thread_id="t")
        await status(second, "queued", "thread_busy")
        talk.gate.set()
        assert await ended(second) == "heard wait|two"
        assert await ended(first) == "I am here"


async def test_runs_and_threads_of_other_names_are_others(settings: Settings) -> None:
    store = Store.in_memory(prefix=f"{{braces-{secrets.token_hex(3)}}}")
    runs = Runs(store, settings)
    first, _ = await runs.create(new_run(run_id="same", asked={"thread_id": "same"}))
    second, _ = await runs.create(new_run(asked={"thread_id": "same"}))
    await runs.cancel(first.run_id)
    assert second.behind
    assert not (await runs.get(second.run_id)).behind
    assert await store.redis.zscore(store.keys.wakeups, second.run_id) is not None
    assert (await runs.thread("same"))["live"] == second.run_id
    await store.aclose()
