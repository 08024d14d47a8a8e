"""Guardrails, scorers and goals: each verdict is given once, is in the log, and has its effect; also over takeovers."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Tool
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import (
    Chunk,
    DurableAgent,
    Folder,
    Goal,
    GoalVerdict,
    JudgeContext,
    RunHandle,
    RunInfo,
    Score,
    TaskCompletion,
    Tripwire,
    create_durable_agent,
)
from durable.chunks import GoalChunk, GoalPayload
from durable.doctor import Doctor
from durable.errors import ConfigurationError, InvalidRequest, RunEnded, RunFailed
from durable.settings import Settings
from durable.store import Store
from durable.store import text as text_of
from tests.conftest import eventually

Connected = Callable[..., Any]


class Draft(BaseModel):
    """A structured output."""

    text: str


def prompts(messages: Sequence[ModelMessage]) -> list[str]:
    """What the model was told by users, in order."""
    return [
        str(part.content)
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]


def model(*, tools: bool = False) -> FunctionModel:
    """A model that writes one draft after the other; each after a call of a tool if there are tools."""

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        responses = sum(isinstance(message, ModelResponse) for message in messages)
        number = responses // 2 + 1 if tools else responses + 1
        if tools and responses % 2 == 0:
            yield {0: DeltaToolCall(name="look", json_args="{}", tool_call_id=f"c{number}")}
        elif info.output_tools:
            name = info.output_tools[0].name
            yield {
                0: DeltaToolCall(
                    name=name, json_args=json.dumps({"text": f"draft {number}"}), tool_call_id=f"o{number}"
                )
            }
        else:
            yield f"draft {number}"

    return FunctionModel(stream_function=respond)


@pytest.fixture(params=[False, True], ids=["on end", "by steps"])
def connected(request: pytest.FixtureRequest, settings: Settings, store: Store) -> Connected:
    """Connects agents whose runs go on to the end, or are given back after each step."""
    chosen = settings.model_copy(update={"always_resume": settings.always_resume or request.param})

    @asynccontextmanager
    async def connect(agent: Agent[Any, Any] | None = None, **options: Any) -> AsyncIterator[DurableAgent]:
        durable = create_durable_agent(agent or Agent(model(), name="writer"), cache=chosen, **options)
        async with durable:
            yield durable
        assert [finding async for finding in Doctor(store).findings()] == []

    return connect


async def end(handle: RunHandle) -> list[Chunk]:
    """The run's chunks, once it has ended."""
    async with asyncio.timeout(20):
        chunks = [chunk async for chunk in handle.observe()]
    assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert [chunk.seq for chunk in chunks if chunk.final] == [len(chunks)]
    return chunks


async def paused(handle: RunHandle, count: int = 1) -> GoalPayload:
    """Wait until the goal was paused so often, and the run is suspended; what the log says of it."""
    found: list[GoalPayload] = []
    async for chunk in handle.observe():
        if isinstance(chunk, GoalChunk) and chunk.payload.status == "paused":
            found.append(chunk.payload)
        if len(found) == count:
            break

    async def waits() -> bool:
        return (await handle.status()).status == "suspended"

    await eventually(waits, what="the run to be suspended")
    return found[-1]


def of(chunks: Sequence[Chunk], kind: str) -> list[Any]:
    """The payloads of one type."""
    return [chunk.payload for chunk in chunks if chunk.type == kind]


def goal_verdicts(chunks: Sequence[Chunk]) -> list[GoalPayload]:
    """What the goal's judge has said."""
    return [payload for payload in of(chunks, "goal") if not payload.pending]


def text(chunks: Sequence[Chunk]) -> str:
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    return folder.text


class Asked(Counter[str]):
    """Counts who was asked."""


# Input guardrails


