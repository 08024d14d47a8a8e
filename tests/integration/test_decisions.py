"""Calls that wait for somebody outside: announced when they are stored, answered once, executed once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import date, datetime
from typing import Annotated, Any, cast

import pytest
from pydantic import BaseModel, Field, Strict, ValidationError, field_validator
from pydantic_ai import Agent, ApprovalRequired, CallDeferred, ModelRetry, RunContext, Tool
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDefinition
from pydantic_ai.toolsets import ApprovalRequiredToolset, ExternalToolset, FunctionToolset
from pydantic_ai.usage import RequestUsage

from durable import RunHandle, resume_data, suspend, tool_context
from durable.decisions import Answer, Decisions
from durable.definition import define
from durable.errors import AlreadyDecided, InvalidRequest, RunEnded, RunFailed, StoreUnavailable, UnknownCall
from durable.execution.policies import ApprovalPolicies
from durable.execution.waits import Waits
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store
from durable.suspension import RunSuspended
from durable.sweeper import Sweeper
from durable.views import PendingCall
from tests.conftest import eventually

Call = tuple[str, dict[str, Any]]


def calling(*calls: Call) -> FunctionModel:
    """A model that calls these tools at once, and then tells what they came to."""

    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        if returns:
            told = {part.tool_call_id: [part.outcome, part.content] for part in returns}
            yield json.dumps(told, sort_keys=True)
            return
        for i, (name, args) in enumerate(calls, 1):
            yield {i: DeltaToolCall(name=name, json_args=json.dumps(args), tool_call_id=f"c{i}")}

    return FunctionModel(stream_function=respond)


async def pending(handle: RunHandle, *calls: str) -> None:
    """Wait until just these calls wait, and the run with them."""

    async def waits() -> bool:
        view = await handle.status()
        return view.status == "suspended" and {call.tool_call_id for call in view.pending or []} == set(calls)

    await eventually(waits, what=f"the calls {calls} to wait")


async def told(handle: RunHandle) -> dict[str, Any]:
    """What the tools came to, as the model was told."""
    async with asyncio.timeout(15):
        found: dict[str, Any] = json.loads((await handle.result()).output)
    return found


async def types(handle: RunHandle) -> list[str]:
    return [chunk.type async for chunk in handle.observe()]


def refund_agent(effects: list[int], **options: Any) -> Agent[Any, str]:
    agent = Agent(calling(("refund", {"amount": 500})), name="support")

    def refund(ctx: RunContext[Any], amount: int) -> str:
        effects.append(amount)
        return f"refunded {amount}"

    agent.tool(refund, **options)
    return agent


async def test_an_approved_call_is_made_once(connected: Any) -> None:
    effects: list[int] = []
    async with connected(refund_agent(effects, requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        assert effects == []
        await handle.approve("c1", actor="alice")
        await handle.approve("c1", actor="bob")
        assert await told(handle) == {"c1": ["success", "refunded 500"]}
        assert effects == [500]
        chunks = [chunk async for chunk in handle.observe()]
    [asked] = [chunk for chunk in chunks if chunk.type == "tool-call-approval"]
    assert asked.payload.args == {"amount": 500}
    assert json.loads(asked.payload.resume_schema)["required"] == ["approved"]
    [decided] = [chunk for chunk in chunks if chunk.type == "tool-call-decided"]
    assert (decided.payload.decision, decided.payload.actor) == ("approve", "alice")
    [result] = [chunk for chunk in chunks if chunk.type == "tool-result"]
    assert (result.payload.approval.approved, result.payload.approval.actor) == (True, "alice")
    assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))


async def test_a_decision_is_in_the_run(connected: Any) -> None:
    async with connected(refund_agent([], requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        view = await handle.status()
        assert view.reason == "decision"
        [call] = view.pending or []
        assert (call.tool_name, call.kind, call.args) == ("refund", "approval", {"amount": 500})
        await handle.decline("c1", reason="too much", actor="alice")
        await told(handle)
        view = await handle.status()
        [decision] = view.decisions or []
        assert (decision.decision, decision.reason, decision.actor) == ("decline", "too much", "alice")
        assert view.pending is None


async def test_a_declined_call_is_not_made_and_the_model_is_told_why(connected: Any) -> None:
    effects: list[int] = []
    async with connected(refund_agent(effects, requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        await handle.decline("c1", reason="too much")
        assert await told(handle) == {"c1": ["denied", "too much"]}
        seen = await types(handle)
    assert effects == []
    assert seen.count("tool-output-denied") == 1
    assert "tool-error" not in seen
    assert "tool-result" not in seen


async def test_edited_arguments_are_used_and_refused_ones_leave_the_call_pending(connected: Any) -> None:
    effects: list[int] = []
    async with connected(refund_agent(effects, requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        for bad in ({"amount": "much"}, {}, {"amount": 1, "to": "me"}):
            with pytest.raises(InvalidRequest):
                await handle.approve("c1", args=bad)
        await pending(handle, "c1")
        await handle.approve("c1", args={"amount": 99})
        assert await told(handle) == {"c1": ["success", "refunded 99"]}
    assert effects == [99]


async def test_another_answer_is_refused_and_tells_what_was_decided(connected: Any) -> None:
    async with connected(refund_agent([], requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        await handle.approve("c1", actor="alice")
        with pytest.raises(AlreadyDecided) as refused:
            await handle.decline("c1", actor="bob")
        decision = refused.value.details["decision"]
        assert (decision["decision"], decision["actor"]) == ("approve", "alice")
        assert decision["at"]
        await told(handle)
        await handle.approve("c1")
        with pytest.raises(AlreadyDecided):
            await handle.decline("c1")


async def test_of_a_hundred_that_answer_at_once_one_decides(connected: Any) -> None:
    effects: list[int] = []
    async with connected(refund_agent(effects, requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        answers = [
            handle.approve("c1", actor=str(i)) if i % 2 else handle.decline("c1", actor=str(i)) for i in range(100)
        ]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert len(refused) == 50
        assert all(isinstance(outcome, AlreadyDecided) for outcome in refused)
        result = await told(handle)
        seen = await types(handle)
    assert len(effects) == (1 if result["c1"][0] == "success" else 0)
    assert seen.count("tool-call-decided") + seen.count("tool-output-denied") == 1


async def test_an_answer_to_a_run_that_has_ended_is_refused(connected: Any) -> None:
    async with connected(refund_agent([], requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        await handle.cancel()
        with pytest.raises(RunEnded):
            await handle.approve("c1")
        with pytest.raises(UnknownCall):
            await handle.approve("c2")
        assert (await handle.status()).pending is None


async def test_several_calls_are_answered_one_at_a_time_in_any_order(connected: Any) -> None:
    effects: list[str] = []
    agent = Agent(
        calling(("send", {"to": "a"}), ("send", {"to": "b"}), ("look", {}), ("send", {"to": "c"})), name="mail"
    )

    @agent.tool_plain(requires_approval=True)
    def send(to: str) -> str:
        effects.append(to)
        return to

    @agent.tool_plain
    def look() -> str:
        effects.append("look")
        return "seen"

    async with connected(agent) as durable:
        handle = await durable.stream("send them")
        await pending(handle, "c1", "c2", "c4")
        assert effects == ["look"]
        await handle.approve("c4")
        await pending(handle, "c1", "c2")
        assert effects == ["look", "c"]
        await handle.decline("c1", reason="no")
        await pending(handle, "c2")
        await handle.approve("c2")
        assert await told(handle) == {
            "c1": ["denied", "no"],
            "c2": ["success", "b"],
            "c3": ["success", "seen"],
            "c4": ["success", "c"],
        }
        seen = await types(handle)
    assert effects == ["look", "c", "b"]
    assert seen.count("tool-call") == 4
    assert seen.count("tool-call-approval") == 3
    assert seen.count("tool-result") == 3
    assert seen.count("step-start") == 2


async def test_a_call_is_announced_and_made_while_a_slower_one_is_still_busy(connected: Any) -> None:
    released = asyncio.Event()
    sent = asyncio.Event()
    agent = Agent(calling(("slow", {}), ("send", {})), name="mail")

    @agent.tool_plain
    async def slow() -> str:
        await released.wait()
        return "slow"

    @agent.tool_plain(requires_approval=True)
    async def send() -> str:
        sent.set()
        return "sent"

    async with connected(agent) as durable:
        handle = await durable.stream("go")

        async def announced() -> bool:
            return [call.tool_call_id for call in (await handle.status()).pending or []] == ["c2"]

        await eventually(announced, what="the call to be announced")
        assert (await handle.status()).status == "running"
        await handle.approve("c2")
        async with asyncio.timeout(10):
            await sent.wait()
        released.set()
        assert await told(handle) == {"c1": ["success", "slow"], "c2": ["success", "sent"]}


class Choice(BaseModel):
    """What a person is asked for."""

    colour: str


async def test_a_suspended_tool_is_called_again_with_the_data(connected: Any) -> None:
    calls: list[Any] = []
    keys: list[str] = []
    agent = Agent(calling(("paint", {"what": "door"})), name="painter")

    @agent.tool
    async def paint(ctx: RunContext[Any], what: str) -> str:
        keys.append(tool_context(ctx).idempotency_key)
        choice = resume_data(ctx, Choice)
        calls.append(choice)
        if choice is None:
            raise suspend({"question": f"which colour for the {what}?"}, resume_schema=Choice)
        return f"{what}: {choice.colour}"

    async with connected(agent) as durable:
        handle = await durable.stream("paint")
        await pending(handle, "c1")
        [call] = (await handle.status()).pending or []
        assert call.kind == "resume"
        assert call.payload == {"question": "which colour for the door?"}
        for bad in ({"colour": 3}, {}, None, "blue"):
            with pytest.raises(InvalidRequest):
                await handle.resume("c1", bad)
        with pytest.raises(InvalidRequest):
            await handle.approve("c1")
        await handle.resume("c1", {"colour": "blue"}, actor="alice")
        assert await told(handle) == {"c1": ["success", "door: blue"]}
        seen = await types(handle)
    assert calls == [None, Choice(colour="blue")]
    assert len(set(keys)) == 1
    assert seen.count("tool-call-suspended") == 1


async def test_a_tool_may_ask_again_and_again(connected: Any) -> None:
    agent = Agent(calling(("guess", {})), name="guesser")

    @agent.tool(requires_approval=True)
    async def guess(ctx: RunContext[Any]) -> str:
        found = resume_data(ctx)
        if found != 3:
            raise suspend({"not": found})
        return "three"

    async with connected(agent) as durable:
        handle = await durable.stream("guess")
        await pending(handle, "c1")
        await handle.approve("c1")
        for value, before in ((1, None), (2, 1), (3, 2)):

            async def asked(expected: Any = before) -> bool:
                view = await handle.status()
                calls = view.pending or []
                return view.status == "suspended" and [call.payload for call in calls] == [{"not": expected}]

            await eventually(asked, what=f"the question after {before}")
            await handle.resume("c1", value)
        assert await told(handle) == {"c1": ["success", "three"]}


async def test_external_calls_end_with_the_result_that_is_delivered(connected: Any) -> None:
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    definition = ToolDefinition(name="open_file", parameters_json_schema=schema)
    own = FunctionToolset[Any]()

    @own.tool_plain
    def later() -> str:
        raise CallDeferred(metadata={"job": 7})

    agent = Agent(
        calling(("open_file", {"path": "/x"}), ("later", {}), ("later", {})),
        name="editor",
        toolsets=[ExternalToolset([definition]), own],
    )
    async with connected(agent) as durable:
        handle = await durable.stream("open")
        await pending(handle, "c1", "c2", "c3")
        kinds = {call.tool_call_id: (call.kind, call.payload) for call in (await handle.status()).pending or []}
        assert kinds == {"c1": ("external", None), "c2": ("external", {"job": 7}), "c3": ("external", {"job": 7})}
        await handle.resume("c1", {"content": "hello"})
        await handle.resume("c2", None)
        await handle.decline("c3", reason="the job was lost")
        result = await told(handle)
    assert result["c1"] == ["success", {"content": "hello"}]
    assert result["c2"] == ["success", None]
    assert result["c3"] == ["denied", "the job was lost"]


async def test_what_pydantic_ai_has_for_approvals_works_unchanged(connected: Any) -> None:
    wrapped = FunctionToolset[Any]()

    @wrapped.tool_plain
    def wipe() -> str:
        return "wiped"

    agent = Agent(
        calling(("wipe", {}), ("sometimes", {"n": 1}), ("sometimes", {"n": 9})),
        name="cleaner",
        output_type=[str, DeferredToolRequests],
        toolsets=[ApprovalRequiredToolset(wrapped)],
    )

    @agent.tool
    def sometimes(ctx: RunContext[Any], n: int) -> int:
        if n > 5 and not ctx.tool_call_approved:
            raise ApprovalRequired(metadata={"why": "large"})
        return n

    async with connected(agent) as durable:
        handle = await durable.stream("clean")
        await pending(handle, "c1", "c3")
        payloads = {call.tool_call_id: call.payload for call in (await handle.status()).pending or []}
        assert payloads == {"c1": None, "c3": {"why": "large"}}
        await handle.approve("c3")
        await handle.approve("c1")
        assert await told(handle) == {"c1": ["success", "wiped"], "c2": ["success", 1], "c3": ["success", 9]}


async def test_the_agents_own_handlers_decide_first(connected: Any) -> None:
    effects: list[str] = []

    def handler(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        approvals = {call.tool_call_id: True for call in requests.approvals if call.args_as_dict()["to"] == "a"}
        return requests.build_results(approvals=approvals)

    agent = Agent(
        calling(("send", {"to": "a"}), ("send", {"to": "b"})),
        name="mail",
        capabilities=[HandleDeferredToolCalls(handler)],
    )

    @agent.tool_plain(requires_approval=True)
    def send(to: str) -> str:
        effects.append(to)
        return to

    async with connected(agent) as durable:
        handle = await durable.stream("send")
        await pending(handle, "c2")
        await handle.approve("c2")
        assert await told(handle) == {"c1": ["success", "a"], "c2": ["success", "b"]}
    assert effects == ["a", "b"]


def _to_a(_ctx: RunContext[Any], _tool: ToolDefinition, args: dict[str, Any]) -> bool:
    return bool(args["to"] == "a")


def _to_b(_ctx: RunContext[Any], _tool: ToolDefinition, args: dict[str, Any]) -> bool:
    return bool(args["to"] == "b")


async def _never(*_: Any) -> bool:
    raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("agents", "runs", "waiting"),
    [
        (True, None, ("c1", "c2")),
        (False, True, ("c1", "c2")),
        (_to_b, None, ("c2",)),
        (_to_b, False, ("c2",)),
        (False, "to-a", ("c1",)),
        (_never, None, ("c1", "c2")),
    ],
    ids=["agent", "run", "agent's function", "a run can't do with less", "named policy", "one that fails"],
)
async def test_a_policy_tells_which_calls_have_to_be_approved(
    connected: Any, agents: Any, runs: Any, waiting: tuple[str, ...]
) -> None:
    agent = Agent(calling(("send", {"to": "a"}), ("send", {"to": "b"})), name="mail")

    @agent.tool_plain
    def send(to: str) -> str:
        return to

    policies = {"to-a": _to_a}
    async with connected(agent, require_tool_approval=agents, approval_policies=policies) as durable:
        with pytest.raises(InvalidRequest):
            await durable.stream("send", require_tool_approval="unheard-of")
        handle = await durable.stream("send", require_tool_approval=runs)
        await pending(handle, *waiting)
        for call in waiting:
            await handle.approve(call)
        assert await told(handle) == {"c1": ["success", "a"], "c2": ["success", "b"]}


@pytest.mark.parametrize("what", ["decline", "approve", "fail", "cancel"])
async def test_a_call_that_nobody_answers_in_time_is_answered_by_its_deadline(connected: Any, what: str) -> None:
    effects: list[int] = []
    options = {"durable": {"expires_in": 0.2, "on_expiry": what}}
    async with connected(refund_agent(effects, requires_approval=True, metadata=options)) as agent:
        handle = await agent.stream("refund me")

        async def ended() -> bool:
            return bool((await handle.status()).ended)

        await eventually(ended, what="the deadline")
        view = await handle.status()
        seen = await types(handle)
        match what:
            case "decline":
                assert await told(handle) == {"c1": ["denied", "Nobody answered in time."]}
            case "approve":
                assert await told(handle) == {"c1": ["success", "refunded 500"]}
            case "fail":
                with pytest.raises(RunFailed) as failed:
                    await handle.result()
                assert failed.value.failure_code == "decision_expired"
            case _:
                assert view.status == "cancelled"
                assert "abort" in seen
        if what != "cancel":
            [decision] = view.decisions or []
            assert (decision.decision, decision.actor) == (what, "deadline")
        with pytest.raises((AlreadyDecided, RunEnded)):
            await handle.approve("c1", args={"amount": 1})
    assert effects == ([500] if what == "approve" else [])


async def test_a_run_that_waits_is_taken_over_by_another_process_that_forgot_all(
    connected: Any, settings: Settings
) -> None:
    effects: list[int] = []
    async with connected(refund_agent(effects, requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        run_id = handle.run_id
    async with connected(refund_agent(effects, requires_approval=True)) as agent:
        handle = await agent.handle(run_id)
        await handle.approve("c1")
        assert await told(handle) == {"c1": ["success", "refunded 500"]}
    assert effects == [500]


async def test_an_answer_that_comes_between_two_looks_is_used_all_the_same(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call has given up waiting, and the agent's loop has not asked yet."""
    answer, seen = Waits.answer, set[str]()

    async def late(self: Waits, call_id: str, round_: int) -> Answer | None:
        await answer(self, call_id, round_)
        if call_id in seen:
            return self.known(call_id, round_)
        seen.add(call_id)
        await handle.resume("c1", "data", actor="fast")
        return None

    monkeypatch.setattr(Waits, "answer", late)
    agent = Agent(calling(("ask", {})), name="asker")
    found: list[Any] = []

    @agent.tool
    def ask(ctx: RunContext[Any]) -> str:
        ctx.usage.incr(RequestUsage(input_tokens=1_000_000))
        found.append(resume_data(ctx))
        if len(found) < 3:
            raise suspend({"round": len(found)})
        return "done"

    async with connected(agent) as durable:
        handle = await durable.handle("fast-run")
        await durable.stream("ask", run_id="fast-run")

        async def asked() -> bool:
            view = await handle.status()
            return view.status == "suspended" and [call.payload for call in view.pending or []] == [{"round": 2}]

        await eventually(asked, what="the second question")
        usage = (await handle.status()).usage
        assert usage is not None
        assert 2_000_000 < usage.input_tokens < 2_001_000, "what a call used before it was suspended counts once"
        await handle.resume("c1", "more")
        assert await told(handle) == {"c1": ["success", "done"]}
    assert found == [None, "data", "more"]


