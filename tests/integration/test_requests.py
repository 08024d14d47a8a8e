"""What a run may be asked: instructions, tools, an output of its own, calls that its caller makes, and results of them
to begin with; in every attempt at the run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    RetryPromptPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import FunctionToolset

from durable import DurableAgent, RunHandle, TaskCompletion
from durable.chunks import Finish, StepFinish, ToolCallSuspended, ToolResult
from durable.doctor import Doctor
from durable.errors import InvalidRequest, RunFailed
from durable.runs import ClientTool, NewRun, RunRequest, Runs
from durable.settings import Settings
from durable.threads import UNFINISHED
from tests.conftest import eventually
from tests.workbench import Workbench

Connect = Callable[..., DurableAgent]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
PAINT = {"name": "paint", "description": "Paints.", "parameters": {"type": "object", "properties": {}}}
DRAW = {"name": "draw", "parameters": {"type": "object", "properties": {}}}


@dataclass
class Asked:
    """A model that does what its tests say, and keeps what it was asked.

    Attributes:
        says: What it answers to each request, in turn; the last one stays.
        infos: What it was given with each request.
        messages: The conversation of each request.
    """

    says: list[Any] = field(default_factory=lambda: ["done"])
    infos: list[AgentInfo] = field(default_factory=list)
    messages: list[list[ModelMessage]] = field(default_factory=list)

    async def answer(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        self.infos.append(info)
        self.messages.append(list(messages))
        said = self.says[0] if len(self.says) == 1 else self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, str):
            yield said
            return
        for index, (name, args) in enumerate(said.items()):
            yield {index: DeltaToolCall(name=name, json_args=json.dumps(args), tool_call_id=f"call-{name}")}

    @property
    def tools(self) -> list[list[str]]:
        return [sorted(tool.name for tool in info.function_tools) for info in self.infos]

    def told(self, request: int = -1) -> dict[str, Any]:
        """What calls came to, as the model was told of them; each once."""
        parts = [part for message in self.messages[request] for part in message.parts]
        found = [part for part in parts if isinstance(part, ToolReturnPart | RetryPromptPart)]
        assert len({part.tool_call_id for part in found}) == len(found)
        return {part.tool_call_id: part.content for part in found}


def built(model: Asked, **options: Any) -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(
        FunctionModel(stream_function=model.answer), name="asked", instructions="Be brief.", **options
    )

    @agent.tool_plain
    def add(number: int = 1) -> int:
        return number + 1

    @agent.tool_plain
    def subtract(number: int = 1) -> int:
        return number - 1

    return agent


def made(_: RunContext[Any]) -> FunctionToolset[Any]:
    """A toolset whose tools are not known before there is a run."""
    return FunctionToolset()


@pytest.fixture(params=[False, True], ids=["at once", "resumed"])
def wrap(request: pytest.FixtureRequest, settings: Settings, connected: Connect) -> Connect:
    """Wraps an agent; its runs are executed at once, or rebuilt from what is stored after each step."""
    chosen = settings.model_copy(update={"always_resume": settings.always_resume or request.param})
    return lambda agent, **options: connected(agent, **{"cache": chosen, **options})


async def suspended(handle: RunHandle) -> list[str]:
    """Wait until the run waits; the calls that it waits for."""

    async def so() -> bool:
        return (await handle.status()).status == "suspended"

    await eventually(so, what="the run to wait")
    return [chunk.payload.tool_call_id async for chunk in _until_now(handle) if isinstance(chunk, ToolCallSuspended)]


async def _until_now(handle: RunHandle) -> AsyncIterator[Any]:
    last = (await handle.status()).last_seq
    async for chunk in handle.observe():
        yield chunk
        if chunk.seq == last:
            return


async def finish_of(handle: RunHandle) -> Finish:
    [finish] = [chunk async for chunk in handle.observe() if isinstance(chunk, Finish)]
    return finish


async def test_a_run_has_its_own_instructions_in_every_step(wrap: Connect) -> None:
    model = Asked(says=[{"add": {}}, "done"])
    async with wrap(built(model)) as agent:
        assert (await agent.generate("hello", instructions="Be polite.")).output == "done"
        assert [info.instructions for info in model.infos] == ["Be polite.", "Be polite."]
        await agent.generate("hello")
        assert model.infos[-1].instructions == "Be brief."


async def test_a_wrapped_agent_takes_the_instructions_of_a_run_too(connected: Connect) -> None:
    model = Asked()
    async with connected(WrapperAgent(built(model))) as agent:
        await agent.generate("hello", instructions="Be polite.")
    assert model.infos[-1].instructions == "Be polite."


async def test_what_a_tool_asks_of_the_same_agent_has_the_agents_instructions(connected: Connect) -> None:
    model = Asked(says=[{"ask": {}}, "inner", "outer"])
    bare = built(model)

    @bare.tool_plain
    async def ask() -> str:
        async with bare.run_stream("again") as found:
            return str(await found.get_output())

    async with connected(bare) as agent:
        assert (await agent.generate("hello", instructions="Be polite.")).output == "outer"
    assert [info.instructions for info in model.infos] == ["Be polite.", "Be brief.", "Be polite."]


async def test_only_the_active_tools_are_given_to_the_model_in_every_step(wrap: Connect) -> None:
    model = Asked(says=[{"add": {}}, "done"])
    async with wrap(built(model)) as agent:
        await agent.generate("hello", active_tools=["add"])
        assert model.tools == [["add"], ["add"]]
        await agent.generate("hello", active_tools=[])
        assert model.tools[-1] == []
        await agent.generate("hello")
        assert model.tools[-1] == ["add", "subtract"]


async def test_a_tool_that_is_not_active_is_not_called_even_if_the_model_asks_for_it(wrap: Connect) -> None:
    model = Asked(says=[{"subtract": {}}, "done"])
    async with wrap(built(model)) as agent:
        assert (await agent.generate("hello", active_tools=["add"])).output == "done"
    assert "Unknown tool" in str(model.told()["call-subtract"])


async def test_an_active_tool_that_the_agent_does_not_have_fails_the_run(connected: Connect) -> None:
    async with connected(built(Asked(), toolsets=[made])) as agent:
        with pytest.raises(RunFailed, match="no tool that is called 'divide'") as failure:
            await agent.generate("hello", active_tools=["add", "divide"])
    assert failure.value.failure_code == "unfit_request"


async def test_an_active_tool_may_be_missing_in_a_step_if_the_agent_prepares_it_so(connected: Connect) -> None:
    model = Asked()
    bare = built(model)

    async def never(_: RunContext[Any], __: ToolDefinition) -> None:
        return None

    @bare.tool_plain(prepare=never)
    def hidden() -> str:
        return ""

    async with connected(bare) as agent:
        assert (await agent.generate("hello", active_tools=["hidden", "add"])).output == "done"
    assert model.tools == [["add"]]


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (None, {"final_result": {"city": "Basel"}}),
        ("tool", {"final_result": {"city": "Basel"}}),
        ("prompted", '{"city": "Basel"}'),
        ("native", '{"city": "Basel"}'),
    ],
)
async def test_a_run_returns_an_object_of_the_schema_that_it_was_asked_for(wrap: Connect, mode: Any, says: Any) -> None:
    model = Asked(says=[{"add": {}}, says])
    async with wrap(built(model)) as agent:
        handle = await agent.stream("where?", output_schema=CITY, output_mode=mode)
        result = await handle.result()
        assert result.output == {"city": "Basel"}
        assert (await handle.status()).output == {"city": "Basel"}
        assert (await (await agent.handle(handle.run_id)).result()).output == {"city": "Basel"}
    assert {info.model_request_parameters.output_mode for info in model.infos} == {mode or "tool"}


class Place(BaseModel):
    city: str


async def test_the_output_is_the_object_even_if_it_fits_the_type_of_the_agent(connected: Connect) -> None:
    model = Asked(says=[{"final_result": {"city": "Basel"}}])
    async with connected(built(model, output_type=Place)) as agent:
        assert (await agent.generate("where?")).output == Place(city="Basel")
        assert (await agent.generate("where?", output_schema=CITY)).output == {"city": "Basel"}


async def test_an_output_that_does_not_fit_the_schema_is_asked_for_again(wrap: Connect) -> None:
    model = Asked(says=[{"final_result": {"city": "Basel", "people": "many"}}, {"final_result": {"city": "Basel"}}])
    async with wrap(built(model)) as agent:
        assert (await agent.generate("where?", output_schema=CITY)).output == {"city": "Basel"}
    [told] = model.told().values()
    assert "output.people does not fit 'type'" in str(told)


def validated(agent: Agent[Any, Any]) -> Agent[Any, Any]:
    """The agent with an output validator."""

    @agent.output_validator
    def fine(output: str) -> str:
        return output

    return agent


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"output_schema": {"type": "array"}}, "outputSchema"),
        ({"output_schema": {"type": 7}}, "outputSchema"),
        ({"output_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}}, "outputSchema"),
        ({"output_mode": "tool"}, "outputMode"),
        ({"on_client_tools": "end"}, "clientTools"),
        ({"client_tool_seconds": 3}, "clientTools"),
        ({"client_tools": [PAINT, PAINT]}, "clientTools"),
        ({"client_tools": [{**PAINT, "name": "a b"}]}, "clientTools.0.name"),
        ({"client_tools": [DRAW, {**PAINT, "parameters": {"type": "string"}}]}, "clientTools.1.parameters"),
        ({"client_tools": [PAINT], "on_client_tools": "end", "client_tool_seconds": 1}, "clientToolSeconds"),
        ({"model_settings": {"tool_choice": "sometimes"}}, "modelSettings.tool_choice"),
    ],
)
async def test_what_no_agent_can_do_is_refused_before_there_is_a_run(
    connected: Connect, asked: dict[str, Any], field: str
) -> None:
    async with connected(built(Asked())) as agent:
        with pytest.raises(InvalidRequest) as refused:
            await agent.stream("hello", **asked)
    assert refused.value.details["field"] == field


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"active_tools": ["add", "divide"]}, "activeTools"),
        ({"client_tools": [{**PAINT, "name": "add"}]}, "clientTools"),
        ({"output_schema": CITY}, "outputSchema"),
    ],
)
async def test_what_its_agent_surely_can_not_do_is_refused_before_there_is_a_run(
    connected: Connect, asked: dict[str, Any], field: str
) -> None:
    async with connected(WrapperAgent(validated(built(Asked())))) as agent:
        with pytest.raises(InvalidRequest) as refused:
            await agent.stream("hello", **asked)
        assert (await agent.generate("hello", active_tools=["add", "paint"], client_tools=[PAINT])).output == "done"
    assert refused.value.details["field"] == field


async def test_an_agent_that_has_changed_since_it_was_asked_fails_the_run(connected: Connect) -> None:
    bare = built(Asked())
    async with connected(bare) as agent:
        backend = await agent._backend()
        request = RunRequest(prompt="where?", output_schema=CITY)
        validated(bare)
        new = NewRun(agent="asked", kind="durable", queue="nowhere", request=request, retention=60)
        record, _ = await backend.submit(new)
        with pytest.raises(RunFailed) as failure:
            await (await agent.handle(record.run_id)).result()
    assert failure.value.failure_code == "unfit_request"


async def test_a_call_of_a_client_tool_waits_and_goes_on_with_what_the_caller_gives(wrap: Connect) -> None:
    model = Asked(says=[{"paint": {"color": "red"}, "add": {}}, "done"])
    async with wrap(built(model)) as agent:
        handle = await agent.stream("hello", client_tools=[PAINT])
        assert await suspended(handle) == ["call-paint"]
        await handle.resume("call-paint", {"painted": True})
        assert (await handle.result()).output == "done"
    assert model.tools == [["add", "paint", "subtract"]] * 2
    assert model.told() == {"call-add": 2, "call-paint": {"painted": True}}


async def test_a_call_of_a_client_tool_that_nobody_makes_is_declined_in_time(connected: Connect) -> None:
    model = Asked(says=[{"paint": {}}, "done"])
    async with connected(built(model)) as agent:
        result = await agent.generate("hello", client_tools=[ClientTool(**PAINT)], client_tool_seconds=0.2)
    assert result.output == "done"
    assert list(model.told()) == ["call-paint"]


async def test_a_client_tool_of_the_name_of_one_of_the_agents_fails_the_run(connected: Connect) -> None:
    async with connected(built(Asked(), toolsets=[made])) as agent:
        with pytest.raises(RunFailed, match="'add'") as failure:
            await agent.generate("hello", client_tools=[{**PAINT, "name": "add"}])
    assert failure.value.failure_code == "unfit_request"


async def test_a_run_ends_with_the_calls_that_its_caller_makes_and_the_next_begins_with_their_results(
    wrap: Connect,
) -> None:
    model = Asked(says=[{"paint": {}, "add": {}, "draw": {}}, "done"])
    async with wrap(built(model)) as agent:
        handle = await agent.stream("hello", client_tools=[PAINT, DRAW], on_client_tools="end")
        result = await handle.result()
        assert (result.reason, result.output) == ("client_tools", "")
        chunks = [chunk async for chunk in handle.observe()]
        assert not [chunk for chunk in chunks if isinstance(chunk, ToolCallSuspended)]
        assert [chunk.payload.tool_call_id for chunk in chunks if isinstance(chunk, ToolResult)] == ["call-add"]
        [step] = [chunk for chunk in chunks if isinstance(chunk, StepFinish)]
        assert (step.payload.step_result.reason, step.payload.step_result.is_continued) == ("tool-calls", False)
        assert (await finish_of(handle)).payload.step_result.reason == "tool-calls"

        messages: list[Any] = result.all_messages()
        response, others = messages[-2:]
        assert [call.tool_call_id for call in response.tool_calls] == ["call-paint", "call-add", "call-draw"]
        assert [part.tool_call_id for part in others.parts] == ["call-add"]

        painted = ModelRequest(parts=[ToolReturnPart(tool_name="paint", content="red", tool_call_id="call-paint")])
        again = await agent.generate(messages=[*messages, painted], client_tools=[PAINT, DRAW], on_client_tools="end")
        assert again.output == "done"
    assert model.told() == {"call-paint": "red", "call-add": 2, "call-draw": UNFINISHED}


class Unusual(AbstractCapability[Any]):
    """A provider that calls tools, and says another reason."""

    async def after_model_request(self, ctx: Any, *, request_context: Any, response: Any) -> Any:  # noqa: ARG002
        return replace(response, finish_reason="error")


async def test_the_finish_reason_tells_of_calls_that_are_left_whatever_the_provider_says(connected: Connect) -> None:
    model = Asked(says=[{"paint": {}}])
    async with connected(built(model, capabilities=[Unusual()])) as agent:
        handle = await agent.stream("hello", client_tools=[PAINT], on_client_tools="end")
        assert (await finish_of(handle)).payload.step_result.reason == "tool-calls"


async def test_a_run_waits_for_its_own_calls_before_it_leaves_the_others_to_its_caller(wrap: Connect) -> None:
    model = Asked(says=[{"paint": {}, "sign": {}}])
    bare = built(model)

    @bare.tool_plain(requires_approval=True)
    def sign() -> str:
        return "signed"

    async with wrap(bare) as agent:
        handle = await agent.stream("hello", client_tools=[PAINT], on_client_tools="end")
        assert await suspended(handle) == []
        await handle.approve("call-sign")
        result = await handle.result()
    assert result.reason == "client_tools"
    last: Any = result.all_messages()[-1]
    assert [part.content for part in last.parts] == ["signed"]


async def test_a_thread_goes_on_with_the_results_of_the_calls_that_its_last_run_has_left(
    wrap: Connect, settings: Settings
) -> None:
    model = Asked(says=[{"paint": {}, "add": {}, "draw": {}}, {"subtract": {}}, "done", "heard"])
    terms: dict[str, Any] = {"client_tools": [PAINT, DRAW], "on_client_tools": "end", "thread_id": "t"}
    async with wrap(built(model)) as agent:
        assert (await agent.generate("hello", **terms)).reason == "client_tools"
        painted = ModelRequest(parts=[ToolReturnPart(tool_name="paint", content="red", tool_call_id="call-paint")])
        result = await agent.generate(messages=[painted], **terms)
        assert result.output == "done"
        known = {"call-paint": "red", "call-add": 2, "call-draw": UNFINISHED}
        assert [model.told(1), model.told(2)] == [known, {**known, "call-subtract": 0}]
        assert (await agent.generate("next", thread_id="t")).output == "heard"
        # Once, and in its place.
        assert model.told(3) == {**known, "call-subtract": 0}
        kinds = [[part.part_kind for part in message.parts] for message in model.messages[-1]]
        assert kinds == [
            ["user-prompt"],
            ["tool-call"] * 3,
            ["tool-return"] * 3,
            ["tool-call"],
            ["tool-return"],
            ["text"],
            ["user-prompt"],
        ]
    async with Workbench(settings) as bench:
        assert [finding async for finding in Doctor(bench.store).findings()] == []


async def test_results_that_are_given_again_count_once(connected: Connect) -> None:
    model = Asked(says=[{"paint": {}, "add": {}}, "done"])
    terms: dict[str, Any] = {"client_tools": [PAINT], "on_client_tools": "end", "thread_id": "t"}
    async with connected(built(model)) as agent:
        await agent.generate("hello", **terms)
        parts: list[ModelRequestPart] = [
            ToolReturnPart(tool_name="add", content="forged", tool_call_id="call-add"),
            ToolReturnPart(tool_name="paint", content="red", tool_call_id="call-paint"),
            UserPromptPart(content="go on"),
        ]
        await agent.generate(messages=[ModelRequest(parts=parts)], **terms)
    assert model.told() == {"call-add": 2, "call-paint": "red"}


async def test_open_calls_are_closed_where_the_user_just_goes_on(connected: Connect) -> None:
    model = Asked(says=[{"paint": {}}, "done"])
    async with connected(built(model)) as agent:
        await agent.generate("hello", client_tools=[PAINT], on_client_tools="end", thread_id="t")
        await agent.generate("never mind", thread_id="t")
    assert model.told() == {"call-paint": UNFINISHED}


async def test_calls_that_are_left_to_the_caller_are_neither_judged_nor_approved(wrap: Connect) -> None:
    asked: list[Any] = []

    def never(_: Any, output: Any) -> bool:
        asked.append(output)
        return False

    model = Asked(says=[{"paint": {}}, "done"])
    async with wrap(built(model), completion=TaskCompletion([never], max_iterations=1)) as agent:
        terms: dict[str, Any] = {"client_tools": [PAINT], "on_client_tools": "end", "require_tool_approval": True}
        assert (await agent.generate("hello", **terms)).reason == "client_tools"
        assert asked == []
        assert (await agent.generate("hello")).reason == "max_iterations"
    assert asked == ["done"]


async def test_an_object_that_was_asked_for_is_judged_as_any_output(wrap: Connect) -> None:
    judged: list[Any] = []

    def is_basel(_: Any, output: Any) -> bool:
        judged.append(output)
        return bool(output["city"] == "Basel")

    model = Asked(says=[{"final_result": {"city": "Bern"}}, {"final_result": {"city": "Basel"}}])
    async with wrap(built(model), completion=TaskCompletion([is_basel])) as agent:
        assert (await agent.generate("where?", output_schema=CITY)).output == {"city": "Basel"}
    assert judged == [{"city": "Bern"}, {"city": "Basel"}]


async def test_guardrails_hear_of_the_results_that_a_run_begins_with(connected: Connect) -> None:
    heard: list[Any] = []

    def look(_: Any, messages: Any) -> None:
        heard.append([part.part_kind for message in messages for part in message.parts])

    model = Asked(says=[{"paint": {}}, "done"])
    async with connected(built(model), input_guardrails=[look]) as agent:
        terms: dict[str, Any] = {"client_tools": [PAINT], "on_client_tools": "end", "thread_id": "t"}
        await agent.generate("hello", **terms)
        painted = ModelRequest(parts=[ToolReturnPart(tool_name="paint", content="red", tool_call_id="call-paint")])
        await agent.generate(messages=[painted], **terms)
    assert heard == [["user-prompt"], ["user-prompt", "tool-call", "tool-return"]]


async def test_a_forced_tool_choice_holds_for_the_first_request_of_the_run(wrap: Connect) -> None:
    model = Asked(says=[{"add": {}}, "done"])
    async with wrap(built(model)) as agent:
        for choice in ("required", ["add"]):
            model.says, model.infos = [{"add": {}}, "done"], []
            result = await agent.generate("hello", model_settings={"tool_choice": choice, "temperature": 0.5})
            assert result.output == "done"
            found = [dict(info.model_settings or {}) for info in model.infos]
            assert found == [{"tool_choice": choice, "temperature": 0.5}, {"temperature": 0.5}]


async def test_other_tool_choices_hold_for_every_request(wrap: Connect) -> None:
    model = Asked(says=[{"add": {}}, {"final_result": {"city": "Basel"}}])
    async with wrap(built(model)) as agent:
        for choice in ("auto", ["add", "final_result"], {"function_tools": ["add"]}):
            model.says, model.infos = [{"add": {}}, {"final_result": {"city": "Basel"}}], []
            await agent.generate("where?", output_schema=CITY, model_settings={"tool_choice": choice})
            assert len({repr(info.model_settings) for info in model.infos}) == 1
            assert "tool_choice" in (model.infos[-1].model_settings or {})


async def test_a_retry_has_the_terms_of_the_run_that_it_repeats(connected: Connect) -> None:
    model = Asked(says=[{"add": {}}, ModelHTTPError(400, "scripted"), {"paint": {}}, {"final_result": {"city": "B"}}])
    async with connected(built(model)) as agent:
        handle = await agent.stream(
            "where?", instructions="Be polite.", active_tools=["add"], output_schema=CITY, client_tools=[PAINT]
        )
        with pytest.raises(RunFailed):
            await handle.result()
        backend = await agent._backend()
        record, _ = await backend.retry(handle.run_id)
        again = await agent.handle(record.run_id)
        assert await suspended(again) == ["call-paint"]
        await again.resume("call-paint", "red")
        assert (await again.result()).output == {"city": "B"}
    assert [info.instructions for info in model.infos] == ["Be polite."] * 4
    assert model.tools == [["add", "paint"]] * 4
    assert [tool.name for tool in model.infos[-1].output_tools] == ["final_result"]


async def test_a_run_that_asks_for_nothing_gives_the_agent_nothing(connected: Connect) -> None:
    model = Asked()
    async with connected(built(model)) as agent:
        handle = await agent.stream("hello")
        await handle.result()
        backend = await agent._backend()
        request = await Runs(backend.store, backend.settings).request(handle.run_id)
    assert request.to_json() == b'{"prompt":"hello"}'
    assert model.infos[-1].model_settings is None
