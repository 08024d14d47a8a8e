"""Agents with all that lies around tools and outputs: instructions, history, settings, models, hooks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, AgentRunResult, ModelRequestContext, RunContext, UsageLimits
from pydantic_ai.capabilities import AbstractCapability, Hooks, ProcessEventStream, ProcessHistory
from pydantic_ai.exceptions import ModelHTTPError, ModelRetry
from pydantic_ai.messages import (
    BinaryContent,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from tests.parity.case import Case, Script, call


def told(messages: list[ModelMessage], info: AgentInfo) -> list[str]:
    """All that the model is told, as its answer."""
    parts = [
        f"{part.part_kind}: {part.content}"
        for message in messages
        for part in message.parts
        if part.part_kind in ("system-prompt", "user-prompt", "text")
    ]
    return [" / ".join([str(info.instructions), *parts])]


def settings_told(messages: list[ModelMessage], info: AgentInfo) -> list[str]:
    """The settings that the model is given."""
    return [json.dumps(info.model_settings, sort_keys=True, default=str)]


class Account(BaseModel):
    """Dependencies."""

    name: str
    limits: dict[str, int] = {}


def _with_deps(agent: Agent[Account, Any], **fields: Any) -> Case:
    return Case(agent, deps=Account(**fields), wrapped={"deps": fields})


def instructions_of_all_kinds() -> Case:
    agent: Agent[Account, str] = Agent(
        Script(told).model(),
        name="a",
        deps_type=Account,
        instructions=["Be brief.", lambda ctx: f"Help {ctx.deps.name}."],
        system_prompt="You are kind.",
    )

    @agent.instructions
    async def limits(ctx: RunContext[Account]) -> str:
        return f"Limits: {ctx.deps.limits}"

    @agent.system_prompt
    def prompt(ctx: RunContext[Account]) -> str:
        return f"It is {ctx.deps.name}'s turn."

    @agent.system_prompt(dynamic=True)
    async def dynamic(ctx: RunContext[Account]) -> str:
        return f"Step {ctx.run_step}."

    return _with_deps(agent, name="Ann", limits={"a": 1})


def _history() -> list[ModelMessage]:
    return [
        ModelRequest(parts=[SystemPromptPart("You are old."), UserPromptPart("What is two and two?")]),
        ModelResponse(parts=[ToolCallPart("add", {"a": 2, "b": 2}, tool_call_id="h1")], model_name="older"),
        ModelRequest(parts=[ToolReturnPart("add", {"sum": 4}, tool_call_id="h1")]),
        ModelResponse(parts=[TextPart("Four.")], model_name="older"),
    ]


def a_history() -> Case:
    return Case(Agent(Script(told).model(), name="a"), options={"message_history": _history()})


def a_history_with_a_dynamic_system_prompt() -> Case:
    agent: Agent[Any, str] = Agent(Script(told).model(), name="a")

    @agent.system_prompt(dynamic=True)
    def now(ctx: RunContext[Any]) -> str:
        return "You are new."

    first = SystemPromptPart("You were new.", dynamic_ref=now.__qualname__)
    history: list[ModelMessage] = [
        ModelRequest(parts=[first, UserPromptPart("Hi")]),
        ModelResponse(parts=[TextPart("Hello")]),
    ]
    return Case(agent, options={"message_history": history})


def a_history_that_ends_with_a_request() -> Case:
    history = [*_history(), ModelRequest(parts=[UserPromptPart("And three and three?")])]
    case = Case(Agent(Script(told).model(), name="a"), prompt=None)
    case.options = {}
    case.bare = {"message_history": history}
    case.wrapped = {"messages": history}
    return case


def a_processed_history() -> Case:
    def shorten(messages: list[ModelMessage]) -> list[ModelMessage]:
        return messages[-1:]

    async def relabel(ctx: RunContext[Any], messages: list[ModelMessage]) -> list[ModelMessage]:
        last = messages[-1]
        assert isinstance(last, ModelRequest)
        return [*messages[:-1], replace(last, parts=[*last.parts, UserPromptPart(f"(step {ctx.run_step})")])]

    def look() -> str:
        return "seen"

    agent: Agent[Any, str] = Agent(
        Script([call("look")], told).model(),
        name="a",
        tools=[look],
        capabilities=[ProcessHistory(shorten), ProcessHistory(relabel)],
    )
    return Case(agent, options={"message_history": _history()})


def a_history_processed_in_place() -> Case:
    def redact(messages: list[ModelMessage]) -> list[ModelMessage]:
        for message in messages[:-1]:
            for part in message.parts:
                if isinstance(part, (UserPromptPart, ToolReturnPart)):
                    part.content = "(gone)"
                if isinstance(part, ToolCallPart):
                    part.args = {}
        return messages

    def look(at: str = "all") -> str:
        return f"{at} seen"

    script = Script([call("look", "c1", at="a")], [call("look", "c2", at="b")], told)
    agent: Agent[Any, str] = Agent(script.model(), name="a", tools=[look], capabilities=[ProcessHistory(redact)])
    return Case(agent, options={"message_history": _history()})


def a_history_of_which_only_the_last_request_is_left() -> Case:
    def last(messages: list[ModelMessage]) -> list[ModelMessage]:
        return messages[-1:]

    def look() -> str:
        return "seen"

    script = Script([call("look")], ["done"])
    return Case(Agent(script.model(), name="a", tools=[look], capabilities=[ProcessHistory(last)]))


def a_prompt_of_many_kinds() -> Case:
    prompt = [
        "What is this?",
        ImageUrl("https://example.com/a.png"),
        DocumentUrl("https://example.com/a.pdf", media_type="application/pdf"),
        BinaryContent(b"\x89PNG\xff\x00", media_type="image/png", identifier="the picture"),
        "And this 🙂?",
    ]
    return Case(Agent(Script(["A picture."]).model(), name="a"), prompt=prompt)


def settings_of_the_agent_and_of_the_run() -> Case:
    agent: Agent[Any, str] = Agent(
        Script(settings_told).model(settings={"seed": 1, "top_p": 0.5}),
        name="a",
        model_settings={"temperature": 0.1, "max_tokens": 10},
    )
    settings = {"temperature": 0.9, "extra_body": {"deep": [1, None]}, "stop_sequences": ["end"]}
    return Case(agent, options={"model_settings": settings})


def settings_that_depend_on_the_run() -> Case:
    def look() -> str:
        return "seen"

    agent: Agent[Any, str] = Agent(
        Script([call("look")], settings_told).model(),
        name="a",
        tools=[look],
        model_settings=lambda ctx: {"temperature": ctx.run_step / 10},
    )
    return Case(agent)


def limits_that_are_not_reached() -> Case:
    def look() -> str:
        return "seen"

    agent: Agent[Any, str] = Agent(Script([call("look")], ["done"]).model(), name="a", tools=[look])
    limits = UsageLimits(request_limit=2, tool_calls_limit=1, total_tokens_limit=10_000)
    return Case(agent, options={"usage_limits": limits})


def unwell() -> Model:
    """A model that its provider does not serve."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        for text in respond(messages, info).parts:
            yield str(text)

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise ModelHTTPError(503, "unwell")

    return FunctionModel(respond, stream_function=stream, model_name="unwell")


