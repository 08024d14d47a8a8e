"""What a running tool says reaches the log, from threads and coroutines, and never more at once than may wait."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import Settings, create_durable_agent, emit, emit_sync
from durable.chunks import Finish, ToolError, ToolOutput
from durable.tools import CALL


async def call_once(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    if len(messages) == 1:
        yield {0: DeltaToolCall(name="speak", json_args="{}", tool_call_id="c1")}
    else:
        yield "spoken"


async def test_a_synchronous_tool_speaks_from_its_thread(settings: Settings) -> None:
    agent = Agent(FunctionModel(stream_function=call_once), name="speaking")

    @agent.tool
    def speak(ctx: RunContext[object]) -> str:
        for number in range(3):
            emit_sync(ctx, {"page": number})
        return "done"

    durable = create_durable_agent(agent, cache=settings)
    handle = await durable.stream("go")
    outputs = [chunk.payload.output async for chunk in handle if isinstance(chunk, ToolOutput)]
    await durable.aclose()

    assert outputs == [{"page": 0}, {"page": 1}, {"page": 2}]


async def test_speaking_synchronously_in_the_event_loop_is_refused_instead_of_hanging(settings: Settings) -> None:
    agent = Agent(FunctionModel(stream_function=call_once), name="speaking")

    @agent.tool
    async def speak(ctx: RunContext[object]) -> str:
        emit_sync(ctx, "never")
        return "done"

    durable = create_durable_agent(agent, cache=settings)
    handle = await durable.stream("go")
    chunks = [chunk async for chunk in handle]
    await durable.aclose()

    assert not [chunk for chunk in chunks if isinstance(chunk, ToolOutput)]
    assert chunks[-1].final is True
    assert isinstance(chunks[-1], Finish)
    assert chunks[-1].payload.step_result.reason == "error"


async def test_a_tool_that_says_much_waits_while_too_much_waits_for_redis(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_buffer_bytes": 65_536})
    agent = Agent(FunctionModel(stream_function=call_once), name="speaking")
    full: list[bool] = []

    @agent.tool
    async def speak(ctx: RunContext[object]) -> str:
        writer = CALL.get().room.__self__  # type: ignore[attr-defined]  # the run's writer
        for _ in range(20):
            await emit(ctx, "x" * 50_000)
            full.append(writer.full)
        return "done"

    durable = create_durable_agent(agent, cache=settings)
    handle = await durable.stream("go")
    chunks = [chunk async for chunk in handle]
    await durable.aclose()

    assert sum(isinstance(chunk, ToolOutput) for chunk in chunks) == 20
    assert not any(isinstance(chunk, ToolError) for chunk in chunks)
    assert full == [False] * 20