async def test_an_input_guardrail_stops_a_run_before_the_model_is_asked(connected: Connected) -> None:
    def no_secrets(ctx: JudgeContext, messages: Sequence[ModelMessage]) -> Tripwire | None:
        assert (ctx.agent, ctx.metadata) == ("writer", {"tenant": "t1"})
        return Tripwire("a secret", metadata={"kind": "key"}) if "sk-" in prompts(messages)[-1] else None

    async with connected(input_guardrails=[no_secrets]) as agent:
        handle = await agent.stream("my key is sk-1", metadata={"tenant": "t1"})
        chunks = await end(handle)
        assert [chunk.type for chunk in chunks] == ["start", "tripwire", "finish"]
        assert chunks[1].to_wire()["payload"] == {
            "reason": "a secret",
            "metadata": {"kind": "key"},
            "processorId": "no_secrets",
        }
        assert chunks[-1].payload.step_result.reason == "tripwire"
        view = await handle.status()
        assert (view.status, view.reason, view.output) == ("completed", "tripwire", None)
        assert view.tripwire == {"reason": "a secret", "metadata": {"kind": "key"}, "processorId": "no_secrets"}
        result = await handle.result()
        assert (result.output, result.reason, result.messages) == (None, "tripwire", ())


async def test_a_guardrail_that_passes_is_asked_once_a_run(connected: Connected) -> None:
    asked = Asked()

    async def polite(_: JudgeContext, messages: Sequence[ModelMessage]) -> None:
        asked["polite"] += 1
        assert prompts(messages) == ["before", "write"]

    async def harmless(ctx: JudgeContext, output: str) -> None:
        asked[f"harmless {output} {len(ctx.messages)}"] += 1

    agent = Agent(model(tools=True), name="writer", tools=[look])
    async with connected(agent, input_guardrails=[polite], output_guardrails=[harmless]) as durable:
        history: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart(content="before")])]
        result = await durable.generate("write", message_history=history)
    assert result.output == "draft 1"
    assert asked == {"polite": 1, "harmless draft 1 5": 1}


async def look() -> str:
    """A tool."""
    return "seen"


async def raising(_: JudgeContext, __: Any) -> Any:
    raise ValueError("hunter2")


async def vague(_: JudgeContext, __: Any) -> Any:
    return True


@pytest.mark.parametrize("guardrail", [raising, vague])
@pytest.mark.parametrize("where", ["input_guardrails", "output_guardrails"])
async def test_a_guardrail_that_fails_stops_the_run(connected: Connected, where: str, guardrail: Any) -> None:
    async with connected(**{where: [guardrail]}) as agent:
        handle = await agent.stream("write")
        chunks = await end(handle)
        with pytest.raises(RunFailed) as raised:
            await handle.result()
    assert raised.value.failure_code == "guardrail_failed"
    assert "hunter2" not in str([chunk.to_wire() for chunk in chunks])
    assert [chunk.type for chunk in chunks][-2:] == ["error", "finish"]
    assert bool(of(chunks, "step-start")) == (where == "output_guardrails")


async def test_a_guardrail_may_raise_its_tripwire_and_know_the_dependencies(connected: Connected) -> None:
    async def strict(ctx: JudgeContext, _: Any) -> None:
        raise Tripwire(f"not for {ctx.deps}")

    def deps(info: RunInfo) -> str:
        return str(info.deps)

    async with connected(input_guardrails=[strict], deps_factory=deps) as agent:
        result = await agent.generate("write", deps="bob")
    assert result.tripwire == {"reason": "not for bob", "processorId": "strict"}


# Output guardrails


def no_drafts(_: JudgeContext, output: Any) -> Tripwire | None:
    said = output.text if isinstance(output, Draft) else output
    return Tripwire("a draft") if "draft" in said else None


async def test_an_output_guardrail_voids_what_was_streamed(connected: Connected) -> None:
    async with connected(output_guardrails=[no_drafts]) as agent:
        handle = await agent.stream("write")
        chunks = await end(handle)
        view = await handle.status()
        messages = (await handle.result()).messages
    [tripwire], [step] = of(chunks, "tripwire"), [chunk for chunk in chunks if chunk.type == "step-start"]
    assert tripwire.void.from_ == step.seq
    assert [chunk.type for chunk in chunks][-3:] == ["step-finish", "tripwire", "finish"]
    assert text(chunks) == ""
    assert "draft 1" not in str(chunks[-1].to_wire())
    assert (view.reason, view.output) == ("tripwire", None)
    assert prompts(messages) == ["write"]
    assert not any(isinstance(message, ModelResponse) for message in messages)


