"""What a call that may be made in the background is made with: the same as in the run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import Strict
from pydantic_ai import Agent, ApprovalRequired, ModelRetry, RunContext
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDefinition
from pydantic_ai.toolsets import ExternalToolset

from durable import Background, RunHandle, agent_tool, resume_data, suspend
from durable.errors import InvalidRequest, RunFailed
from tests.conftest import eventually
from tests.integration.test_background import calling, heard, idle, started, told

DAY = "2026-11-24"


async def on(_: RunContext[Any], day: Annotated[date, Strict()]) -> str:
    """Takes a day, and nothing that only looks like one."""
    return f"{type(day).__name__} {day}"


@pytest.mark.parametrize(
    ("options", "chosen", "tasks"),
    [
        ({"background": "awaited"}, None, 1),
        ({"background": "awaited", "model_chooses": True}, None, 1),
        ({"background": "deferred", "model_chooses": True}, "awaited", 1),
        ({"background": "awaited", "model_chooses": True}, "foreground", 0),
        ({"background": "awaited", "model_chooses": True}, "nowhere", 1),
    ],
    ids=["a task", "with no choice", "chosen to be a task", "chosen to be none", "with a choice that is none"],
)
async def test_a_strict_tool_takes_the_models_json_wherever_its_call_is_made(
    connected: Any, options: dict[str, Any], chosen: str | None, tasks: int
) -> None:
    args = {"day": DAY} if chosen is None else {"day": DAY, "_background": chosen}
    agent = Agent(calling(("on", args)), name="support")
    agent.tool(metadata={"durable": options})(on)
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        assert await told(handle) == [["c1", "success", f"date {DAY}"]]
        assert len(await started(handle)) == tasks


def edited_by_a_handler(edited: dict[str, Any], body: Any = on, **options: Any) -> Agent[Any, str]:
    """An agent whose own handler approves the call `c1` at once, with other arguments."""

    async def decide(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        # What the tool itself asks is for people.
        mine = [call for call in requests.approvals if not requests.metadata.get(call.tool_call_id)]
        return requests.build_results(approvals={"c1": ToolApproved(override_args=edited)} if mine else {})

    agent: Agent[Any, str] = Agent(
        calling(("on", {"day": DAY})), name="support", capabilities=[HandleDeferredToolCalls(decide)]
    )
    agent.tool(name="on", metadata={"durable": options}, requires_approval=True)(body)
    return agent


@pytest.mark.parametrize("background", ["foreground", "awaited"])
async def test_what_a_handler_makes_of_the_arguments_before_anybody_is_asked_is_what_the_call_is_made_with(
    connected: Any, background: str
) -> None:
    async with connected(edited_by_a_handler({"day": date(2027, 1, 1)}, background=background)) as durable:
        handle = await durable.stream("go")
        assert await told(handle) == [["c1", "success", "date 2027-01-01"]]
        assert len(await started(handle)) == (background == "awaited")


async def test_what_a_handler_makes_of_the_arguments_is_for_that_call_and_no_later_one_of_the_same_id(
    connected: Any,
) -> None:
    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if sum(isinstance(message, ModelResponse) for message in messages) > 1:
            yield json.dumps(heard(messages))
        else:
            yield {1: DeltaToolCall(name="on", json_args=json.dumps({"day": DAY}), tool_call_id="c1")}

    edited = [ToolApproved(override_args={"day": date(2027, 1, 1)}), ToolApproved()]

    async def decide(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        return requests.build_results(approvals={"c1": edited.pop(0)} if requests.approvals else {})

    agent: Agent[Any, str] = Agent(
        FunctionModel(stream_function=respond), name="support", capabilities=[HandleDeferredToolCalls(decide)]
    )
    agent.tool(metadata={"durable": {"background": "deferred"}}, requires_approval=True)(on)
    async with connected(agent) as durable:
        found = await told(await durable.stream("go", until_idle=True))
    results = sorted(each for each in found if isinstance(each, str))
    assert results == [f"completed. Its result: date {day}" for day in (DAY, "2027-01-01")]


async def test_no_task_is_given_arguments_of_a_handler_that_have_no_json_form(connected: Any) -> None:
    async def anything(_: RunContext[Any], day: Any) -> str:
        return str(day)

    async with connected(edited_by_a_handler({"day": object()}, anything, background="awaited")) as durable:
        handle = await durable.stream("go")
        with pytest.raises(RunFailed):
            await handle.result()
        view = await handle.status()
        assert view.error is not None
        assert view.error.code == "tool_result_invalid"
        assert await started(handle) == []


class Choosing:
    """A model that calls `work` with a choice if it is shown that it has one.

    Attributes:
        shown: Whether it was, in each request.
    """

    def __init__(self, choice: str) -> None:
        self.shown: list[bool] = []
        self._choice = choice

    async def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        [tool] = info.function_tools
        self.shown.append("_background" in tool.parameters_json_schema["properties"])
        if any(isinstance(message, ModelResponse) for message in messages):
            yield json.dumps(heard(messages))
            return
        args = {"prompt": "why?"} | ({"_background": self._choice} if self.shown[0] else {})
        yield {1: DeltaToolCall(name="work", json_args=json.dumps(args), tool_call_id="c1")}


async def made(handle: RunHandle) -> str:
    """Where the only call of a run was made."""
    [_, _, content], *_ = await told(handle)
    if not await started(handle):
        return "foreground"
    return "deferred" if content.startswith("Background task started.") else "awaited"


@pytest.mark.parametrize(
    ("options", "agent_says", "allowed", "shown", "where"),
    [
        ({"model_chooses": True, "background": "deferred"}, None, None, True, "awaited"),
        ({"model_chooses": True}, True, None, True, "awaited"),
        ({"model_chooses": True, "background": "deferred"}, False, None, False, "foreground"),
        ({"model_chooses": True, "background": "deferred"}, None, False, False, "foreground"),
        ({"model_chooses": True}, True, False, False, "foreground"),
        ({"model_chooses": True}, None, None, False, "foreground"),
        ({"background": "deferred"}, None, None, False, "deferred"),
    ],
    ids=["tool", "agent", "not the agent", "not the run", "agent, not the run", "nobody", "no choice"],
)
async def test_a_model_is_asked_where_a_call_is_made_just_where_what_it_says_counts(
    connected: Any, options: Any, agent_says: bool | None, allowed: bool | None, shown: bool, where: str
) -> None:
    async def work(_: RunContext[Any], prompt: str) -> str:
        return prompt

    model = Choosing("awaited")
    agent = Agent(FunctionModel(stream_function=model), name="support")
    agent.tool(metadata={"durable": options})(work)
    background = None if agent_says is None else Background(tools={"work": agent_says})
    async with connected(agent, background=background) as durable:
        handle = await durable.stream("go", background=allowed)
        assert await made(handle) == where
        assert model.shown == [shown, shown]


@pytest.mark.parametrize("allowed", [None, False])
async def test_a_model_is_asked_whether_to_wait_for_an_agent_just_where_it_may_go_on(
    connected: Any, allowed: bool | None
) -> None:
    other = connected(Agent(TestModel(), name="other"))
    model = Choosing("deferred")
    tools = [agent_tool(other, name="work", model_chooses=True)]
    async with connected(Agent(FunctionModel(stream_function=model), name="support", tools=tools)) as durable:
        handle = await durable.stream("go", background=allowed)
        assert await made(handle) == ("awaited" if allowed is False else "deferred")
        assert model.shown == [allowed is None] * 2


async def test_a_model_is_not_asked_where_a_call_is_made_that_is_executed_elsewhere(connected: Any) -> None:
    model = Choosing("deferred")
    elsewhere = ToolDefinition(
        name="work",
        parameters_json_schema={"type": "object", "properties": {"prompt": {"type": "string"}}},
        metadata={"durable": {"background": True, "model_chooses": True}},
    )
    agent = Agent(FunctionModel(stream_function=model), name="support", toolsets=[ExternalToolset([elsewhere])])
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await idle(handle, reason="decision")
        await handle.resume("c1", "made")
        assert await told(handle) == [["c1", "success", "made"]]
    assert model.shown == [False, False]


async def positive(_: RunContext[Any], n: int) -> None:
    """A tool's own validator: it takes what the tool takes."""
    if n < 1:
        raise ModelRetry("Not so few.")


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("chosen", ["foreground", "awaited"])
async def test_a_tools_own_validator_is_not_told_of_the_choice(connected: Any, chosen: str, asynchronous: bool) -> None:
    def small(_: RunContext[Any], n: int) -> None:
        if n > 9:
            raise ModelRetry("Not so many.")

    async def work(_: RunContext[Any], n: int) -> str:
        return f"done {n}"

    calls = [("work", {"n": n, "_background": chosen}) for n in (5, 0 if asynchronous else 10)]
    agent = Agent(calling(*calls), name="support")
    options = {"background": "deferred", "model_chooses": True}
    agent.tool(args_validator=positive if asynchronous else small, metadata={"durable": options})(work)
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        found = {call: outcome for call, outcome, _ in await told(handle)}
        assert found == {"c1": "success", "c2": "retried"}
        assert len(await started(handle)) == (chosen == "awaited")


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        ({"n": 2}, "foreground"),
        ({"n": 2, "_background": "foreground"}, "foreground"),
        ({"n": 2, "_background": "awaited"}, "awaited"),
    ],
    ids=["without it", "as it was", "another one"],
)
async def test_who_approves_a_call_with_other_arguments_may_leave_the_choice_or_make_another(
    connected: Any, edit: dict[str, Any], where: str
) -> None:
    async def work(_: RunContext[Any], n: int) -> str:
        return f"done {n}"

    agent = Agent(calling(("work", {"n": 1, "_background": "foreground"})), name="support")
    options = {"background": "deferred", "model_chooses": True}
    agent.tool(requires_approval=True, metadata={"durable": options})(work)
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        await idle(handle, reason="decision")
        await handle.approve("c1", args=edit)
        assert await told(handle) == [["c1", "success", "done 2"]]
        assert await made(handle) == where


