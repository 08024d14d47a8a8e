"""A wrapped agent gives what the bare one gives: output, messages and usage, in memory and on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext, Tool, UsageLimits
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UsageLimitExceeded, UserError
from pydantic_ai.models.instrumented import InstrumentationSettings

from durable import DurableAgent, RunInfo
from durable.errors import RunFailed
from durable.settings import Settings
from tests.parity import outputs, surroundings, tools
from tests.parity.case import Case, Script, Turn, call, run_bare, run_wrapped, wrap

Build = Callable[[], Case]

CASES: list[Build] = [*tools.CASES, *outputs.CASES, *surroundings.CASES]
OF_AN_ATTEMPT: list[Build] = [
    tools.a_dynamic_toolset_once_a_run,  # it counts in the memory of one process
    surroundings.a_capability_of_the_agents_own,  # these note what they hear, and hear each attempt
    surroundings.hooks_around_the_run,
    surroundings.hooks_around_each_node,
    surroundings.hooks_on_the_stream_of_events,
]
"""What is by its nature not of the run, but of each attempt at it."""
OF_A_RUN: list[Build] = [build for build in CASES if build not in OF_AN_ATTEMPT]

of_an_attempt = pytest.mark.of_an_attempt


@pytest.fixture(params=["memory", "redis"])
def cache(request: pytest.FixtureRequest) -> Settings | None:
    """Where the wrapped agent keeps its runs; None is in memory."""
    if request.param == "memory":
        return None
    settings: Settings = request.getfixturevalue("settings")
    return settings


@pytest.mark.parametrize(
    "build",
    [*OF_A_RUN, *(pytest.param(build, marks=of_an_attempt) for build in OF_AN_ATTEMPT)],
    ids=lambda build: build.__name__,
)
async def test_the_wrapped_agent_gives_what_the_bare_one_gives(build: Build, cache: Settings | None) -> None:
    bare = await run_bare(build(), streamed=True)
    whole = await run_bare(build(), streamed=False)
    wrapped, chunks = await run_wrapped(build(), cache)

    assert (wrapped.output, wrapped.kind) == (bare.output, bare.kind)
    assert wrapped.messages == bare.messages
    assert wrapped.new_messages == bare.new_messages
    assert wrapped.usage == bare.usage
    assert wrapped.notes == bare.notes
    assert (wrapped.output, wrapped.kind) == (whole.output, whole.kind)
    assert chunks[-1].final
    assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1))


# Runs that fail


def _look() -> str:
    return "seen"


def _broken() -> str:
    raise LookupError("hunter2")


def a_request_limit() -> Case:
    agent: Agent[Any, str] = Agent(Script([call("_look")], ["done"]).model(), name="a", tools=[_look])
    return Case(agent, options={"usage_limits": UsageLimits(request_limit=1)})


def a_tool_call_limit() -> Case:
    calls = [call("_look", "c1"), call("_look", "c2")]
    agent: Agent[Any, str] = Agent(Script(calls, ["done"]).model(), name="a", tools=[_look])
    return Case(agent, options={"usage_limits": UsageLimits(tool_calls_limit=1)})


def a_token_limit() -> Case:
    agent: Agent[Any, str] = Agent(Script(["many words are too many words"]).model(), name="a")
    return Case(agent, options={"usage_limits": UsageLimits(output_tokens_limit=2)})


def too_many_tries_of_a_tool() -> Case:
    calls = [[call("_look", f"c{n}", no=1)] for n in range(3)]
    return Case(Agent(Script(*calls).model(), name="a", tools=[_look], retries=1))


def too_many_tries_of_an_output() -> Case:
    turns = [[call("final_result", f"c{n}", response="x")] for n in range(3)]
    return Case(Agent(Script(*turns).model(), name="a", output_type=int, retries=1))


def a_tool_that_raises() -> Case:
    return Case(Agent(Script([call("_broken")]).model(), name="a", tools=[_broken]))


def a_model_that_fails() -> Case:
    return Case(Agent(surroundings.unwell(), name="a"))


def two_tools_of_one_name() -> Case:
    toolsets: list[Any] = [tools.three(), tools.three()]
    return Case(Agent(Script(["done"]).model(), name="a", toolsets=toolsets))


@pytest.mark.parametrize(
    ("build", "error", "code"),
    [
        (a_request_limit, UsageLimitExceeded, "usage_limit_exceeded"),
        (a_tool_call_limit, UsageLimitExceeded, "usage_limit_exceeded"),
        (a_token_limit, UsageLimitExceeded, "usage_limit_exceeded"),
        (too_many_tries_of_a_tool, UnexpectedModelBehavior, "model_misbehaved"),
        (too_many_tries_of_an_output, UnexpectedModelBehavior, "model_misbehaved"),
        (a_tool_that_raises, LookupError, "tool_failed"),
        (a_model_that_fails, ModelHTTPError, "model_error"),
        (two_tools_of_one_name, UserError, "agent_misconfigured"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_what_fails_the_bare_agent_fails_the_run_with_its_code(
    build: Build, error: type[Exception], code: str, cache: Settings | None
) -> None:
    with pytest.raises(error):
        await run_bare(build(), streamed=True)
    async with aclosing(wrap(build(), cache)) as agent:
        case = build()
        handle = await agent.stream(case.prompt, **case.options)
        with pytest.raises(RunFailed) as caught:
            await handle.result()
        view = await handle.status()
        chunks = [chunk async for chunk in handle.observe()]

    assert caught.value.failure_code == code
    assert view.error is not None
    assert (view.status, view.error.code, view.error.name) == ("failed", code, error.__name__)
    assert [chunk.type for chunk in chunks[-2:]] == ["error", "finish"]
    assert [chunk.final for chunk in chunks] == [None] * (len(chunks) - 1) + [True]
    assert "hunter2" not in "".join(str(chunk.to_wire()) for chunk in chunks)


@pytest.mark.parametrize(
    ("of_agent", "of_tool"),
    [
        ({"on_tool_error": "continue"}, {}),
        ({"on_tool_error": "fail"}, {"durable": {"on_tool_error": "continue"}}),
        ({}, {"durable": {"on_tool_error": "continue"}}),
    ],
)
async def test_a_tool_that_raises_may_be_told_to_the_model_instead(
    cache: Settings | None, of_agent: dict[str, Any], of_tool: dict[str, Any]
) -> None:
    broken: Tool[Any] = Tool(_broken, metadata=of_tool)
    case = Case(Agent(Script([call("_broken")], tools.tool_words).model(), name="a", tools=[broken]), wrap=of_agent)
    outcome, chunks = await run_wrapped(case, cache)

    assert "LookupError" in outcome.output
    assert "hunter2" not in str(outcome.messages)
    assert [chunk.type for chunk in chunks if chunk.type.startswith("tool-")][-1] == "tool-error"


async def test_a_tool_that_raises_ends_the_run_if_it_says_so_whatever_its_agent_says(cache: Settings | None) -> None:
    broken: Tool[Any] = Tool(_broken, metadata={"durable": {"on_tool_error": "fail"}})
    case = Case(Agent(Script([call("_broken")]).model(), name="a", tools=[broken]), wrap={"on_tool_error": "continue"})
    async with aclosing(wrap(case, cache)) as agent:
        handle = await agent.stream(case.prompt)
        with pytest.raises(RunFailed) as caught:
            await handle.result()

    assert caught.value.failure_code == "tool_failed"


# Steps


@pytest.mark.parametrize("where", ["agent", "run"])
async def test_a_run_of_too_many_steps_ends_as_completed_and_says_so(cache: Settings | None, where: str) -> None:
    turns: list[Turn] = [[f"Step {n}.", call("_look", f"c{n}")] for n in range(9)]
    script = Script(*turns)
    case = Case(Agent(script.model(), name="a", tools=[_look]))
    case.wrap, case.wrapped = {"max_steps": 3 if where == "agent" else 7}, {"max_steps": 3} if where == "run" else {}
    outcome, chunks = await run_wrapped(case, cache)

    assert len(script.asked) == 3
    assert outcome.output == "Step 2."
    assert chunks[-1].type == "finish"
    assert (chunks[-1].payload.max_steps_reached, chunks[-1].payload.step_result.reason) == (True, "tool-calls")
    assert [message["kind"] for message in outcome.messages] == ["request", "response"] * 3 + ["request"]


async def test_a_run_of_just_as_many_steps_as_it_may_have_is_none_of_too_many(cache: Settings | None) -> None:
    case = Case(Agent(Script([call("_look")], ["done"]).model(), name="a", tools=[_look]), wrap={"max_steps": 2})
    outcome, chunks = await run_wrapped(case, cache)

    assert outcome.output == "done"
    assert chunks[-1].payload.max_steps_reached is None


# Dependencies


class Deps(BaseModel):
    """Dependencies."""

    user: str


def _with_deps() -> Case:
    agent: Agent[Any, str] = Agent(
        Script([call("who")], tools.tool_words).model(), name="a", deps_type=Deps, instructions="Be kind."
    )

    @agent.tool
    def who(ctx: RunContext[Deps]) -> str:
        return f"{type(ctx.deps).__name__} {ctx.deps.user}"

    return Case(agent)


def _sync_factory(run: RunInfo) -> Deps:
    return Deps(user=f"{run.deps['name']} of {run.metadata['team']} in {run.agent}, attempt {run.attempt}")


async def _async_factory(run: RunInfo) -> Deps:
    return _sync_factory(run)


@asynccontextmanager
async def _context_factory(run: RunInfo) -> AsyncIterator[Deps]:
    yield _sync_factory(run)


@of_an_attempt
@pytest.mark.parametrize("factory", [_sync_factory, _async_factory, _context_factory])
async def test_dependencies_are_made_by_a_factory(factory: Any, cache: Settings | None) -> None:
    case = _with_deps()
    case.wrap = {"deps_factory": factory}
    case.wrapped = {"deps": {"name": "Ann"}, "metadata": {"team": "red"}}
    outcome, _ = await run_wrapped(case, cache)
    assert outcome.output == "Deps Ann of red in a, attempt 1"


async def test_dependencies_are_made_of_json_by_the_agents_own_type(cache: Settings | None) -> None:
    case = _with_deps()
    case.wrapped = {"deps": {"user": "Ann"}}
    outcome, _ = await run_wrapped(case, cache)
    assert outcome.output == "Deps Ann"


@of_an_attempt
@pytest.mark.parametrize("ends_by", ["completing", "a tool that raises", "a limit"])
async def test_a_context_of_dependencies_is_entered_and_left_exactly_once(cache: Settings | None, ends_by: str) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def factory(run: RunInfo) -> AsyncIterator[str]:
        seen.append("entered")
        try:
            yield "deps"
        except Exception as error:
            seen.append(type(error).__name__)
            raise
        finally:
            seen.append("left")

    tool = _broken if ends_by == "a tool that raises" else _look
    case = Case(Agent(Script([call(tool.__name__)], ["done"]).model(), name="a", tools=[tool], deps_type=str))
    case.wrap = {"deps_factory": factory}
    case.options = {"usage_limits": UsageLimits(request_limit=1)} if ends_by == "a limit" else {}
    async with aclosing(wrap(case, cache)) as agent:
        handle = await agent.stream("Go!", **case.options)
        async for _ in handle.observe():
            pass

    assert (seen.count("entered"), seen.count("left")) == (1, 1)
    assert len(seen) == (2 if ends_by == "completing" else 3)


async def test_a_factory_that_fails_fails_the_run_without_its_words(cache: Settings | None) -> None:
    def factory(run: RunInfo) -> Deps:
        raise RuntimeError("hunter2")

    case = _with_deps()
    case.wrap = {"deps_factory": factory}
    with pytest.raises(RunFailed) as caught:
        await run_wrapped(case, cache)
    assert caught.value.failure_code == "configuration_error"
    assert "hunter2" not in caught.value.message


async def test_json_that_does_not_fit_the_type_of_the_dependencies_fails_the_run(cache: Settings | None) -> None:
    case = _with_deps()
    case.wrapped = {"deps": {"user": ["hunter2"]}}
    with pytest.raises(RunFailed) as caught:
        await run_wrapped(case, cache)
    assert caught.value.failure_code == "invalid_request"
    assert "hunter2" not in caught.value.message


# Instrumentation


Spans = list[tuple[str, str | None, dict[str, Any]]]

_OWN = ("run_id", "run.id", "agent.call.id", "conversation.id", "conversation_id", "time_to_first")
"""What is of one run only."""


def _telling(exporter: InMemorySpanExporter) -> Spans:
    """The spans by name, with their parents' names and what they tell."""
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans if span.context}
    return sorted(((span.name, _parent(span, names), _told(span)) for span in spans), key=str)