async def test_an_output_guardrail_withholds_a_structured_output_but_no_tool(connected: Connected) -> None:
    agent = Agent(model(tools=True), name="writer", tools=[look], output_type=Draft)
    async with connected(agent, output_guardrails=[no_drafts]) as durable:
        handle = await durable.stream("write")
        chunks = await end(handle)
        result = await handle.result()
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    assert list(folder.calls) == ["c1"]
    assert (folder.object, folder.reason, result.output) == (None, "tripwire", None)
    assert "draft" not in str(chunks[-1].to_wire())
    assert [step["toolCalls"] for step in chunks[-1].payload.output.steps][1:] == [[]]


async def test_an_output_guardrail_sees_also_what_the_step_limit_cuts_off(connected: Connected) -> None:
    completion = TaskCompletion([never])
    async with connected(output_guardrails=[no_drafts], completion=completion) as agent:
        result = await agent.generate("write", max_steps=1)
    assert (result.reason, result.output) == ("tripwire", None)


# Task completion


async def never(_: JudgeContext, __: Any) -> Score:
    return Score(0.2, reason="more")


def third(_: JudgeContext, output: Any) -> bool:
    return "3" in (output.text if isinstance(output, Draft) else output)


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("output_type", [str, Draft])
async def test_the_model_goes_on_until_the_scorers_pass(connected: Connected, output_type: Any, *, tools: bool) -> None:
    asked = Asked()

    async def fine(ctx: JudgeContext, output: Any) -> Score:
        asked[f"{ctx.iteration} {output}"] += 1
        return Score(0.9, passed=third(ctx, output), reason=f"it is {output}")

    agent = Agent(model(tools=tools), name="writer", tools=[look] if tools else [], output_type=output_type)
    async with connected(agent, completion=TaskCompletion([fine, third])) as durable:
        handle = await durable.stream("write")
        chunks = await end(handle)
        result = await handle.result()
    output = Draft(text="draft 3") if output_type is Draft else "draft 3"
    assert (result.output, result.reason) == (output, None)
    verdicts = of(chunks, "is-task-complete")
    assert [(verdict.iteration, verdict.passed, verdict.max_iteration_reached) for verdict in verdicts] == [
        (1, False, False),
        (2, False, False),
        (3, True, False),
    ]
    assert [found.scorer_id for found in verdicts[0].results] == ["fine", "third"]
    assert set(asked.values()) == {1}
    assert len(asked) == 3
    told = prompts(result.messages)
    assert [line.splitlines()[0] for line in told[1:]] == ["The task is not complete yet."] * 2
    assert "it is" in told[1]
    finished = of(chunks, "step-finish")
    assert [step.step_result.is_continued for step in finished] == [True] * (len(finished) - 1) + [False]
    assert len({chunk.payload.step_id for chunk in chunks if chunk.type == "step-start"}) == (6 if tools else 3)


async def test_the_output_retries_of_the_agent_are_not_used_up(connected: Connected) -> None:
    agent = Agent(model(), name="writer", retries=0)
    async with connected(agent, completion=TaskCompletion([third])) as durable:
        assert (await durable.generate("write")).output == "draft 3"


async def test_scorers_are_asked_as_often_as_they_may_be(connected: Connected) -> None:
    completion = TaskCompletion([never], max_iterations=2, suppress_feedback=True)
    async with connected(completion=completion) as agent:
        handle = await agent.stream("write")
        last = of(await end(handle), "is-task-complete")[-1]
        result = await handle.result()
    assert (last.iteration, last.passed, last.max_iteration_reached, last.suppress_feedback) == (2, False, True, True)
    assert last.reason == "never: more"
    assert (result.output, result.reason) == ("draft 2", "max_iterations")


async def test_any_scorer_is_enough_where_the_agent_says_so(connected: Connected) -> None:
    async with connected(completion=TaskCompletion([never, third], strategy="any")) as agent:
        assert (await agent.generate("write")).output == "draft 3"


async def test_a_scorer_that_fails_or_is_late_has_not_passed(connected: Connected) -> None:
    async def late(_: JudgeContext, __: Any) -> bool:
        await asyncio.Event().wait()
        return True

    completion = TaskCompletion([raising, late, third], strategy="any", timeout=0.2, max_iterations=1)
    async with connected(completion=completion) as agent:
        chunks = await end(await agent.stream("write"))
    [verdict] = of(chunks, "is-task-complete")
    assert (verdict.passed, verdict.timed_out) == (False, True)
    assert [(found.scorer_name, found.errored) for found in verdict.results] == [
        ("raising", True),
        ("late", True),
        ("third", None),
    ]
    assert "hunter2" not in verdict.model_dump_json()