def a_model_to_fall_back_on() -> Case:
    def look() -> str:
        return "seen"

    script = Script(["Let me see.", call("look")], told)
    return Case(Agent(FallbackModel(unwell(), script.model()), name="a", tools=[look]))


class Noting(AbstractCapability[Any]):
    """A capability that notes, changes and adds."""

    def __init__(self, notes: list[Any]) -> None:
        self.notes = notes

    def get_instructions(self) -> str:
        """More instructions."""
        return "Be noted."

    def get_toolset(self) -> FunctionToolset[Any]:
        """More tools."""

        def extra(n: int) -> int:
            return n + 1

        return FunctionToolset([extra])

    async def before_model_request(self, ctx: RunContext[Any], request_context: ModelRequestContext) -> Any:
        """Note."""
        self.notes.append(f"request {ctx.run_step} of {len(request_context.messages)} messages")
        return request_context

    async def after_model_request(self, ctx: RunContext[Any], *, response: ModelResponse, **_: Any) -> Any:
        """Change the response."""
        return replace(response, parts=[*response.parts, TextPart(f"(step {ctx.run_step})")])

    async def before_tool_execute(self, ctx: RunContext[Any], *, args: Any, **_: Any) -> Any:
        """Change the arguments."""
        self.notes.append(f"{ctx.tool_name} {args}")
        return {"n": args["n"] * 10}

    async def after_tool_execute(self, ctx: RunContext[Any], *, args: Any, result: Any, **_: Any) -> Any:
        """Change the outcome."""
        return f"{ctx.tool_name}: {result} of {args}"