async def test_an_answer_that_is_known_too_late_to_be_used_wakes_the_run(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls were found to wait. The answer is heard of before the run is suspended."""
    resolve, late = Waits.resolve, list[str]()

    async def resolve_early(self: Waits, *asked: Any) -> DeferredToolResults:
        try:
            return await resolve(self, *asked)
        except RunSuspended:
            if not late:
                late.append("c1")
                await handle.approve("c1")
                await self.look()
            raise

    monkeypatch.setattr(Waits, "resolve", resolve_early)
    async with connected(refund_agent([], requires_approval=True)) as agent:
        handle = await agent.handle("early-run")
        await agent.stream("refund me", run_id="early-run")
        assert await told(handle) == {"c1": ["success", "refunded 500"]}
    assert late == ["c1"]


async def test_a_run_waits_all_the_same_when_redis_does_not_tell_the_answers(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is away just when the answers are looked up: no fault of the run's."""
    asked: list[str] = []

    async def away(_: Decisions, run_id: str) -> Any:
        asked.append(run_id)
        raise StoreUnavailable

    monkeypatch.setattr(Decisions, "answers", away)
    async with connected(refund_agent([], requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        assert asked
        await handle.approve("c1")
        assert await told(handle) == {"c1": ["success", "refunded 500"]}


@pytest.mark.parametrize("kind", ["approval", "external"])
async def test_a_call_that_is_declined_between_two_looks_ends_once(
    connected: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    answer, late = Waits.answer, list[str]()

    async def declined(self: Waits, call_id: str, round_: int) -> Answer | None:
        found = await answer(self, call_id, round_)
        if found is None and not late:
            late.append(call_id)
            await handle.decline("c1", reason="no")
            return None
        return found

    monkeypatch.setattr(Waits, "answer", declined)
    agent = Agent(calling(("ask", {})), name="asker")

    @agent.tool_plain
    def ask() -> str:
        raise CallDeferred if kind == "external" else ApprovalRequired

    async with connected(agent) as durable:
        handle = await durable.handle("declined-run")
        await durable.stream("ask", run_id="declined-run")
        [outcome] = (await told(handle)).values()
        seen = await types(handle)
    assert outcome == ["denied", "no"], "whenever it is heard of"
    assert late == ["c1"]
    assert [kind for kind in seen if kind in {"tool-output-denied", "tool-error", "tool-result"}] == [
        "tool-output-denied"
    ]


async def test_an_answer_to_a_question_that_was_answered_meanwhile_is_not_one_to_the_next(
    connected: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(calling(("confirm", {})), name="asker")
    said: list[Any] = []

    @agent.tool
    def confirm(ctx: RunContext[Any]) -> str:
        said.append(resume_data(ctx))
        if len(said) < 3:
            raise suspend({"question": len(said)})
        return "done"

    store = Store.of(settings)
    decisions = Decisions(store, Runs(store, settings))
    apply = Decisions._apply

    async def overtaken(self: Decisions, run_id: str, call: Any, answer: Answer, *, due: bool) -> Any:
        if self is decisions and len(said) == 1:
            await handle.resume("c1", "first")
            await eventually(asked_again, what="the second question")
        return await apply(self, run_id, call, answer, due=due)

    async def asked_again() -> bool:
        return [call.payload for call in (await handle.status()).pending or []] == [{"question": 2}]

    monkeypatch.setattr(Decisions, "_apply", overtaken)
    try:
        async with connected(agent) as durable:
            handle = await durable.stream("ask")
            await pending(handle, "c1")
            with pytest.raises(AlreadyDecided):
                await decisions.decide(handle.run_id, "c1", Answer(kind="resume", data="late"))
            assert await asked_again()
            await handle.resume("c1", "second")
            assert await told(handle) == {"c1": ["success", "done"]}
    finally:
        await store.aclose()
    assert said == [None, "first", "second"]


async def test_an_answer_that_cannot_be_read_ends_the_run(connected: Any, store: Store) -> None:
    async with connected(refund_agent([], requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        await store.redis.hset(store.keys.ledger(handle.run_id), "1!7:c9", "{")
        await handle.approve("c1")
        with pytest.raises(RunFailed) as failed:
            await handle.result()
    assert failed.value.failure_code == "run_unreadable"


async def test_a_call_that_cannot_be_read_keeps_no_other_from_its_deadline(connected: Any, store: Store) -> None:
    options = {"durable": {"expires_in": 0.3}}
    async with connected(refund_agent([], requires_approval=True)) as agent:
        broken = await agent.stream("refund me")
        await pending(broken, "c1")
    keys = store.keys
    await store.redis.hset(keys.calls(broken.run_id), "c:c1", '{"kind":"of tomorrow"}')
    await store.redis.zadd(keys.deadlines, {f"{broken.run_id}:c1": 1})
    async with connected(refund_agent([], requires_approval=True, metadata=options)) as agent:
        handle = await agent.stream("refund me")
        assert await told(handle) == {"c1": ["denied", "Nobody answered in time."]}
    assert await store.redis.zscore(keys.deadlines, f"{broken.run_id}:c1") == 1, "it is left to who can read it"


async def test_a_policy_that_the_agent_has_no_more_asks_about_every_call() -> None:
    definition = define(refund_agent([]), "durable")
    policies = ApprovalPolicies(definition, asked="gone")
    tool = ToolDefinition(name="refund")
    assert await policies.apply(cast("Any", None), tool, {})


async def test_a_tool_that_is_suspended_with_more_than_may_be_stored_fails_its_run(
    connected: Any, settings: Settings
) -> None:
    agent = Agent(calling(("ask", {})), name="asker")

    @agent.tool_plain
    def ask() -> str:
        raise suspend("x" * settings.max_tool_result_bytes)

    async with connected(agent) as durable:
        with pytest.raises(RunFailed) as failed:
            await durable.generate("ask")
    assert failed.value.failure_code == "tool_result_invalid"


async def test_a_deadline_that_cancels_the_run_is_too_late_after_an_answer(
    connected: Any, store: Store, settings: Settings
) -> None:
    """The sweeper has read that the deadline passed, and somebody answers before it acts."""
    entered, let_go = asyncio.Event(), asyncio.Event()
    agent = Agent(calling(("pay", {})), name="payer")

    @agent.tool_plain(requires_approval=True, metadata={"durable": {"expires_in": 3600, "on_expiry": "cancel"}})
    async def pay() -> str:
        entered.set()
        await let_go.wait()
        return "paid"

    async def nobody(_: Any) -> None:
        raise AssertionError("there is nobody to wake")

    async with connected(agent) as durable:
        handle = await durable.stream("pay")
        await pending(handle, "c1")
        sweeper = Sweeper(store, settings, nobody, "late")
        assert await sweeper._expire(handle.run_id, "c1", "1.0", "cancel") == 0, "of a question before this one"
        await pending(handle, "c1")
        await handle.approve("c1", actor="ada")
        async with asyncio.timeout(15):
            await entered.wait()
        assert await sweeper._expire(handle.run_id, "c1", "1.0", "cancel") == 0
        let_go.set()
        assert await told(handle) == {"c1": ["success", "paid"]}
        [decision] = (await handle.status()).decisions or []
        assert (decision.decision, decision.actor) == ("approve", "ada")


async def test_an_answer_wakes_the_run_though_whoever_took_it_dies_at_once(
    connected: Any, store: Store, settings: Settings
) -> None:
    async with connected(refund_agent([], requires_approval=True)) as agent:
        handle = await agent.stream("refund me")
        await pending(handle, "c1")
        # Nobody is told of it but the store.
        record = await Decisions(store, Runs(store, settings)).decide(handle.run_id, "c1", Answer(kind="approve"))
        assert record is not None
        assert await told(handle) == {"c1": ["success", "refunded 500"]}


class Visit(BaseModel):
    """Something with formats."""

    at: datetime
    guest: Annotated[str, Field(json_schema_extra={"format": "email"})]


async def test_an_answer_with_a_bad_format_leaves_the_call_pending(connected: Any) -> None:
    agent = Agent(calling(("plan", {})), name="planner")

    @agent.tool
    def plan(ctx: RunContext[Any]) -> str:
        visit = resume_data(ctx, Visit)
        if visit is None:
            raise suspend(resume_schema=Visit)
        return f"{visit.guest} at {visit.at:%H:%M}"

    async with connected(agent) as durable:
        handle = await durable.stream("plan")
        await pending(handle, "c1")
        good = {"at": "2026-11-24T10:30:00Z", "guest": "ada@example.org"}
        for wrong in ({"at": "secret"}, {"at": "2026-11-24T30:00:00Z"}, {"guest": "secret"}):
            with pytest.raises(InvalidRequest) as refused:
                await handle.resume("c1", good | wrong)
            [issue] = refused.value.details["issues"]
            assert issue == {"field": f"data.{next(iter(wrong))}", "message": "does not fit 'format'"}
        await pending(handle, "c1")
        await handle.resume("c1", good)
        assert await told(handle) == {"c1": ["success", "ada@example.org at 10:30"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "string", "pattern": "("},
        {"$ref": "#/$defs/gone"},
        {"$ref": "http://127.0.0.1:9/elsewhere.json"},
    ],
    ids=str,
)
async def test_a_schema_that_cannot_be_used_refuses_answers_and_leaves_the_call_to_be_declined(
    connected: Any, schema: dict[str, Any]
) -> None:
    arguments = {"type": "object", "properties": {"to": schema}}
    sent: list[str] = []

    def send(to: str) -> str:
        sent.append(to)
        return to

    tool = Tool.from_schema(send, "send", "Send.", arguments)
    tool.requires_approval = True
    agent = Agent(calling(("send", {"to": "a"}), ("send", {"to": "b"})), name="mail", tools=[tool])
    async with connected(agent) as durable:
        handle = await durable.stream("send")
        await pending(handle, "c1", "c2")
        with pytest.raises(InvalidRequest):
            await handle.approve("c1", args={"to": "x"})
        await pending(handle, "c1", "c2")
        await handle.decline("c1", reason="no")
        await handle.approve("c2")
        assert await told(handle) == {"c1": ["denied", "no"], "c2": ["success", "b"]}
    assert sent == ["b"]


async def test_a_tool_that_asks_with_a_schema_that_cannot_be_used_fails_its_run(connected: Any) -> None:
    agent = Agent(calling(("ask", {})), name="asker")

    @agent.tool_plain
    def ask() -> str:
        raise suspend(resume_schema={"type": "nonsense"})

    async with connected(agent) as durable:
        handle = await durable.stream("ask")
        with pytest.raises(RunFailed) as failed:
            await handle.result()
        assert (await handle.status()).pending is None
    assert failed.value.failure_code == "configuration_error"


class Even(BaseModel):
    """Data with more to it than its schema says."""

    n: int
    why: str = ""

    @field_validator("n")
    @classmethod
    def even(cls, n: int) -> int:
        if n % 2:
            raise ValueError(f"secret {n}")
        return n


async def asked_again(handle: RunHandle, call: str, *fields: str) -> PendingCall:
    """Wait until a call waits once more, because of these fields."""

    async def waits() -> bool:
        view = await handle.status()
        wrong = [[issue.field for issue in call.issues or []] for call in view.pending or []]
        return view.status == "suspended" and wrong == [list(fields)]

    await eventually(waits, what=f"the call {call} to be asked about again")
    [found] = (await handle.status()).pending or []
    assert found.tool_call_id == call
    return found


def transfer_agent(effects: list[Any]) -> Agent[Any, str]:
    """A tool that looks at its arguments itself: by a type with a validator, and by a function."""
    agent: Agent[Any, str] = Agent(calling(("transfer", {"amount": {"n": 2}, "on": "2026-11-24"})), name="bank")

    def check(ctx: RunContext[Any], amount: Even, on: date) -> None:
        assert ctx.tool_call_approved or amount.n < 100
        if amount.n > 100:
            raise ModelRetry(f"secret {amount.n}")

    def transfer(ctx: RunContext[Any], amount: Even, on: Annotated[date, Strict()]) -> str:
        effects.append((amount.n, on))
        return f"{amount.n} on {on:%d.%m.}"

    agent.tool(requires_approval=True, args_validator=check)(transfer)
    return agent


async def test_edited_arguments_that_the_tool_itself_refuses_are_asked_about_again(connected: Any) -> None:
    effects: list[Any] = []
    async with connected(transfer_agent(effects)) as agent:
        handle = await agent.stream("transfer")
        await pending(handle, "c1")
        await handle.approve("c1", args={"amount": {"n": 3}, "on": "2026-12-01"}, actor="ada")
        asked = await asked_again(handle, "c1", "args.amount.n")
        assert (asked.kind, asked.args) == ("approval", {"amount": {"n": 2}, "on": "2026-11-24"})
        assert [issue.message for issue in asked.issues or []] == ["does not fit 'value_error'"]
        await handle.approve("c1", args={"amount": {"n": 200}, "on": "2026-12-01"}, actor="ada")
        await asked_again(handle, "c1", "args")
        assert effects == []
        await handle.approve("c1", args={"amount": {"n": 4}, "on": "2026-12-01"}, actor="bob")
        assert await told(handle) == {"c1": ["success", "4 on 01.12."]}
        chunks = [chunk async for chunk in handle.observe()]
    assert effects == [(4, date(2026, 12, 1))]
    waits = [chunk for chunk in chunks if chunk.type in {"tool-call-approval", "tool-call-decided"}]
    assert [chunk.type for chunk in waits] == ["tool-call-approval", "tool-call-decided"] * 3
    assert [chunk.payload.issues and chunk.payload.issues[0].field for chunk in waits[::2]] == [
        None,
        "args.amount.n",
        "args",
    ]
    [result] = [chunk for chunk in chunks if chunk.type == "tool-result"]
    assert result.payload.approval.actor == "bob"
    assert "secret" not in "".join(chunk.model_dump_json() for chunk in chunks)


async def test_a_call_whose_correction_was_refused_is_approved_as_it_was_or_declined(connected: Any) -> None:
    effects: list[Any] = []
    for answer in ("approve", "decline"):
        async with connected(transfer_agent(effects)) as agent:
            handle = await agent.stream("transfer")
            await pending(handle, "c1")
            await handle.approve("c1", args={"amount": {"n": 3}, "on": "2026-12-01"})
            await asked_again(handle, "c1", "args.amount.n")
            await getattr(handle, answer)("c1")
            outcomes = await told(handle)
        assert outcomes["c1"][0] == ("success" if answer == "approve" else "denied")
    assert effects == [(2, date(2026, 11, 24))]


async def test_a_correction_that_is_known_only_when_all_calls_are_looked_at_is_looked_at_as_well(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pydantic AI makes the call then, and would tell the model of arguments that are not valid."""
    answer, late = Waits.answer, list[str]()

    async def corrected(self: Waits, call_id: str, round_: int) -> Answer | None:
        found = await answer(self, call_id, round_)
        if found is None and not late:
            late.append(call_id)
            await handle.approve("c1", args={"amount": {"n": 3}, "on": "2026-12-01"})
            return None
        return found

    monkeypatch.setattr(Waits, "answer", corrected)
    effects: list[Any] = []
    async with connected(transfer_agent(effects)) as agent:
        handle = await agent.handle("late-run")
        await agent.stream("transfer", run_id="late-run")
        await asked_again(handle, "c1", "args.amount.n")
        await handle.approve("c1", args={"amount": {"n": 6}, "on": "2026-12-01"})
        assert await told(handle) == {"c1": ["success", "6 on 01.12."]}
    assert effects == [(6, date(2026, 12, 1))]


async def test_a_validator_may_have_somebody_asked_about_edited_arguments(connected: Any) -> None:
    agent: Agent[Any, str] = Agent(calling(("pay", {"amount": 5})), name="bank")

    async def check(_: RunContext[Any], amount: int) -> None:
        if amount > 50:
            raise ApprovalRequired(metadata={"why": "large"})

    @agent.tool(requires_approval=True, args_validator=check)
    def pay(_: RunContext[Any], amount: int) -> int:
        return amount

    async def asked() -> bool:
        view = await handle.status()
        return view.status == "suspended" and [call.payload for call in view.pending or []] == [{"why": "large"}]

    async with connected(agent) as durable:
        handle = await durable.stream("pay")
        await pending(handle, "c1")
        await handle.approve("c1", args={"amount": 500})
        await eventually(asked, what="the validator to ask")
        await handle.approve("c1", args={"amount": 50})
        assert await told(handle) == {"c1": ["success", 50]}


class Broken(BaseModel):
    """Data that can't be looked at."""

    n: int

    @field_validator("n")
    @classmethod
    def broken(cls, _: int) -> int:
        raise RuntimeError("secret")


async def test_a_type_that_fails_when_data_is_looked_at_is_a_failure_of_its_tool(connected: Any) -> None:
    agent = Agent(calling(("count", {})), name="counter")

    @agent.tool
    def count(ctx: RunContext[Any]) -> int:
        found = resume_data(ctx, Broken)
        if found is None:
            raise suspend(resume_schema=Broken)
        return found.n

    async with connected(agent) as durable:
        handle = await durable.stream("count")
        await pending(handle, "c1")
        await handle.resume("c1", {"n": 1})
        with pytest.raises(RunFailed) as failed:
            await handle.result()
    assert failed.value.failure_code == "tool_failed"


async def test_arguments_of_the_model_that_the_tool_refuses_are_its_own_affair(connected: Any) -> None:
    agent = Agent(calling(("pay", {"amount": {"n": 3}})), name="bank")

    @agent.tool_plain(requires_approval=True, retries=0)
    def pay(amount: Even) -> int:
        return amount.n

    async with connected(agent) as durable:
        handle = await durable.stream("pay")
        with pytest.raises(RunFailed):
            await handle.result()
        assert "tool-call-approval" not in await types(handle)


async def test_a_correction_of_a_call_that_was_torn_is_used_again(connected: Any) -> None:
    """Whoever takes the run over looks at all answers once more: none of them is asked about again."""
    effects: list[Any] = []
    async with connected(transfer_agent(effects)) as agent:
        handle = await agent.stream("transfer")
        await pending(handle, "c1")
        run_id = handle.run_id
        await handle.approve("c1", args={"amount": {"n": 3}, "on": "2026-12-01"})
        await asked_again(handle, "c1", "args.amount.n")
    async with connected(transfer_agent(effects)) as agent:
        handle = await agent.handle(run_id)
        await handle.approve("c1", args={"amount": {"n": 4}, "on": "2026-12-01"})
        assert await told(handle) == {"c1": ["success", "4 on 01.12."]}
        assert (await types(handle)).count("tool-call-approval") == 2
    assert effects == [(4, date(2026, 12, 1))]


@pytest.mark.parametrize("known", [True, False], ids=["by the type that it named", "by the type that it reads it as"])
async def test_data_that_the_type_refuses_is_asked_for_again(connected: Any, known: bool) -> None:
    seen: list[Any] = []
    schema = Even if known else Even.model_json_schema()
    agent = Agent(calling(("count", {})), name="counter")

    @agent.tool
    def count(ctx: RunContext[Any]) -> int:
        call = tool_context(ctx)
        seen.append(call.resume if call.resumed else "asked")
        found = resume_data(ctx, Even)
        if found is None:
            raise suspend({"how": "many"}, resume_schema=schema)
        return found.n

    async with connected(agent) as durable:
        handle = await durable.stream("count")
        await pending(handle, "c1")
        for wrong in (3, 5):
            await handle.resume("c1", {"n": wrong, "why": str(wrong)}, actor="ada")
            asked = await asked_again(handle, "c1", "data.n")
            assert asked.payload == {"how": "many"}
            assert (asked.resume_schema or {})["title"] == "Even"
        await handle.resume("c1", {"n": 4})
        assert await told(handle) == {"c1": ["success", 4]}
        chunks = [chunk async for chunk in handle.observe()]
    assert [bool(chunk.payload.issues) for chunk in chunks if chunk.type == "tool-call-suspended"] == [
        False,
        True,
        True,
    ]
    wrong_data = [{"n": 3, "why": "3"}, {"n": 5, "why": "5"}]
    assert seen == ["asked", *([] if known else wrong_data), {"n": 4}]
    assert "secret" not in "".join(chunk.model_dump_json() for chunk in chunks)


async def test_a_tool_may_deal_with_data_of_the_wrong_type_itself(connected: Any) -> None:
    agent = Agent(calling(("count", {})), name="counter")

    @agent.tool
    def count(ctx: RunContext[Any]) -> str:
        try:
            found = resume_data(ctx, Even)
        except ValidationError:
            return "odd"
        if found is None:
            raise suspend()
        return "even"

    async with connected(agent) as durable:
        handle = await durable.stream("count")
        await pending(handle, "c1")
        await handle.resume("c1", {"n": 3})
        assert await told(handle) == {"c1": ["success", "odd"]}


async def test_a_validation_that_has_nothing_to_do_with_the_data_is_nobodys_to_answer(connected: Any) -> None:
    agent = Agent(calling(("count", {})), name="counter")

    @agent.tool
    def count(ctx: RunContext[Any]) -> int:
        if resume_data(ctx) is None:
            raise suspend()
        return Even(n=3).n

    async with connected(agent) as durable:
        handle = await durable.stream("count")
        await pending(handle, "c1")
        await handle.resume("c1", 1)
        await handle.result()
        seen = await types(handle)
    assert (seen.count("tool-call-suspended"), seen.count("tool-error")) == (1, 1)