# Goals


async def test_a_goal_is_judged_until_it_is_reached(connected: Connected) -> None:
    asked = Asked()

    async def editor(ctx: JudgeContext, objective: str, output: str) -> GoalVerdict:
        asked[f"{ctx.iteration} {objective} {output}"] += 1
        return GoalVerdict(status="done" if ctx.iteration == 3 else "continue", reason=f"{output} was read")

    goal = Goal(lambda ctx: f"three drafts for {ctx.metadata['who']}", editor, max_runs=4)
    async with connected(goal=goal) as agent:
        handle = await agent.stream("write", metadata={"who": "ada"})
        chunks = await end(handle)
        result = await handle.result()
    assert result.output == "draft 3"
    assert asked == {f"{n} three drafts for ada draft {n}": 1 for n in (1, 2, 3)}
    verdicts = goal_verdicts(chunks)
    assert [(found.iteration, found.status, found.should_continue, found.passed) for found in verdicts] == [
        (1, "active", True, False),
        (2, "active", True, False),
        (3, "done", False, True),
    ]
    assert (verdicts[0].objective, verdicts[0].max_runs) == ("three drafts for ada", 4)
    assert "draft 1 was read" in prompts(result.messages)[1]


async def test_observers_hear_that_a_judge_is_asked_before_it_has_said_anything(connected: Connected) -> None:
    heard = asyncio.Event()

    async def editor(_: JudgeContext, __: str, ___: str) -> GoalVerdict:
        await heard.wait()
        return GoalVerdict(status="done")

    async with connected(goal=Goal("a car", editor, max_runs=3, suppress_feedback=True)) as agent:
        handle = await agent.stream("write")
        async with asyncio.timeout(15):
            async for chunk in handle.observe():
                if isinstance(chunk, GoalChunk):
                    break
        heard.set()
        pending, verdict = of(await end(handle), "goal")
    assert GoalChunk(payload=pending).to_wire()["payload"] == {
        "objective": "a car",
        "iteration": 1,
        "maxRuns": 3,
        "passed": False,
        "status": "active",
        "results": [],
        "duration": 0,
        "timedOut": False,
        "maxRunsReached": False,
        "suppressFeedback": True,
        "pending": True,
    }
    assert (verdict.iteration, verdict.status, verdict.pending) == (1, "done", None)


async def test_an_agent_may_judge_and_its_tokens_count(connected: Connected) -> None:
    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        status = "done" if "draft 2" in prompts(messages)[-1] else "continue"
        return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, {"status": status})])

    judge = Agent(FunctionModel(respond), name="editor")
    async with connected(goal=Goal("two drafts", judge)) as agent:
        handle = await agent.stream("write")
        chunks = await end(handle)
        result = await handle.result()
    assert result.output == "draft 2"
    assert [found.scorer_id for verdict in goal_verdicts(chunks) for found in verdict.results] == ["editor", "editor"]
    own = sum(step.output.usage.total_tokens for step in of(chunks, "step-finish"))
    judged = [message for message in result.messages if isinstance(message, ModelResponse)]
    assert len(judged) == 2
    assert result.usage.total_tokens > own + 100


async def waiting(ctx: JudgeContext, _: str, output: str) -> GoalVerdict:
    if ctx.iteration == 1:
        return GoalVerdict(status="waiting", reason="which colour?")
    return GoalVerdict(status="done", reason=output)


async def test_a_goal_that_waits_for_somebody_suspends_the_run_until_it_is_resumed(connected: Connected) -> None:
    async with connected(goal=Goal("a car", waiting)) as agent:
        handle = await agent.stream("write")
        paused_goal = await paused(handle)
        assert (paused_goal.status, paused_goal.waiting_for_user) == ("paused", True)
        view = await handle.status()
        assert (view.status, view.reason) == ("suspended", "goal_paused")
        [call] = view.pending or []
        assert (call.tool_name, call.tool_call_id) == ("goal", paused_goal.tool_call_id)
        assert call.payload["pausedReason"] == "which colour?"
        with pytest.raises(InvalidRequest):
            await handle.resume(call.tool_call_id, {"colour": "red"})
        assert call.question_id == paused_goal.question_id == "1.0"
        await handle.resume(call.tool_call_id, {"message": "red"}, actor="ada", question=call.question_id)
        chunks = await end(handle)
        result = await handle.result()
    assert prompts(result.messages) == ["write", "red"]
    assert result.output == "draft 2"
    assert [found.status for found in goal_verdicts(chunks)] == ["paused", "done"]