def a_capability_of_the_agents_own() -> Case:
    notes: list[Any] = []
    script = Script([call("extra", n=1)], told)
    return Case(Agent(script.model(), name="a", capabilities=[Noting(notes)]), notes=notes)


def hooks_around_the_run() -> Case:
    notes: list[Any] = []
    hooks: Hooks[Any] = Hooks()

    @hooks.on.before_run
    async def before(ctx: RunContext[Any]) -> None:
        notes.append("before")

    @hooks.on.run
    async def around(ctx: RunContext[Any], *, handler: Any) -> Any:
        notes.append("begins")
        result = await handler()
        notes.append("ends")
        return result

    @hooks.on.after_run
    async def after(ctx: RunContext[Any], *, result: Any) -> Any:
        notes.append(f"after {result.output}")
        return replace(result, output=f"{result.output}, noted")

    return Case(Agent(Script(told).model(), name="a", capabilities=[hooks]), notes=notes)


def a_run_that_a_hook_answers_itself() -> Case:
    hooks: Hooks[Any] = Hooks()

    @hooks.on.run
    async def instead(ctx: RunContext[Any], *, handler: Any) -> Any:
        return AgentRunResult("from the cache")

    return Case(Agent(Script().model(), name="a", capabilities=[hooks]))


def a_failed_run_that_a_hook_heals() -> Case:
    hooks: Hooks[Any] = Hooks()

    @hooks.on.run_error
    async def heal(ctx: RunContext[Any], *, error: BaseException) -> Any:
        return AgentRunResult(f"healed {type(error).__name__}")

    return Case(Agent(unwell(), name="a", capabilities=[hooks]))


def hooks_around_each_node() -> Case:
    notes: list[Any] = []
    hooks: Hooks[Any] = Hooks()

    @hooks.on.before_node_run
    async def before(ctx: RunContext[Any], *, node: Any) -> Any:
        notes.append(type(node).__name__)
        return node

    @hooks.on.node_run
    async def around(ctx: RunContext[Any], *, node: Any, handler: Any) -> Any:
        following = await handler(node)
        notes.append(f"{type(node).__name__} then {type(following).__name__}")
        return following

    @hooks.on.model_request
    async def request(ctx: RunContext[Any], *, request_context: Any, handler: Any) -> Any:
        response = await handler(request_context)
        notes.append(f"{len(response.parts)} parts")
        return response

    return Case(_looking(hooks), notes=notes)


def hooks_around_each_request() -> Case:
    hooks: Hooks[Any] = Hooks()

    @hooks.on.model_request
    async def request(ctx: RunContext[Any], *, request_context: Any, handler: Any) -> Any:
        try:
            response = await handler(request_context)
        except Exception as error:  # noqa: BLE001 - whatever it is, this hook answers
            return ModelResponse(parts=[TextPart(f"{type(error).__name__} instead")])
        return replace(response, parts=[*response.parts, TextPart(f"(of step {ctx.run_step})")])

    return Case(_looking(hooks))


