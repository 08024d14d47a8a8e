"""What the agent's own code decides of calls that wait: it ends their questions, and no tool is executed once more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai import Agent, ApprovalRequired, CallDeferred, ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability, HandleDeferredToolCalls
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ToolReturn
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDefinition, ToolDenied
from pydantic_ai.toolsets import ExternalToolset
from pydantic_ai.usage import RequestUsage

from durable import RunHandle, resume_data, suspend, tool_context
from durable.decisions import HANDLER, Answer, Decisions
from durable.errors import InvalidRequest, LeaseLost, RunFailed, StoreUnavailable
from durable.execution.attempt import HandOver
from durable.execution.waits import Waits
from durable.leases import suspend as give_up
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store
from durable.writer import Note, Waiting
from tests.conftest import eventually
from tests.integration.test_decisions import Call, calling, pending, told, types
from tests.workbench import Workbench

OPEN = ToolDefinition(name="open_file", parameters_json_schema={"type": "object"})
ASKED = {"tool-call-approval", "tool-call-suspended"}
ANSWERED = {"tool-call-decided", "tool-output-denied"}


class Desk:
    """A handler that leaves a call to people when it is asked for the first time, and decides it from then on.

    Args:
        decide: What it then says of the call `c1`.
    """

    def __init__(self, decide: Callable[[], Any]) -> None:
        self._decide = decide
        self.asked: list[set[str]] = []

    async def __call__(self, _: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        approvals = {call.tool_call_id for call in requests.approvals}
        calls = {call.tool_call_id for call in requests.calls}
        self.asked.append(approvals | calls)
        if len(self.asked) == 1:
            return requests.build_results()
        said = self._decide()
        said = await said if asyncio.iscoroutine(said) else said
        return requests.build_results(
            approvals={"c1": said} if "c1" in approvals else {}, calls={"c1": said} if "c1" in calls else {}
        )


def office(desk: Desk, made: list[Any], *more: tuple[str, dict[str, Any]]) -> Agent[Any, str]:
    """An agent with two tools that wait for an approval, one of which asks, and one that is executed elsewhere."""
    agent: Agent[Any, str] = Agent(
        calling(*more, ("send", {"to": "b"})),
        name="office",
        capabilities=[HandleDeferredToolCalls(desk)],
        toolsets=[ExternalToolset([OPEN])],
    )

    @agent.tool_plain(requires_approval=True)
    def send(to: str) -> str:
        made.append(to)
        return to

    @agent.tool(requires_approval=True)
    def ask(ctx: RunContext[Any], to: str) -> str:
        made.append(("ask", to))
        found = resume_data(ctx)
        if found is None:
            raise suspend({"to": to})
        return f"{to}: {found}"

    return agent


async def waits_of(handle: RunHandle) -> list[tuple[str, str, str | None]]:
    """Each chunk about a call that waits: its type, the call, and who has answered."""
    chunks = [chunk async for chunk in handle.observe()]
    return [
        (chunk.type, chunk.payload.tool_call_id, _actor(chunk.payload))
        for chunk in chunks
        if chunk.type in ASKED | ANSWERED
    ]


def _actor(payload: Any) -> str | None:
    said = getattr(payload, "approval", payload)
    found: str | None = getattr(said, "actor", None)
    return found


async def inbox(store: Store, settings: Settings) -> list[str]:
    calls, _ = await Decisions(store, Runs(store, settings)).page()
    return [call.tool_call_id for call in calls]


async def test_what_a_handler_approves_leaves_the_inbox(connected: Any, store: Store, settings: Settings) -> None:
    made: list[Any] = []
    desk = Desk(lambda: True)
    async with connected(office(desk, made, ("send", {"to": "a"}), ("ask", {"to": "c"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2", "c3")
        await handle.approve("c3", actor="ada")
        await pending(handle, "c2")
        assert await inbox(store, settings) == ["c2"]
        view = await handle.status()
        said = {call.tool_call_id: (call.decision, call.actor) for call in view.decisions or []}
        assert said == {"c1": ("approve", HANDLER), "c3": ("approve", "ada")}
        assert sorted(made) == ["a", "b"]
        await handle.decline("c2")
        assert await told(handle) == {
            "c1": ["success", "a"],
            "c2": ["denied", "The tool call was not approved."],
            "c3": ["success", "b"],
        }
        seen = await waits_of(handle)
        [result] = [c async for c in handle.observe() if c.type == "tool-result" and c.payload.tool_call_id == "c1"]
    assert sorted(made) == ["a", "b"]
    assert desk.asked == [{"c1", "c2", "c3"}, {"c1", "c2"}, {"c2"}][: len(desk.asked)]
    assert ("tool-call-decided", "c1", HANDLER) in seen
    assert len(seen) == 6
    assert result.payload.approval.actor == HANDLER


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (True, ["success", "a: blue"]),
        (ToolApproved(override_args={"to": "z"}), ["success", "z: blue"]),
    ],
    ids=["as it is", "with other arguments"],
)
async def test_what_a_handler_approved_is_made_the_same_way_by_whoever_goes_on(
    connected: Any, said: Any, outcome: list[Any]
) -> None:
    """The tool asks after its approval: another attempt calls it again, and asks no handler about what is decided."""
    made: list[Any] = []
    desk = Desk(lambda: said)
    async with connected(office(desk, made, ("ask", {"to": "a"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2")
        await handle.approve("c2")

        async def asks() -> bool:
            view = await handle.status()
            return view.status == "suspended" and [call.kind for call in view.pending or []] == ["resume"]

        await eventually(asks, what="the tool to ask")
        run_id = handle.run_id
    desk.asked = [set()] * 9
    async with connected(office(desk, made, ("ask", {"to": "a"}))) as agent:
        handle = await agent.handle(run_id)
        await handle.resume("c1", "blue", actor="ada")
        assert (await told(handle))["c1"] == outcome
        assert await inbox_of(handle) == []
    assert made[-1] == ("ask", outcome[1][0])
    assert made.count("b") == 1


async def test_a_handler_that_approves_where_nobody_hears_of_it_ends_the_question_all_the_same(
    connected: Any, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that makes the call by itself, with an approval of its own."""

    async def unheard(self: Waits, _: DeferredToolResults) -> None:
        self.asked = True

    monkeypatch.setattr(Waits, "decided", unheard)
    made: list[Any] = []
    async with connected(office(Desk(lambda: True), made, ("send", {"to": "a"}), ("ask", {"to": "c"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2", "c3")
        await handle.approve("c3")
        await pending(handle, "c2")
        assert await inbox(store, settings) == ["c2"]
        await handle.decline("c2")
        assert (await told(handle))["c1"] == ["success", "a"]
        assert ("tool-call-decided", "c1", HANDLER) in await waits_of(handle)
    assert sorted(made) == ["a", "b"]


async def test_what_hooks_make_of_the_arguments_of_a_handler_is_what_the_tool_is_given(connected: Any) -> None:
    class Loud(AbstractCapability[Any]):
        async def after_tool_validate(self, ctx: RunContext[Any], *, args: dict[str, Any], **_: Any) -> dict[str, Any]:  # noqa: ARG002
            return {"to": args["to"].upper()}

    made: list[Any] = []
    desk = Desk(lambda: ToolApproved(override_args={"to": "z"}))
    agent: Agent[Any, str] = Agent(
        calling(("send", {"to": "a"}), ("send", {"to": "b"})),
        name="office",
        capabilities=[HandleDeferredToolCalls(desk), Loud()],
    )

    @agent.tool_plain(requires_approval=True)
    def send(to: str) -> str:
        made.append(to)
        return to

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await pending(handle, "c1", "c2")
        await handle.approve("c2")
        assert (await told(handle))["c1"] == ["success", "Z"]


@pytest.mark.parametrize("later", [{}, {"c1": False}, {"c1": ToolApproved(override_args={"to": "y"})}], ids=str)
async def test_what_a_handler_said_first_holds_for_a_call_that_a_hook_asks_about_in_each_attempt(
    connected: Any, later: dict[str, Any]
) -> None:
    made: list[Any] = []
    desk = Desk(lambda: ToolApproved(override_args={"to": "z"}))

    async def decide(ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        return await desk(ctx, requests) if len(desk.asked) < 2 else requests.build_results(approvals=later)

    def another() -> Agent[Any, str]:
        agent: Agent[Any, str] = Agent(
            calling(("ask", {"to": "a"}), ("ask", {"to": "b"})),
            name="office",
            capabilities=[HandleDeferredToolCalls(decide), Checking("before")],
        )

        @agent.tool
        def ask(ctx: RunContext[Any], to: str) -> str:
            made.append(to)
            if resume_data(ctx) is None:
                raise suspend()
            return to

        return agent

    async def kinds(handle: RunHandle, *expected: str) -> bool:
        view = await handle.status()
        return view.status == "suspended" and sorted(c.kind or "" for c in view.pending or []) == sorted(expected)

    async with connected(another()) as durable:
        handle = await durable.stream("go")
        await pending(handle, "c1", "c2")
        await handle.approve("c2")
        await eventually(lambda: kinds(handle, "resume", "resume"), what="both tools to ask")
        run_id = handle.run_id
    async with connected(another()) as durable:
        handle = await durable.handle(run_id)
        await handle.resume("c1", 1)
        await handle.resume("c2", 1)
        assert await told(handle) == {"c1": ["success", "z"], "c2": ["success", "b"]}


async def test_a_tool_whose_question_a_handler_passes_over_is_called_without_data(connected: Any) -> None:
    seen: list[tuple[Any, bool]] = []
    agent: Agent[Any, str] = Agent(
        calling(("ask", {}), ("ask", {})), name="office", capabilities=[HandleDeferredToolCalls(Desk(lambda: True))]
    )

    @agent.tool
    def ask(ctx: RunContext[Any]) -> str:
        call = tool_context(ctx)
        if call.tool_call_id == "c1":
            seen.append((resume_data(ctx), call.expired))
        if resume_data(ctx) is None:
            raise suspend()
        return "done"

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await pending(handle, "c1", "c2")
        await handle.resume("c2", 1)
        await pending(handle, "c1")
        await handle.resume("c1", 2)
        assert await told(handle) == {"c1": ["success", "done"], "c2": ["success", "done"]}
    assert seen == [(None, False), (None, False), (2, False)], "nobody was too late"


async def test_a_call_that_a_handler_decides_only_in_a_later_attempt_is_announced_to_nobody(connected: Any) -> None:
    made: list[Any] = []

    class Torn(Desk):
        async def __call__(self, ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
            if not self.asked:
                self.asked.append(set())
                raise HandOver
            return await super().__call__(ctx, requests)

    async with connected(office(Torn(lambda: True), made, ("send", {"to": "a"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c2")
        await handle.approve("c2")
        assert (await told(handle))["c1"] == ["success", "a"]
        assert [call for _, call, _ in await waits_of(handle)] == ["c2", "c2"]
    assert sorted(made) == ["a", "b"]


async def test_a_tool_that_asked_just_when_its_run_was_handed_back_is_asked_about(connected: Any) -> None:
    made: list[Any] = []

    class Torn(Desk):
        async def __call__(self, _: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
            self.asked.append(set())
            if len(self.asked) == 2:
                raise HandOver
            return requests.build_results()

    agent = office(Torn(lambda: None), made, ("ask", {"to": "a"}))
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await pending(handle, "c1", "c2")
        await handle.approve("c1")

        async def asks() -> bool:
            view = await handle.status()
            found = {call.tool_call_id: call.kind for call in view.pending or []}
            return view.status == "suspended" and found == {"c1": "resume", "c2": "approval"}

        await eventually(asks, what="the tool to ask")
        await handle.resume("c1", "blue")
        await handle.decline("c2")
        assert (await told(handle))["c1"] == ["success", "a: blue"]
    assert made == [("ask", "a")] * 2


async def inbox_of(handle: RunHandle) -> list[str]:
    return [call.tool_call_id for call in (await handle.status()).pending or []]


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ({"text": "hello"}, ["success", {"text": "hello"}]),
        (ToolReturn(return_value=["hello"], metadata={"from": "the desk"}), ["success", ["hello"]]),
        (ToolFailed("no such file"), ["failed", "no such file"]),
        (ModelRetry("another path"), ["failed", "another path"]),
    ],
    ids=["value", "return", "failure", "retry"],
)
async def test_a_result_that_a_handler_gives_is_kept(
    connected: Any, store: Store, settings: Settings, said: Any, outcome: list[Any]
) -> None:
    made: list[Any] = []
    desk = Desk(lambda: said)
    calls: tuple[Call, ...] = (("open_file", {}), ("send", {"to": "a"}))
    async with connected(office(desk, made, *calls)) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2", "c3")
        await handle.approve("c3")
        await pending(handle, "c2")
        assert await inbox(store, settings) == ["c2"]
        run_id = handle.run_id
    other = Desk(lambda: pytest.fail("what is decided is asked about again"))
    other.asked = [set()]
    async with connected(office(other, made, *calls)) as agent:
        handle = await agent.handle(run_id)
        await handle.approve("c2")
        assert (await told(handle))["c1"] == outcome
        seen = await waits_of(handle)
        ends = [c async for c in handle.observe() if c.type in {"tool-result", "tool-error"}]
    assert ("tool-call-decided", "c1", HANDLER) in seen
    assert [end.payload.tool_call_id for end in ends].count("c1") == 1
    assert sorted(made) == ["a", "b"]


async def test_what_a_handler_denies_has_ended_once(connected: Any, store: Store, settings: Settings) -> None:
    made: list[Any] = []
    desk = Desk(lambda: ToolDenied("not today"))
    async with connected(office(desk, made, ("send", {"to": "a"}), ("ask", {"to": "c"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2", "c3")
        await handle.approve("c3")
        await pending(handle, "c2")
        assert await inbox(store, settings) == ["c2"]
        await handle.decline("c2")
        assert (await told(handle))["c1"] == ["denied", "not today"]
        seen = await waits_of(handle)
        assert "tool-error" not in await types(handle)
    assert seen.count(("tool-output-denied", "c1", HANDLER)) == 1
    assert made == ["b"]


@pytest.mark.parametrize("kind", ["approves", "denies", "gives a result"])
async def test_a_person_who_was_faster_than_a_handler_has_decided(connected: Any, kind: str) -> None:
    made: list[Any] = []

    async def decide() -> Any:
        if kind == "approves":
            await handle.decline("c1", reason="no", actor="ada")
            return True
        if kind == "denies":
            await handle.approve("c1", actor="ada")
            return False
        await handle.resume("c1", "of ada", actor="ada")
        return "of the desk"

    first = ("open_file", {}) if kind == "gives a result" else ("send", {"to": "a"})
    async with connected(office(Desk(decide), made, first)) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2")
        await handle.approve("c2")
        outcome = (await told(handle))["c1"]
        seen = await waits_of(handle)
    assert [actor for kind, call, actor in seen if kind in ANSWERED and call == "c1"] == ["ada"]
    if kind == "approves":
        assert outcome == ["denied", "no"]
        assert made == ["b"]
    else:
        assert outcome == ["success", "a" if kind == "denies" else "of ada"]


async def test_a_handler_decides_though_redis_is_away_for_a_moment(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, away = Decisions.settle, list[int]()

    async def flaky(self: Decisions, *args: Any) -> Answer:
        away.append(1)
        if len(away) < 3:
            raise StoreUnavailable
        return await settle(self, *args)

    monkeypatch.setattr(Decisions, "settle", flaky)
    monkeypatch.setattr("durable.decisions.decisions.RETRY_SECONDS", 0)
    made: list[Any] = []
    async with connected(office(Desk(lambda: True), made, ("send", {"to": "a"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2")
        await handle.approve("c2")
        assert (await told(handle))["c1"] == ["success", "a"]
    assert len(away) == 3


async def test_arguments_that_nobody_could_use_again_end_the_run(connected: Any) -> None:
    made: list[Any] = []
    desk = Desk(lambda: ToolApproved(override_args={"to": object()}))
    async with connected(office(desk, made, ("send", {"to": "a"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2")
        await handle.approve("c2")
        with pytest.raises(RunFailed) as failed:
            await handle.result()
    assert failed.value.failure_code == "tool_result_invalid"
    assert "a" not in made


async def test_nobody_outside_answers_as_a_handler(connected: Any) -> None:
    async with connected(office(Desk(lambda: True), [], ("send", {"to": "a"}))) as agent:
        handle = await agent.stream("go")
        await pending(handle, "c1", "c2")
        with pytest.raises(InvalidRequest):
            await handle.approve("c1", actor=HANDLER)
        await handle.cancel()


async def test_an_attempt_that_lost_its_run_decides_nothing(settings: Settings) -> None:
    async with Workbench(settings) as bench:
        writer = await bench.writer()
        run_id, token = writer.lease.run_id, writer.lease.token
        question = b'{"tool_name":"send","kind":"approval"}'
        writer.note(Note(field="1:c1", value=b"{}", waiting=Waiting("c1", 1, 0, question)))
        await writer.flush()
        decisions = Decisions(bench.store, bench.runs)
        mine = Answer(kind="approve", actor=HANDLER)
        with pytest.raises(LeaseLost):
            await decisions.settle(run_id, token - 1, "c1", (1, 0), mine)
        with pytest.raises(LeaseLost):
            await decisions.settle(run_id, token, "c1", (1, 1), mine)
        assert await decisions.answers(run_id) == ({}, 0)
        assert (await decisions.settle(run_id, token, "c1", (1, 0), mine)).actor == HANDLER
        late = Answer(kind="decline", actor=HANDLER)
        assert (await decisions.settle(run_id, token, "c1", (1, 0), late)).kind == "approve", "the first answer stands"


class Checking(AbstractCapability[Any]):
    """A hook that wants to have a call approved: before it is made, or after."""

    def __init__(self, when: str, deferral: type[ApprovalRequired | CallDeferred] = ApprovalRequired) -> None:
        self._when = when
        self._deferral = deferral

    async def before_tool_execute(self, ctx: RunContext[Any], *, args: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._check(ctx, "before")
        return args

    async def after_tool_execute(self, ctx: RunContext[Any], *, result: Any, **_: Any) -> Any:
        self._check(ctx, "after")
        return result

    def _check(self, ctx: RunContext[Any], when: str) -> None:
        if self._when == when and not ctx.tool_call_approved:
            raise self._deferral({"when": when})


def checked(made: list[Any], when: str, *capabilities: Any, deferral: Any = ApprovalRequired) -> Agent[Any, str]:
    agent: Agent[Any, str] = Agent(
        calling(("pay", {"amount": 5})), name="payer", capabilities=[Checking(when, deferral), *capabilities]
    )

    @agent.tool
    def pay(ctx: RunContext[Any], amount: int) -> str:
        made.append(amount)
        ctx.usage.incr(RequestUsage(input_tokens=1_000_000))
        return f"paid {amount}"

    return agent


async def used(handle: RunHandle) -> int:
    usage = (await handle.status()).usage
    assert usage is not None
    return usage.input_tokens // 1_000_000


@pytest.mark.parametrize("torn", [False, True], ids=["at once", "by another attempt"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_hook_that_asks_has_the_tool_executed_once(
    connected: Any, monkeypatch: pytest.MonkeyPatch, when: str, *, torn: bool
) -> None:
    """Handed back just when somebody is to be asked, too: the run asks then."""
    resolve, handed = Waits.resolve, list[int]()

    async def hand_over(self: Waits, *asked: Any) -> DeferredToolResults:
        if torn and not handed:
            handed.append(1)
            raise HandOver
        return await resolve(self, *asked)

    monkeypatch.setattr(Waits, "resolve", hand_over)
    made: list[Any] = []
    async with connected(checked(made, when)) as agent:
        handle = await agent.stream("pay")
        await pending(handle, "c1")
        assert made == ([5] if when == "after" else [])
        [call] = (await handle.status()).pending or []
        assert (call.kind, call.payload) == ("approval", {"when": when})
        if when == "after":
            with pytest.raises(InvalidRequest):
                await handle.approve("c1", args={"amount": 7})
        run_id = handle.run_id
    async with connected(checked(made, when)) as agent:
        handle = await agent.handle(run_id)
        await handle.approve("c1")
        assert await told(handle) == {"c1": ["success", "paid 5"]}
        assert await used(handle) == 1
        seen = await types(handle)
    assert made == [5]
    assert seen.count("tool-result") == seen.count("tool-call-approval") == seen.count("tool-call-decided") == 1


async def test_what_a_hook_asked_about_a_call_that_was_made_may_be_declined(connected: Any) -> None:
    made: list[Any] = []
    async with connected(checked(made, "after")) as agent:
        handle = await agent.stream("pay")
        await pending(handle, "c1")
        await handle.decline("c1", reason="keep it back")
        assert await told(handle) == {"c1": ["denied", "keep it back"]}
    assert made == [5]


async def test_a_hook_may_leave_the_result_of_a_call_that_was_made_to_somebody_outside(connected: Any) -> None:
    made: list[Any] = []
    async with connected(checked(made, "after", deferral=CallDeferred)) as agent:
        handle = await agent.stream("pay")
        await pending(handle, "c1")
        await handle.resume("c1", "paid 5, and checked")
        assert await told(handle) == {"c1": ["success", "paid 5, and checked"]}
    assert made == [5]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_handler_that_approves_what_a_hook_asks_has_the_tool_executed_once(connected: Any, when: str) -> None:
    made: list[Any] = []

    def approve(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        return requests.build_results(approve_all=True)

    async with connected(checked(made, when, HandleDeferredToolCalls(approve))) as agent:
        handle = await agent.stream("pay")
        assert await told(handle) == {"c1": ["success", "paid 5"]}
        assert await used(handle) == 1
        assert not ASKED & set(await types(handle)), "nobody else was asked"
    assert made == [5]


async def test_a_call_that_was_approved_and_made_is_asked_about_by_a_hook_once_more(connected: Any) -> None:
    """The tool waits for an approval, and the hook for another."""
    made: list[Any] = []

    class Twice(AbstractCapability[Any]):
        async def after_tool_execute(self, ctx: RunContext[Any], *, result: Any, **_: Any) -> Any:
            if not ctx.tool_call_approved:
                raise ApprovalRequired({"when": "after"})
            return result

    agent: Agent[Any, str] = Agent(calling(("pay", {"amount": 5})), name="payer", capabilities=[Twice()])

    @agent.tool_plain(requires_approval=True)
    def pay(amount: int) -> str:
        made.append(amount)
        return f"paid {amount}"

    async with connected(agent) as durable:
        handle = await durable.stream("pay")
        await pending(handle, "c1")
        await handle.approve("c1", args={"amount": 6}, actor="ada")

        async def again() -> bool:
            view = await handle.status()
            return view.status == "suspended" and [c.payload for c in view.pending or []] == [{"when": "after"}]

        await eventually(again, what="the hook to ask")
        await handle.approve("c1", actor="bob")
        assert await told(handle) == {"c1": ["success", "paid 6"]}
    assert made == [6]


async def test_a_run_that_would_wait_for_nobody_fails(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def announce(self: Waits, call_id: str, _name: str, round_: int, outcome: Any, _tool: Any) -> Any:
        self._rounds[call_id] = round_
        return outcome

    monkeypatch.setattr(Waits, "announce", announce)
    async with connected(checked([], "before")) as agent:
        handle = await agent.stream("pay")
        with pytest.raises(RunFailed) as failed:
            await handle.result()
    assert failed.value.failure_code == "internal_error"


async def test_a_run_is_given_up_for_an_answer_only_while_a_call_waits(settings: Settings) -> None:
    async with Workbench(settings) as bench:
        writer = await bench.writer()
        lease = writer.lease
        assert await give_up(bench.store, lease, 0, {"reason": "decision"}, asking=True) == "unasked"
        assert (await bench.runs.get(lease.run_id)).status == "running"
        question = b'{"tool_name":"send","kind":"approval"}'
        writer.note(Note(field="1:c1", value=b"{}", waiting=Waiting("c1", 1, 0, question)))
        await writer.flush()
        assert await give_up(bench.store, lease, 0, {"reason": "decision"}, asking=True) == "suspended"
        assert await give_up(bench.store, lease, 0, {"reason": "decision"}, asking=True) == "suspended", "sent again"
    async with Workbench(settings) as bench:
        lease = (await bench.writer()).lease
        assert await give_up(bench.store, lease, 0, {"reason": "budget_reached"}) == "suspended"


def approve_all(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
    return requests.build_results(approve_all=True)


async def test_a_handler_that_approves_a_call_does_not_answer_what_the_call_asks_then(connected: Any) -> None:
    made: list[Any] = []
    agent: Agent[Any, str] = Agent(
        calling(("ask", {"to": "a"})), name="office", capabilities=[HandleDeferredToolCalls(approve_all)]
    )

    @agent.tool(requires_approval=True)
    def ask(ctx: RunContext[Any], to: str) -> str:
        made.append(to)
        found = resume_data(ctx)
        if found is None:
            raise suspend()
        return f"{to}: {found}"

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await pending(handle, "c1")
        assert made == ["a"]
        await handle.resume("c1", "blue", actor="ada")
        assert await told(handle) == {"c1": ["success", "a: blue"]}
        assert [actor for kind, _, actor in await waits_of(handle) if kind in ANSWERED] == ["ada"]
    assert made == ["a", "a"]


AWAITED = {"durable": {"background": "awaited"}}


async def test_a_call_that_a_handler_approves_is_made_by_one_task(connected: Any) -> None:
    made: list[Any] = []
    agent: Agent[Any, str] = Agent(
        calling(("work", {"n": 1})), name="office", capabilities=[HandleDeferredToolCalls(approve_all)]
    )

    @agent.tool_plain(requires_approval=True, metadata=AWAITED)
    def work(n: int) -> int:
        made.append(n)
        return n

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        assert await told(handle) == {"c1": ["success", 1]}
        assert (await types(handle)).count("background-task-started") == 1
    assert made == [1]


async def test_a_result_that_a_handler_gives_for_a_task_is_no_answer_to_a_question(connected: Any) -> None:
    let_go, made = asyncio.Event(), list[Any]()
    agent = office(Desk(lambda: "instead"), made, ("work", {"n": 1}))

    @agent.tool_plain(metadata=AWAITED)
    async def work(n: int) -> int:
        await let_go.wait()
        return n

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await pending(handle, "c2")
        await handle.approve("c2")
        assert await told(handle) == {"c1": ["success", "instead"], "c2": ["success", "b"]}
        assert [call for _, call, _ in await waits_of(handle)] == ["c2", "c2"]
        let_go.set()


async def test_a_run_waits_for_its_task_alone_once_all_its_questions_are_answered(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is heard of when all calls were found to wait."""
    answer, late = Waits.answer, list[str]()

    async def approved(self: Waits, call_id: str, round_: int) -> Answer | None:
        found = await answer(self, call_id, round_)
        if found is None and call_id == "c1" and not late:
            late.append(call_id)
            await handle.approve("c1")
            return None
        return found

    monkeypatch.setattr(Waits, "answer", approved)
    let_go, made = asyncio.Event(), list[str]()
    agent: Agent[Any, str] = Agent(calling(("pay", {}), ("work", {})), name="office")

    @agent.tool_plain(requires_approval=True)
    def pay() -> str:
        made.append("pay")
        return "paid"

    @agent.tool_plain(metadata=AWAITED)
    async def work() -> str:
        await let_go.wait()
        return "worked"

    async with connected(agent) as durable:
        handle = await durable.handle("both-run")
        await durable.stream("go", run_id="both-run")

        async def idle() -> bool:
            view = await handle.status()
            return (view.status, view.reason) == ("suspended", "background")

        await eventually(idle, what="the run to wait for its task")
        let_go.set()
        assert await told(handle) == {"c1": ["success", "paid"], "c2": ["success", "worked"]}
    assert made == ["pay"]


async def test_a_hook_that_asks_about_a_call_that_a_task_makes_has_it_made_once(connected: Any) -> None:
    let_go, made = asyncio.Event(), list[int]()
    agent: Agent[Any, str] = Agent(calling(("work", {"n": 1})), name="office", capabilities=[Checking("after")])

    @agent.tool_plain(metadata={"durable": {"background": True}})
    async def work(n: int) -> int:
        await let_go.wait()
        made.append(n)
        return n

    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await pending(handle, "c1")
        await handle.approve("c1")
        await handle.result()
        let_go.set()
        assert (await types(handle)).count("background-task-started") == 1
