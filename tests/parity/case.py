"""One agent to run twice, bare and wrapped, and what came of it in a form that can be compared."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ToolCallPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import DurableAgent, RunResult, create_durable_agent
from durable.chunks import Chunk, Usage
from durable.settings import Settings
from durable.translate.steps import usage_of

Part = str | ToolCallPart
Turn = Sequence[Part] | Callable[[list[ModelMessage], AgentInfo], Sequence[Part]]

# What differs between any two runs, also of the bare agent.
_OWN = frozenset({"timestamp", "run_id", "conversation_id", "duration"})


def call(tool: str, call_id: str = "c1", /, **args: Any) -> ToolCallPart:
    """A call that the model makes."""
    part = ToolCallPart(tool, args, tool_call_id=call_id)
    part.args = part.args_as_json_str()
    return part


class Script:
    """A model that says, whatever it is told, one turn after the other; for one run.

    Attributes:
        asked: What it was given, request by request.
    """

    def __init__(self, *turns: Turn) -> None:
        self.asked: list[tuple[list[ModelMessage], AgentInfo]] = []
        self._turns = turns

    def model(self, **options: Any) -> FunctionModel:
        """The model, for streamed and for plain requests."""
        return FunctionModel(self._respond, stream_function=self._stream, model_name="scripted", **options)

    def _turn(self, messages: list[ModelMessage], info: AgentInfo) -> Sequence[Part]:
        turn = self._turns[len(self.asked)]
        self.asked.append((list(messages), info))
        return turn(messages, info) if callable(turn) else turn

    async def _respond(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts: list[ModelResponsePart] = [
            TextPart(part) if isinstance(part, str) else part for part in self._turn(messages, info)
        ]
        return ModelResponse(parts=parts)

    async def _stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        for index, part in enumerate(self._turn(messages, info)):
            if isinstance(part, str):
                half = len(part) // 2
                yield part[:half]
                yield part[half:]
            else:
                args = part.args_as_json_str()
                yield {index: DeltaToolCall(part.tool_name, args[:5], tool_call_id=part.tool_call_id)}
                yield {index: DeltaToolCall(json_args=args[5:])}


@dataclass
class Case:
    """An agent, and how to run it.

    Attributes:
        agent: The agent; for one run.
        prompt: What the user says.
        options: Of both runs.
        deps: Of the bare run.
        bare: Options of the bare run only.
        wrap: Options of `create_durable_agent`.
        wrapped: Options of the wrapped run only.
        notes: What the agent's own code noted; has to be equal too.
    """

    agent: Agent[Any, Any]
    prompt: Any = "Go!"
    options: dict[str, Any] = field(default_factory=dict)
    deps: Any = None
    bare: dict[str, Any] = field(default_factory=dict)
    wrap: dict[str, Any] = field(default_factory=dict)
    wrapped: dict[str, Any] = field(default_factory=dict)
    notes: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    output: Any
    kind: type
    messages: list[Any]
    new_messages: list[Any]
    usage: Usage
    notes: list[Any]


def plain(messages: Sequence[ModelMessage]) -> list[Any]:
    """Messages as JSON, without what differs from run to run."""
    return [_without(message) for message in ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")]


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(item) for name, item in value.items() if name not in _OWN}
    if isinstance(value, list):
        return [_without(item) for item in value]
    return value


async def run_bare(case: Case, *, streamed: bool) -> Outcome:
    """Run the agent itself; with its responses streamed, as a wrapped agent has them, or whole."""
    handler = _drain if streamed else None
    result = await case.agent.run(
        case.prompt, deps=case.deps, event_stream_handler=handler, **case.options, **case.bare
    )
    return Outcome(
        output=result.output,
        kind=type(result.output),
        messages=plain(result.all_messages()),
        new_messages=plain(result.new_messages()),
        usage=usage_of(result.usage),
        notes=case.notes,
    )


async def _drain(_: RunContext[Any], events: AsyncIterable[Any]) -> None:
    async for _ in events:
        pass


async def run_wrapped(case: Case, cache: Settings | None) -> tuple[Outcome, list[Chunk]]:
    """Run the wrapped agent; what came of it, and its chunks."""
    async with aclosing(wrap(case, cache)) as agent:
        handle = await agent.stream(case.prompt, **case.options, **case.wrapped)
        result: RunResult = await handle.result()
        chunks = [chunk async for chunk in handle.observe()]
    outcome = Outcome(
        output=result.output,
        kind=type(result.output),
        messages=plain(result.all_messages()),
        new_messages=plain(result.new_messages()),
        usage=result.usage,
        notes=case.notes,
    )
    return outcome, chunks


def wrap(case: Case, cache: Settings | None) -> DurableAgent:
    """The wrapped agent."""
    return create_durable_agent(case.agent, cache=cache, **case.wrap)