HUGE = 2**70 + 1


async def double(ctx: RunContext[Any], n: int) -> dict[str, int]:
    """Asks before it answers, if it is to."""
    if n < 0 and resume_data(ctx) is None:
        raise suspend({"n": n})
    return {"twice": n * 2 + (resume_data(ctx) or 0)}


@pytest.mark.parametrize("background", ["foreground", "awaited", "deferred"])
@pytest.mark.parametrize("approved", [False, True], ids=["at once", "once it is approved"])
async def test_an_integer_may_have_any_size(connected: Any, background: str, approved: bool) -> None:
    agent = Agent(calling(("double", {"n": HUGE})), name="support")
    agent.tool(metadata={"durable": {"background": background}}, requires_approval=approved)(double)
    async with connected(agent) as durable:
        handle = await durable.stream("go", until_idle=True)
        if approved:
            await idle(handle, reason="decision")
            [call] = (await handle.status()).pending or []
            assert call.args == {"n": HUGE}
            await handle.approve("c1")
        found = await told(handle)
        if background == "deferred":
            assert found[1] == f'completed. Its result: {{"twice":{HUGE * 2}}}'
        else:
            assert found == [["c1", "success", {"twice": HUGE * 2}]]
        if background != "foreground":
            [task] = await started(handle)
            assert (await (await durable.handle(task)).status()).output == {"twice": HUGE * 2}