async def test_a_paused_goal_may_be_given_up(connected: Connected) -> None:
    async with connected(goal=Goal("a car", waiting)) as agent:
        handle = await agent.stream("write")
        paused_goal = await paused(handle)
        await handle.decline(paused_goal.tool_call_id)
        result = await handle.result()
    assert (result.output, result.reason) == ("draft 1", "goal_stopped")


async def test_a_judge_that_fails_pauses_the_goal_and_is_asked_again(connected: Connected) -> None:
    asked = Asked()

    async def broken(ctx: JudgeContext, _: str, output: str) -> GoalVerdict:
        asked[output] += 1
        if ctx.iteration < 3:
            raise ValueError("hunter2")
        return GoalVerdict(status="done")

    async with connected(goal=Goal("a car", broken)) as agent:
        handle = await agent.stream("write")
        for count in (1, 2):
            paused_goal = await paused(handle, count)
            assert (paused_goal.judge_failed, paused_goal.paused_reason) == (True, "The judge raised ValueError.")
            assert paused_goal.iteration == count
            await handle.resume(paused_goal.tool_call_id)
        chunks = await end(handle)
    assert asked == {"draft 1": 3}
    assert len(of(chunks, "step-start")) == 1
    assert "hunter2" not in str([chunk.to_wire() for chunk in chunks])


@pytest.mark.parametrize(("data", "budget"), [(None, 4), ({"maxRuns": 3}, 3)])
async def test_a_goal_whose_budget_is_used_up_is_paused_and_may_be_given_more(
    connected: Connected, data: Any, budget: int
) -> None:
    async def hard(_: JudgeContext, __: str, output: str) -> GoalVerdict:
        return GoalVerdict(status="done" if "3" in output else "continue")

    async with connected(goal=Goal("three drafts", hard, max_runs=2)) as agent:
        handle = await agent.stream("write")
        paused_goal = await paused(handle)
        assert (paused_goal.iteration, paused_goal.max_runs_reached) == (2, True)
        await handle.resume(paused_goal.tool_call_id, data)
        chunks = await end(handle)
        result = await handle.result()
    assert result.output == "draft 3"
    assert goal_verdicts(chunks)[-1].max_runs == budget


async def test_a_paused_goal_may_be_cancelled(connected: Connected) -> None:
    async with connected(goal=Goal("a car", waiting)) as agent:
        handle = await agent.stream("write")
        paused_goal = await paused(handle)
        await handle.cancel()
        with pytest.raises(RunEnded):
            await handle.resume(paused_goal.tool_call_id or "")
        view = await handle.status()
    assert (view.status, view.pending) == ("cancelled", None)


async def test_the_task_is_complete_before_the_goal_is_judged(connected: Connected) -> None:
    async def editor(_: JudgeContext, __: str, output: str) -> GoalVerdict:
        return GoalVerdict(status="done", reason=output)

    async with connected(completion=TaskCompletion([third]), goal=Goal("a car", editor)) as agent:
        chunks = await end(await agent.stream("write"))
    order = [chunk.type for chunk in chunks if chunk.type in {"is-task-complete", "goal"}]
    assert order == ["is-task-complete"] * 3 + ["goal"] * 2