def _parent(span: ReadableSpan, names: dict[int, str]) -> str | None:
    return names.get(span.parent.span_id) if span.parent else None


def _told(span: ReadableSpan) -> dict[str, Any]:
    attributes = dict(span.attributes or {})
    told = {name: value for name, value in attributes.items() if not any(own in name for own in _OWN)}
    return {**told, "status": span.status.status_code.name}


@of_an_attempt
@pytest.mark.parametrize("everywhere", [False, True], ids=["one agent", "all agents"])
async def test_spans_are_those_of_the_bare_agent(cache: Settings | None, everywhere: bool) -> None:
    async def spans(run: Callable[[Case], Any]) -> Spans:
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        settings = InstrumentationSettings(tracer_provider=provider, include_content=False)
        case = tools.several_steps()
        if everywhere:
            Agent.instrument_all(settings)
        else:
            case.agent.instrument = settings
        try:
            await run(case)
        finally:
            Agent.instrument_all(False)
            provider.shutdown()
        return _telling(exporter)

    bare = await spans(lambda case: run_bare(case, streamed=True))
    wrapped = await spans(lambda case: run_wrapped(case, cache))

    assert [name for name, _, _ in wrapped].count("execute_tool add") == 5
    assert [(name, parent) for name, parent, _ in wrapped] == [(name, parent) for name, parent, _ in bare]
    assert wrapped == bare


# What a wrapped agent adds


async def test_a_wrapped_agent_leaves_the_agent_as_it_was(cache: Settings | None) -> None:
    agent: Agent[Any, str] = Agent(Script([call("_look")], ["done"], ["again"]).model(), name="a", tools=[_look])
    await run_wrapped(Case(agent), cache)
    result = await agent.run("Go!")
    assert result.output == "again"
    assert DurableAgent.__name__ not in type(agent).__name__
