"""Questions about calls: each has an id, its first answer stands, and no answer to one is taken for one to another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunHandle, resume_data, suspend
from durable.decisions import DEADLINE, Answer, Decisions, Question, decisions
from durable.errors import AlreadyDecided, InvalidRequest, RunEnded, UnknownCall
from durable.settings import Settings
from durable.store import Store
from durable.sweeper import Sweeper
from durable.views import DecisionView
from durable.writer import Note, Waiting
from tests.conftest import eventually
from tests.workbench import Workbench, delta

Stale = Callable[[RunHandle, str], Awaitable[None]]


def calling_again(times: int, tool: str) -> FunctionModel:
    """A model that calls a tool in each of its steps, always under the same id."""

    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if sum(isinstance(message, ModelResponse) for message in messages) < times:
            yield {0: DeltaToolCall(name=tool, json_args="{}", tool_call_id="c1")}
        else:
            yield "done"

    return FunctionModel(stream_function=respond)


def asking(*, until: Any, said: list[Any], **options: Any) -> Agent[Any, str]:
    """An agent whose tool asks until it is told what it wants."""
    agent = Agent(calling_again(1, "ask"), name="asker")

    def ask(ctx: RunContext[Any]) -> str:
        said.append(resume_data(ctx))
        if said[-1] != until:
            raise suspend({"heard": said[-1]})
        return "heard"

    agent.tool(**options)(ask)
    return agent


def paying(effects: list[int]) -> Agent[Any, str]:
    """An agent that pays in each of two steps, under one id."""
    agent = Agent(calling_again(2, "pay"), name="payer")

    @agent.tool_plain(requires_approval=True)
    def pay() -> str:
        effects.append(1)
        return "paid"

    return agent


async def asked(handle: RunHandle, question: str) -> None:
    """Wait until just this question waits, and the run with it."""

    async def waits() -> bool:
        view = await handle.status()
        return view.status == "suspended" and [call.question_id for call in view.pending or []] == [question]

    await eventually(waits, what=f"the question {question}")


async def ended(handle: RunHandle) -> str:
    """What the run came to."""
    async with asyncio.timeout(15):
        return str((await handle.result()).output)


async def answered(handle: RunHandle) -> list[tuple[str | None, str, str | None]]:
    """The answers that the run tells of."""
    return [(found.question_id, found.decision, found.actor) for found in (await handle.status()).decisions or []]


async def types(handle: RunHandle) -> list[str]:
    return [chunk.type async for chunk in handle.observe()]


async def _nothing(_handle: RunHandle, _question: str) -> None:
    """Nobody answers a second time."""


async def _same(handle: RunHandle, question: str) -> None:
    await handle.resume("c1", "first", actor="late", question=question)


async def _other(handle: RunHandle, question: str) -> None:
    with pytest.raises(AlreadyDecided) as refused:
        await handle.resume("c1", "other", actor="late", question=question)
    assert_told(refused.value, question, "resume", "ada", "ask")


async def _declined(handle: RunHandle, question: str) -> None:
    with pytest.raises(AlreadyDecided) as refused:
        await handle.decline("c1", question=question)
    assert_told(refused.value, question, "resume", "ada", "ask")


async def _approved(handle: RunHandle, question: str) -> None:
    with pytest.raises(AlreadyDecided):
        await handle.approve("c1", question=question)


def assert_told(error: AlreadyDecided, question: str, decision: str, actor: str | None, tool: str) -> None:
    """A refusal tells all that is known of the answer which stands, as the run does."""
    told = DecisionView.model_validate(error.details["decision"])
    assert (told.question_id, told.decision, told.actor, told.tool_name) == (question, decision, actor, tool)
    assert told.tool_call_id == "c1"
    assert error.details["decision"] == json.loads(told.model_dump_json(by_alias=True))


@pytest.mark.parametrize("again", [_nothing, _same, _other, _declined, _approved])
async def test_an_answer_that_comes_again_is_none_to_the_next_question(connected: Any, again: Stale) -> None:
    said: list[Any] = []
    async with connected(asking(until="second", said=said)) as agent:
        handle = await agent.stream("ask")
        await asked(handle, "1.0")
        await handle.resume("c1", "first", actor="ada", question="1.0")
        await asked(handle, "1.1")
        await again(handle, "1.0")
        await asked(handle, "1.1")
        assert said == [None, "first"]
        await handle.resume("c1", "second", actor="bob", question="1.1")
        await ended(handle)
        await again(handle, "1.0")
        await handle.resume("c1", "second", question="1.1")
        assert await answered(handle) == [("1.0", "resume", "ada"), ("1.1", "resume", "bob")]
        seen = await types(handle)
    assert said == [None, "first", "second"]
    assert seen.count("tool-call-decided") == 2


async def test_an_approval_is_not_one_of_the_same_call_id_in_a_later_step(connected: Any) -> None:
    effects: list[int] = []
    async with connected(paying(effects)) as agent:
        handle = await agent.stream("pay twice")
        await asked(handle, "1.0")
        await handle.approve("c1", actor="ada", question="1.0")
        await asked(handle, "2.0")
        await handle.approve("c1", actor="ada", question="1.0")
        with pytest.raises(AlreadyDecided) as refused:
            await handle.decline("c1", question="1.0")
        assert_told(refused.value, "1.0", "approve", "ada", "pay")
        await asked(handle, "2.0")
        assert effects == [1]
        await handle.decline("c1", reason="once is enough", question="2.0")
        assert await ended(handle) == "done"
        with pytest.raises(AlreadyDecided) as refused:
            await handle.approve("c1", question="2.0")
        assert_told(refused.value, "2.0", "decline", None, "pay")
        assert await answered(handle) == [("1.0", "approve", "ada"), ("2.0", "decline", None)]
    assert effects == [1]


async def test_an_answer_without_a_question_is_one_to_what_is_asked_now(connected: Any) -> None:
    """As older callers give it: so the page tells them to name the question."""
    effects: list[int] = []
    async with connected(paying(effects)) as agent:
        handle = await agent.stream("pay twice")
        await asked(handle, "1.0")
        await handle.approve("c1")
        await asked(handle, "2.0")
        await handle.approve("c1")
        await ended(handle)
        await handle.approve("c1")
        with pytest.raises(AlreadyDecided) as refused:
            await handle.decline("c1")
        assert_told(refused.value, "2.0", "approve", None, "pay")
    assert effects == [1, 1]


async def test_a_tool_that_was_approved_asks_another_question(connected: Any) -> None:
    said: list[Any] = []
    async with connected(asking(until="yes", said=said, requires_approval=True)) as agent:
        handle = await agent.stream("ask")
        await asked(handle, "1.0")
        await handle.approve("c1", question="1.0")
        await asked(handle, "1.1")
        await handle.approve("c1", question="1.0")
        with pytest.raises(InvalidRequest):
            await handle.approve("c1", question="1.1")
        await handle.resume("c1", "yes", question="1.1")
        await ended(handle)
        chunks = [chunk async for chunk in handle.observe()]
    kinds = ("tool-call-approval", "tool-call-suspended", "tool-call-decided")
    told = [(chunk.type, chunk.payload.question_id) for chunk in chunks if chunk.type in kinds]
    assert told == [
        ("tool-call-approval", "1.0"),
        ("tool-call-decided", "1.0"),
        ("tool-call-suspended", "1.1"),
        ("tool-call-decided", "1.1"),
    ]


async def test_of_many_who_answer_two_questions_at_once_each_has_one_answer(connected: Any) -> None:
    said: list[Any] = []
    async with connected(asking(until="end", said=said)) as agent:
        handle = await agent.stream("ask")
        await asked(handle, "1.0")

        async def insist(question: str, data: str) -> str:
            """Answer a question as soon as it is asked."""
            while True:
                try:
                    await handle.resume("c1", data, actor=data, question=question)
                except AlreadyDecided:
                    return "refused"
                except UnknownCall:
                    await asyncio.sleep(0.01)  # it is not asked yet
                else:
                    return "stands"

        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(
                *(insist(f"1.{i % 2}", f"{i % 2}-{i // 2}") for i in range(40)), insist("1.2", "end")
            )
        assert [outcomes[:-1:2].count("stands"), outcomes[1:-1:2].count("stands"), outcomes[-1]] == [1, 1, "stands"]
        await ended(handle)
        first, second = (f"{i}-{outcomes[i:-1:2].index('stands')}" for i in range(2))
        assert said == [None, first, second, "end"]
        assert [actor for _, _, actor in await answered(handle)] == said[1:]


@pytest.mark.parametrize(("data", "stands"), [("first", True), ("other", False)])
async def test_an_answer_that_is_overtaken_on_its_way_is_judged_by_its_own_question(
    connected: Any, monkeypatch: pytest.MonkeyPatch, data: str, stands: bool
) -> None:
    """The question is answered, and the next one asked and answered, after it was read and before the answer is
    stored."""
    said: list[Any] = []
    apply, overtaken = Decisions._apply, list[str]()

    async def late(self: Decisions, run_id: str, call: Any, answer: Answer, *, due: bool) -> Any:
        if answer.actor == "late" and not overtaken:
            overtaken.append(run_id)
            await handle.resume("c1", "first", actor="ada", question="1.0")
            await asked(handle, "1.1")
            await handle.resume("c1", data, actor="bob", question="1.1")
            await asked(handle, "1.2")
        return await apply(self, run_id, call, answer, due=due)

    monkeypatch.setattr(Decisions, "_apply", late)
    async with connected(asking(until="end", said=said)) as agent:
        handle = await agent.stream("ask")
        await asked(handle, "1.0")
        if stands:
            await handle.resume("c1", data, actor="late", question="1.0")
        else:
            with pytest.raises(AlreadyDecided) as refused:
                await handle.resume("c1", data, actor="late", question="1.0")
            assert_told(refused.value, "1.0", "resume", "ada", "ask")
        await asked(handle, "1.2")
        await handle.resume("c1", "end")
        await ended(handle)
    assert overtaken
    assert said == [None, "first", data, "end"]


async def test_a_question_that_was_never_asked_is_unknown_and_what_is_none_is_refused(connected: Any) -> None:
    async with connected(asking(until="end", said=[])) as agent:
        handle = await agent.stream("ask")
        await asked(handle, "1.0")
        for question in ("1.1", "2.0", "999999999.999999999"):
            with pytest.raises(UnknownCall):
                await handle.resume("c1", "x", question=question)
        for question in (
            "",
            "1",
            "1.",
            "01.0",
            "0.0",
            "1.00",
            "1.0 ",
            "1.0\n",
            "-1.0",
            "1 0",
            "x",
            "\u0661.0",
            "1" * 99,
        ):
            with pytest.raises(InvalidRequest):
                await handle.resume("c1", "x", question=question)
        await asked(handle, "1.0")
        await handle.cancel()
        with pytest.raises(UnknownCall):
            await handle.resume("c1", "x", question="1.1")
        with pytest.raises(RunEnded):
            await handle.resume("c1", "x", question="1.0")


async def test_what_was_answered_before_the_end_stays_answered_after_it(connected: Any) -> None:
    async with connected(asking(until="end", said=[])) as agent:
        handle = await agent.stream("ask")
        await asked(handle, "1.0")
        await handle.resume("c1", "first", actor="ada", question="1.0")
        await asked(handle, "1.1")
        await handle.cancel()
        await handle.resume("c1", "first", question="1.0")
        await _other(handle, "1.0")
        with pytest.raises(RunEnded):
            await handle.resume("c1", "first", question="1.1")
        assert await answered(handle) == [("1.0", "resume", "ada")]


async def test_a_question_has_the_same_id_in_a_process_that_forgot_all(connected: Any) -> None:
    said: list[Any] = []
    async with connected(asking(until="end", said=said)) as agent:
        handle = await agent.stream("ask")
        await asked(handle, "1.0")
        await handle.resume("c1", "first", actor="ada", question="1.0")
        await asked(handle, "1.1")
        run_id = handle.run_id
    async with connected(asking(until="end", said=said)) as agent:
        handle = await agent.handle(run_id)
        await asked(handle, "1.1")
        await _same(handle, "1.0")
        await handle.resume("c1", "again", question="1.1")
        await asked(handle, "1.2")
        await handle.resume("c1", "end", question="1.2")
        await ended(handle)
        assert [question for question, _, _ in await answered(handle)] == ["1.0", "1.1", "1.2"]
    assert said == [None, "first", "again", "end"]


async def test_a_run_tells_of_its_newest_answers_and_every_question_stays_answered(
    connected: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "RECENT_ANSWERS", 3)
    async with connected(asking(until=11, said=[])) as agent:
        handle = await agent.stream("ask")
        for i in range(12):
            await asked(handle, f"1.{i}")
            await handle.resume("c1", i, actor=f"a{i}")
        await ended(handle)
        assert await answered(handle) == [(f"1.{i}", "resume", f"a{i}") for i in (9, 10, 11)]
        kept = await store.redis.hkeys(store.keys.calls(handle.run_id))
        assert len(kept) == 4 + 3, "what is kept of a call does not grow with what it was asked"
        await handle.resume("c1", 0, question="1.0")
        with pytest.raises(AlreadyDecided) as refused:
            await handle.resume("c1", 7, question="1.0")
    assert_told(refused.value, "1.0", "resume", "a0", "ask")


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


QUESTION = Question(tool_name="ask", kind="resume", agent="nobody").to_json()


def note(round_: int, expires_in: float | None = None) -> Note:
    """That a call begins to wait."""
    return Note(field=f"1+{round_}:c1", value=b"{}", waiting=Waiting("c1", 1, round_, QUESTION, expires_in))


async def test_a_question_that_is_announced_again_keeps_its_answer(bench: Workbench) -> None:
    found = Decisions(bench.store, bench.runs)
    run_id = await bench.create()
    writer = await bench.writer(run_id)
    writer.write(delta("x"), note(0, 3600))
    await writer.flush()
    [[before]] = await found.calls([run_id])
    writer.write(delta("y"), note(0))
    await writer.flush()
    assert await found.calls([run_id]) == [[before]]
    await found.decide(run_id, "c1", Answer(kind="resume", data=1))
    writer.write(delta("z"), note(0))
    await writer.flush()
    assert await bench.store.redis.zcard(bench.store.keys.pending) == 0
    with pytest.raises(AlreadyDecided):
        await found.decide(run_id, "c1", Answer(kind="resume", data=2))
    writer.write(delta("z"), note(1))
    await writer.flush()
    await found.decide(run_id, "c1", Answer(kind="resume", data=2), question="1.1")


async def test_a_refusal_tells_of_its_own_question_though_the_next_is_open_by_then(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else was faster, and the next question is asked before it is looked up what they said."""
    apply = Decisions._apply
    run_id = await bench.create()
    writer = await bench.writer(run_id)
    writer.write(delta("x"), note(0))
    await writer.flush()

    async def late(self: Decisions, of: str, call: Any, answer: Answer, *, due: bool) -> Any:
        if answer.actor != "late":
            return await apply(self, of, call, answer, due=due)
        await self.decide(run_id, "c1", Answer(kind="resume", data=1, actor="ada"))
        verdict = await apply(self, of, call, answer, due=due)
        writer.write(delta("y"), note(1))
        await writer.flush()
        return verdict

    monkeypatch.setattr(Decisions, "_apply", late)
    with pytest.raises(AlreadyDecided) as refused:
        await Decisions(bench.store, bench.runs).decide(run_id, "c1", Answer(kind="decline", actor="late"))
    assert_told(refused.value, "1.0", "resume", "ada", "ask")