@pytest.mark.parametrize("background", ["foreground", "awaited"])
async def test_an_integer_may_have_any_size_in_what_a_tool_asks_and_not_in_an_answer(
    connected: Any, background: str
) -> None:
    agent = Agent(calling(("double", {"n": -HUGE})), name="support")
    agent.tool(metadata={"durable": {"background": background}})(double)
    async with connected(agent) as durable:
        handle = await durable.stream("go")

        async def asked() -> bool:
            calls = (await handle.status()).pending or []
            return [(call.args, call.payload) for call in calls] == [({"n": -HUGE}, {"n": -HUGE})]

        await eventually(asked, what="the tool to ask")
        [call] = (await handle.status()).pending or []
        where = await durable.handle(call.run_id) if call.run_id else handle
        with pytest.raises(InvalidRequest):
            await where.resume("c1", HUGE * 3)
        await where.resume("c1", 1)
        assert await told(handle) == [["c1", "success", {"twice": 1 - HUGE * 2}]]


@pytest.mark.parametrize("background", ["foreground", "awaited"])
async def test_an_integer_may_have_any_size_also_where_a_handler_has_put_it(connected: Any, background: str) -> None:
    async def anything(_: RunContext[Any], day: Any) -> int:
        found: int = day * 2
        return found

    async with connected(edited_by_a_handler({"day": HUGE}, anything, background=background)) as durable:
        assert await told(await durable.stream("go")) == [["c1", "success", HUGE * 2]]