def hooks_around_each_tool() -> Case:
    hooks: Hooks[Any] = Hooks()

    @hooks.on.tool_execute
    async def execute(ctx: RunContext[Any], *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        return f"<{await handler(args)}>"

    return Case(_looking(hooks))


def hooks_on_the_stream_of_events() -> Case:
    notes: list[Any] = []

    async def note(ctx: RunContext[Any], events: AsyncIterable[Any]) -> None:
        async for event in events:
            notes.append(event.event_kind)  # noqa: PERF401 - one after the other, as they come

    return Case(_looking(ProcessEventStream(note)), notes=notes)


def a_tool_error_that_a_hook_heals() -> Case:
    hooks: Hooks[Any] = Hooks()

    @hooks.on.tool_execute_error
    async def heal(ctx: RunContext[Any], *, call: Any, tool_def: Any, args: Any, error: Exception) -> Any:
        return f"healed {type(error).__name__} {error}"

    return Case(_looking(hooks, fails=ValueError("broken")))


class OutOfStock(Exception):
    """A tool's own exception, which is not made of its arguments."""

    def __init__(self, item: str, *, left: int) -> None:
        super().__init__(f"no {item}")
        self.left = left


def a_tool_error_of_the_users_own_that_a_hook_heals() -> Case:
    hooks: Hooks[Any] = Hooks()

    @hooks.on.tool_execute_error
    async def heal(ctx: RunContext[Any], *, call: Any, tool_def: Any, args: Any, error: Exception) -> Any:
        assert isinstance(error, OutOfStock)
        return f"{error}, {error.left} left"

    return Case(_looking(hooks, fails=OutOfStock("tea", left=0)))


def a_tool_error_that_only_its_process_has() -> Case:
    class Broken(Exception):
        """Nothing that another process could make."""

    hooks: Hooks[Any] = Hooks()
    notes: list[Any] = []

    @hooks.on.tool_execute
    async def heal(ctx: RunContext[Any], *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        try:
            return await handler(args)
        except Broken as error:
            notes.append("healed")
            return {"owner": type(error.args[0]).__name__}

    return Case(_looking(hooks, fails=Broken(object())), notes=notes)


def a_tool_error_that_a_hook_tells_the_model() -> Case:
    hooks: Hooks[Any] = Hooks()

    @hooks.on.tool_execute_error
    async def tell(ctx: RunContext[Any], *, call: Any, tool_def: Any, args: Any, error: Exception) -> Any:
        raise ModelRetry(f"{type(error).__name__} {error}")

    return Case(_looking(hooks, fails=KeyError("broken")))


def _looking(capability: AbstractCapability[Any], *, fails: Exception | None = None) -> Agent[Any, str]:
    """An agent that calls one tool and says what it returned."""

    def look() -> str:
        if fails is not None:
            raise fails
        return "seen"

    def tool_words(messages: list[ModelMessage], info: AgentInfo) -> Sequence[str]:
        return [str(messages[-1].parts[0].content)]  # type: ignore[union-attr]  # a tool's return

    script = Script(["Let me see.", call("look")], tool_words)
    return Agent(script.model(), name="a", tools=[look], capabilities=[capability])


@dataclass
class Lookup:
    """Dependencies as a dataclass."""

    words: list[str]
    depth: int = 1


def dependencies_as_a_dataclass() -> Case:
    agent: Agent[Lookup, str] = Agent(Script([call("peek")], told).model(), name="a", deps_type=Lookup)

    @agent.tool
    def peek(ctx: RunContext[Lookup]) -> str:
        return f"{type(ctx.deps).__name__} {ctx.deps}"

    return Case(agent, deps=Lookup(["a"], 2), wrapped={"deps": {"words": ["a"], "depth": 2}})


def no_dependencies() -> Case:
    agent: Agent[Any, str] = Agent(Script([call("peek")], told).model(), name="a")

    @agent.tool
    def peek(ctx: RunContext[Any]) -> str:
        return repr(ctx.deps)

    return Case(agent)


CASES = [
    instructions_of_all_kinds,
    a_history,
    a_history_with_a_dynamic_system_prompt,
    a_history_that_ends_with_a_request,
    a_processed_history,
    a_history_processed_in_place,
    a_history_of_which_only_the_last_request_is_left,
    a_prompt_of_many_kinds,
    settings_of_the_agent_and_of_the_run,
    settings_that_depend_on_the_run,
    limits_that_are_not_reached,
    a_model_to_fall_back_on,
    a_capability_of_the_agents_own,
    hooks_around_the_run,
    a_run_that_a_hook_answers_itself,
    a_failed_run_that_a_hook_heals,
    hooks_around_each_node,
    hooks_around_each_request,
    hooks_around_each_tool,
    hooks_on_the_stream_of_events,
    a_tool_error_that_a_hook_heals,
    a_tool_error_of_the_users_own_that_a_hook_heals,
    a_tool_error_that_only_its_process_has,
    a_tool_error_that_a_hook_tells_the_model,
    dependencies_as_a_dataclass,
    no_dependencies,
]