async def test_a_deadline_is_that_of_its_question(bench: Workbench) -> None:
    found, keys = Decisions(bench.store, bench.runs), bench.store.keys
    run_id = await bench.create()
    writer = await bench.writer(run_id)
    writer.write(delta("x"), note(0, 3600))
    await writer.flush()
    writer.write(delta("y"), note(1))  # the agent's own code has answered the first
    await writer.flush()
    assert await bench.store.redis.zcard(keys.deadlines) == 0
    await bench.store.redis.zadd(keys.deadlines, {f"{run_id}:c1": 1})
    assert await found.due(9) == [(run_id, "c1", "1.1", "decline")]
    late = Answer(kind="approve", actor=DEADLINE)
    with pytest.raises(UnknownCall):
        await found.decide(run_id, "c1", late, question="1.0", due=True)

    async def nobody(_: Any) -> None:
        raise AssertionError("there is nobody to wake")

    assert await Sweeper(bench.store, bench.settings, nobody, "late")._expire(run_id, "c1", "1.0", "cancel") == 0
    [[call]] = await found.calls([run_id])
    assert call.answer is None
    await found.decide(run_id, "c1", late, question="1.1", due=True)


async def test_a_number_that_json_does_not_have_is_the_same_answer_again(bench: Workbench) -> None:
    found = Decisions(bench.store, bench.runs)
    run_id = await bench.create()
    writer = await bench.writer(run_id)
    answer = Answer(kind="resume", data=float("nan"))
    for round_ in range(2):
        writer.write(delta("x"), note(round_))
        await writer.flush()
        if not round_:
            await found.decide(run_id, "c1", answer)
    await found.decide(run_id, "c1", answer, question="1.0")
    await found.decide(run_id, "c1", Answer(kind="resume"), question="1.0")