@pytest.mark.parametrize("background", ["foreground", "awaited"])
async def test_what_a_handler_makes_of_the_arguments_is_kept_while_the_tool_waits(
    connected: Any, background: str
) -> None:
    """A tool that suspends is called again by a later attempt, which no handler is asked for once more."""
    made: list[Any] = []

    async def on_day(ctx: RunContext[Any], day: date) -> str:
        made.append(day)
        found = resume_data(ctx)
        if found is None:
            raise suspend({"day": str(day)})
        return f"{day} {found}"

    async with connected(edited_by_a_handler({"day": date(2027, 1, 1)}, on_day, background=background)) as durable:
        handle = await durable.stream("go")

        async def asked() -> bool:
            return [call.tool_call_id for call in (await handle.status()).pending or []] == ["c1"]

        await eventually(asked, what="the tool to ask")
        [call] = (await handle.status()).pending or []
        where = await durable.handle(call.run_id) if call.run_id else handle
        await where.resume("c1", "blue")
        assert await told(handle) == [["c1", "success", "2027-01-01 blue"]]
    assert made == [date(2027, 1, 1)] * 2


async def test_what_a_handler_makes_of_the_arguments_is_kept_when_the_worker_is_lost_in_the_tool(
    connected: Any,
) -> None:
    made: list[Any] = []
    begun = asyncio.Event()

    async def on_day(_: RunContext[Any], day: date) -> str:
        made.append(day)
        if len(made) == 1:
            begun.set()
            await asyncio.Event().wait()
        return str(day)

    async with connected(edited_by_a_handler({"day": date(2027, 1, 1)}, on_day)) as durable:
        handle = await durable.stream("go")
        await begun.wait()
        (await durable._backend()).engine.hand_back(handle.run_id)
        assert await told(handle) == [["c1", "success", "2027-01-01"]]
    assert made == [date(2027, 1, 1)] * 2


async def test_what_people_make_of_the_arguments_of_a_handler_stands(connected: Any) -> None:
    async def on_day(ctx: RunContext[Any], day: date) -> str:
        if day.year == 2027:
            raise ApprovalRequired({"what": "is that so?"})
        found = resume_data(ctx)
        if found is None:
            raise suspend({"what": "which colour?"})
        return f"{day} {found}"

    async with connected(edited_by_a_handler({"day": date(2027, 1, 1)}, on_day)) as durable:
        handle = await durable.stream("go")
        for question, answer in (("is that so?", {"day": "2028-01-01"}), ("which colour?", None)):

            async def asked(question: str = question) -> bool:
                calls = (await handle.status()).pending or []
                return [call.payload for call in calls] == [{"what": question}]

            await eventually(asked, what=question)
            await idle(handle, reason="decision")
            if answer is not None:
                await handle.approve("c1", args=answer)
            else:
                await handle.resume("c1", "blue")
        assert await told(handle) == [["c1", "success", "2028-01-01 blue"]]