async def hang(ctx: JudgeContext, *_: Any) -> Any:
    ctx.deps.set()
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "options",
    [
        {"input_guardrails": [hang]},
        {"output_guardrails": [hang]},
        {"completion": TaskCompletion([hang])},
        {"goal": Goal("a car", hang)},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_a_run_that_is_being_judged_can_be_cancelled(connected: Connected, options: dict[str, Any]) -> None:
    judging = asyncio.Event()
    async with connected(deps_factory=lambda _: judging, **options) as agent:
        handle = await agent.stream("write")
        async with asyncio.timeout(15):
            await judging.wait()
        await handle.cancel()
        chunks = await end(handle)
    assert [chunk.type for chunk in chunks][-2:] == ["abort", "finish"]


# Those who do not end


class Stubborn:
    """Swallows every interruption until it is let go, and then says that all is well.

    Args:
        verdict: What it says.
        synchronous: Whether it keeps a thread instead.
    """

    __name__ = "stubborn"

    def __init__(self, verdict: Any = None, *, synchronous: bool = False) -> None:
        self.asked = asyncio.Event()
        self.let_go = threading.Event()
        self.said = asyncio.Event()
        self._verdict = verdict
        self._synchronous = synchronous
        self._loop = asyncio.get_running_loop()

    def __call__(self, *_: Any) -> Any:
        return self._block() if self._synchronous else self._swallow()

    def _block(self) -> Any:
        self._loop.call_soon_threadsafe(self.asked.set)
        self.let_go.wait(30)
        self._loop.call_soon_threadsafe(self.said.set)
        return self._verdict

    async def _swallow(self) -> Any:
        self.asked.set()
        while not self.let_go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        self.said.set()
        return self._verdict


JUDGES = ["input_guardrails", "output_guardrails", "completion", "goal"]


def options_of(by: str, stubborn: Stubborn, seconds: float | None) -> dict[str, Any]:
    """The options of an agent whose runs somebody judges who does not end."""
    if by == "completion":
        return {by: TaskCompletion([stubborn], timeout=seconds, max_iterations=1)}
    if by == "goal":
        return {by: Goal("a car", stubborn, timeout=seconds)}
    return {by: [stubborn], "guardrail_seconds": seconds}


@pytest.fixture
async def stubborn() -> AsyncIterator[Callable[..., Stubborn]]:
    """Makes those who do not end. All of them are let go at last."""
    made: list[Stubborn] = []

    def make(*args: Any, **options: Any) -> Stubborn:
        made.append(Stubborn(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.let_go.set()
        if each.asked.is_set():
            await asyncio.wait_for(each.said.wait(), 15)


@pytest.mark.parametrize("synchronous", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize("where", ["input_guardrails", "output_guardrails"])
async def test_a_guardrail_that_takes_too_long_stops_the_run(
    connected: Connected,
    stubborn: Callable[..., Stubborn],
    caplog: pytest.LogCaptureFixture,
    where: str,
    *,
    synchronous: bool,
) -> None:
    caplog.set_level(logging.WARNING, logger="durable.completion")  # a worker in this process may have set the root's
    guardrail = stubborn(synchronous=synchronous)
    async with connected(**options_of(where, guardrail, 0.1)) as agent:
        handle = await agent.stream("write")
        chunks = await end(handle)
        with pytest.raises(RunFailed) as raised:
            await handle.result()
        assert not guardrail.said.is_set()
        engine = next(iter(agent._backends.values())).engine
        assert engine is not None
        # The end of a run is heard before its attempt has ended.
        await eventually(counts(lambda: engine.busy_threads, int(synchronous)), what="its thread to be counted")
        guardrail.let_go.set()
        await asyncio.wait_for(guardrail.said.wait(), 15)
        await eventually(counts(lambda: engine.busy_threads, 0), what="its thread to be free again")
        assert await end(handle) == chunks
    assert raised.value.failure_code == "guardrail_failed"
    assert "did not answer in time" in chunks[-2].payload.error.message
    assert sum("although it was interrupted" in message for message in caplog.messages) == int(not synchronous)


def counts(read: Callable[[], int], number: int) -> Callable[[], Awaitable[bool]]:
    async def same() -> bool:
        return read() == number

    return same


async def test_a_guardrail_that_heeds_its_time_limit_ends_properly(connected: Connected) -> None:
    ended = asyncio.Event()

    async def slow(_: JudgeContext, __: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    async with connected(input_guardrails=[slow], guardrail_seconds=0.1) as agent:
        chunks = await end(await agent.stream("write"))
        assert ended.is_set()
    assert [chunk.type for chunk in chunks] == ["start", "error", "finish"]


@pytest.mark.parametrize("synchronous", [False, True], ids=["async", "sync"])
async def test_a_scorer_that_does_not_end_is_not_waited_for_and_its_late_score_is_refused(
    connected: Connected, store: Store, stubborn: Callable[..., Stubborn], *, synchronous: bool
) -> None:
    scorer = stubborn(True, synchronous=synchronous)
    async with connected(**options_of("completion", scorer, 0.1)) as agent:
        handle = await agent.stream("write")
        chunks = await end(handle)
        assert (await handle.result()).reason == "max_iterations"
        before = await store.redis.hgetall(store.keys.ledger(handle.run_id))
        assert not scorer.said.is_set()
        scorer.let_go.set()
        await asyncio.wait_for(scorer.said.wait(), 15)
        assert await store.redis.hgetall(store.keys.ledger(handle.run_id)) == before
        assert await end(handle) == chunks
    [verdict] = of(chunks, "is-task-complete")
    assert (verdict.passed, verdict.timed_out) == (False, True)
    assert [(found.errored, found.reason) for found in verdict.results] == [
        (True, "The scorer did not answer in time.")
    ]


async def test_a_late_score_is_refused_while_the_run_goes_on(
    connected: Connected, store: Store, stubborn: Callable[..., Stubborn]
) -> None:
    late, scored = stubborn(True), asyncio.Event()

    async def waiting_for_it(ctx: JudgeContext, _: str, __: str) -> GoalVerdict:
        late.let_go.set()
        await late.said.wait()
        scored.set()
        return GoalVerdict(status="done")

    completion = TaskCompletion([late, third_or_first], strategy="any", timeout=0.1)
    async with connected(completion=completion, goal=Goal("a car", waiting_for_it)) as agent:
        handle = await agent.stream("write")
        await end(handle)
        stored = {text_of(name) for name in await store.redis.hkeys(store.keys.ledger(handle.run_id))}
    assert scored.is_set()
    assert not [name for name in stored if "scorer-stubborn" in name]
    assert [name for name in stored if "scorer-third_or_first" in name]


def third_or_first(_: JudgeContext, output: str) -> bool:
    return output in {"draft 1", "draft 3"}


@pytest.mark.parametrize("synchronous", [False, True], ids=["async", "sync"])
async def test_a_judge_that_does_not_end_pauses_the_goal_and_its_late_verdict_is_refused(
    connected: Connected, stubborn: Callable[..., Stubborn], caplog: pytest.LogCaptureFixture, *, synchronous: bool
) -> None:
    caplog.set_level(logging.WARNING, logger="durable.completion")
    judge = stubborn(GoalVerdict(status="done"), synchronous=synchronous)
    async with connected(**options_of("goal", judge, 0.1)) as agent:
        handle = await agent.stream("write")
        paused_goal = await paused(handle)
        assert (paused_goal.judge_failed, paused_goal.timed_out) == (True, True)
        assert paused_goal.paused_reason == "The judge did not answer in time."
        assert not judge.said.is_set()
        judge.let_go.set()
        await asyncio.wait_for(judge.said.wait(), 15)
        view = await handle.status()
        assert (view.status, view.reason) == ("suspended", "goal_paused")
        await handle.decline(paused_goal.tool_call_id)
        assert (await handle.result()).reason == "goal_stopped"
    assert sum("although it was interrupted" in message for message in caplog.messages) == int(not synchronous)


async def test_a_judge_whose_own_time_limit_ran_out_is_not_called_late(connected: Connected) -> None:
    async def impatient(_: JudgeContext, __: str, ___: str) -> GoalVerdict:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
        return GoalVerdict(status="done")

    async with connected(goal=Goal("a car", impatient)) as agent:
        handle = await agent.stream("write")
        paused_goal = await paused(handle)
        await handle.cancel()
    assert (paused_goal.timed_out, paused_goal.paused_reason) == (False, "The judge raised TimeoutError.")


@pytest.mark.parametrize("by", JUDGES)
async def test_a_run_whose_judge_swallows_it_can_be_cancelled(
    connected: Connected, stubborn: Callable[..., Stubborn], by: str
) -> None:
    judge = stubborn()
    async with connected(**options_of(by, judge, None)) as agent:
        handle = await agent.stream("write")
        await asyncio.wait_for(judge.asked.wait(), 15)
        await handle.cancel()
        chunks = await end(handle)
        assert not judge.said.is_set()
    assert [chunk.type for chunk in chunks][-2:] == ["abort", "finish"]


async def test_what_is_said_only_when_interrupted_comes_too_late(connected: Connected) -> None:
    async def late(*_: Any) -> Any:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return True

    async with connected(completion=TaskCompletion([late], timeout=0.1, max_iterations=1)) as agent:
        [verdict] = of(await end(await agent.stream("write")), "is-task-complete")
    assert (verdict.passed, verdict.timed_out) == (False, True)


@pytest.mark.parametrize("by", JUDGES)
async def test_whoever_judges_a_run_that_is_cancelled_is_interrupted(connected: Connected, by: str) -> None:
    asked, interrupted = asyncio.Event(), asyncio.Event()

    async def wait(*_: Any) -> Any:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    options: dict[str, Any] = {"completion": TaskCompletion([wait]), "goal": Goal("a car", wait)}
    async with connected(**{by: options.get(by, [wait])}) as agent:
        handle = await agent.stream("write")
        await asyncio.wait_for(asked.wait(), 15)
        await handle.cancel()
        await end(handle)
        assert interrupted.is_set()


async def cancels_itself(*_: Any) -> Any:
    raise asyncio.CancelledError


async def test_who_cancels_itself_could_not_say(connected: Connected) -> None:
    async with connected(input_guardrails=[cancels_itself]) as agent:
        with pytest.raises(RunFailed) as failed:
            await agent.generate("write")
    assert failed.value.failure_code == "guardrail_failed"
    async with connected(completion=TaskCompletion([cancels_itself], max_iterations=1)) as agent:
        [verdict] = of(await end(await agent.stream("write")), "is-task-complete")
    assert [(found.errored, found.reason) for found in verdict.results] == [(True, "The scorer was cancelled.")]
    async with connected(goal=Goal("a car", cancels_itself)) as agent:
        handle = await agent.stream("write")
        assert (await paused(handle)).paused_reason == "The judge was cancelled."
        await handle.cancel()


# Configuration


@pytest.mark.parametrize(
    "make",
    [
        lambda: TaskCompletion([]),
        lambda: TaskCompletion([never, never]),
        lambda: TaskCompletion([lambda ctx, output: True]),  # noqa: ARG005
        lambda: TaskCompletion([never], max_iterations=0),
        lambda: TaskCompletion([never], timeout=0),
        lambda: TaskCompletion([never], strategy="most"),  # type: ignore[arg-type]  # that is what is refused
        lambda: Goal("a car", waiting, max_runs=0),
        lambda: Goal("a car", "nobody"),  # type: ignore[arg-type]  # that is what is refused
        lambda: create_durable_agent(Agent(name="a"), input_guardrails=[raising, raising]),
        lambda: create_durable_agent(Agent(name="a"), guardrail_seconds=0),
        lambda: create_durable_agent(Agent(name="a"), output_guardrails=["none"]),  # type: ignore[list-item]  # same
    ],
)
def test_what_can_not_judge_is_refused_at_once(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError):
        make()


@pytest.mark.parametrize("limits", [{"max_tokens": 1}, {"max_seconds": 0.3}], ids=str)
async def test_a_budget_is_no_way_around_an_output_guardrail(settings: Settings, limits: dict[str, Any]) -> None:
    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        yield "a secret"
        if len(messages) == 1:
            yield {1: DeltaToolCall(name="look", json_args="{}", tool_call_id="c1")}
        else:
            await asyncio.sleep(30)

    async def no_secrets(_: JudgeContext, output: Any) -> Tripwire | None:
        return Tripwire("a secret") if "secret" in output else None

    agent = Agent(FunctionModel(stream_function=respond), name="guarded", tools=[Tool(lambda: "seen", name="look")])
    durable = create_durable_agent(agent, cache=settings, output_guardrails=[no_secrets])
    try:
        handle = await durable.stream("tell", on_budget="end", **limits)
        async with asyncio.timeout(15):
            chunks = [chunk async for chunk in handle.observe()]
        view = await handle.status()
    finally:
        await durable.aclose()
    assert view.status == "completed"
    assert view.output in {None, ""}
    assert "secret" not in str(chunks[-1].to_wire()["payload"]["output"].get("text"))
