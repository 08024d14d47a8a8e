"""Agents with tools of every kind."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastmcp.client.transports import StdioTransport
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext, Tool, ToolFailed, ToolReturn
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import BinaryContent, ModelRequest, UserPromptPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from tests.parity.case import Case, Script, call
from tests.parity.mcp_server import server

MCP_SERVER = Path(__file__).with_name("mcp_server.py")


def tool_words(messages: list[Any], info: Any) -> list[str]:
    """What the last tools returned, as the model reads it."""
    last = messages[-1]
    assert isinstance(last, ModelRequest)
    return [" | ".join(part.model_response_str() for part in last.parts if part.part_kind == "tool-return") or "-"]


def tool_names(messages: list[Any], info: Any) -> list[str]:
    """The tools that the model may call, as it is told."""
    return [" ".join(f"{tool.name}({tool.description})" for tool in info.function_tools)]


def a_sync_tool() -> Case:
    def double(n: int) -> int:
        return n * 2

    return Case(Agent(Script([call("double", n=21)], tool_words).model(), name="a", tools=[double]))


def an_async_tool() -> Case:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return n * 2

    return Case(Agent(Script(["Let me see.", call("double", n=21)], tool_words).model(), name="a", tools=[double]))


@dataclass
class Shop:
    """Dependencies."""

    name: str
    prices: dict[str, float]


def tools_with_dependencies() -> Case:
    agent = Agent(
        Script([call("price", "c1", item="tea"), call("shop", "c2")], tool_words).model(), name="a", deps_type=Shop
    )

    @agent.tool
    async def price(ctx: RunContext[Shop], item: str) -> float:
        return ctx.deps.prices[item]

    @agent.tool
    def shop(ctx: RunContext[Shop]) -> str:
        return f"{ctx.deps.name} {ctx.tool_name} {ctx.tool_call_id} {ctx.retry} {ctx.run_step} {ctx.usage.requests}"

    deps = Shop("Corner", {"tea": 1.5})
    return Case(agent, deps=deps, wrapped={"deps": {"name": "Corner", "prices": {"tea": 1.5}}})


def parallel_tools() -> Case:
    met = asyncio.Barrier(3)

    async def meet(name: str) -> str:
        await asyncio.wait_for(met.wait(), 10)  # each waits for the others: alone it never returns
        return name

    calls = [call("meet", f"c{n}", name=name) for n, name in enumerate("abc")]
    return Case(Agent(Script(calls, tool_words).model(), name="a", tools=[meet]))


def sequential_tools() -> Case:
    notes: list[Any] = []

    async def one_by_one(name: str) -> str:
        notes.append(f"{name} begins")
        await asyncio.sleep(0.01)
        notes.append(f"{name} ends")
        return name

    calls = [call("one_by_one", f"c{n}", name=name) for n, name in enumerate("abc")]
    tool = Tool(one_by_one, sequential=True)
    return Case(Agent(Script(calls, tool_words).model(), name="a", tools=[tool]), notes=notes)


def several_steps() -> Case:
    def add(a: int, b: int) -> int:
        return a + b

    turns = [[call("add", f"c{n}", a=n, b=n)] for n in range(5)]
    return Case(Agent(Script(*turns, tool_words).model(), name="a", tools=[add]))


def the_same_call_id_in_every_step() -> Case:
    def add(a: int, b: int) -> int:
        return a + b

    turns = [[call("add", "same", a=n, b=n)] for n in range(3)]
    return Case(Agent(Script(*turns, tool_words).model(), name="a", tools=[add]))


def a_toolset_without_an_id() -> Case:
    def greet(name: str) -> str:
        return f"Hello {name}"

    toolset: FunctionToolset[Any] = FunctionToolset([greet])
    return Case(Agent(Script([call("greet", name="Ann")], tool_words).model(), name="a", toolsets=[toolset]))


def a_dynamic_toolset() -> Case:
    agent: Agent[Any, str] = Agent(
        Script([call("one")], lambda m, i: [*tool_words(m, i), call("two", "c2")], tool_words).model(), name="a"
    )

    @agent.toolset
    def by_step(ctx: RunContext[Any]) -> AbstractToolset[Any]:
        def one() -> str:
            return "first"

        def two() -> str:
            return "second"

        return FunctionToolset([one if ctx.run_step <= 1 else two])

    return Case(agent)


def a_dynamic_toolset_once_a_run() -> Case:
    agent: Agent[Any, str] = Agent(Script([call("count")], [call("count", "c2")], tool_words).model(), name="a")

    @agent.toolset(per_run_step=False)
    async def counting(ctx: RunContext[Any]) -> AbstractToolset[Any]:
        counts: list[int] = []

        def count() -> int:
            counts.append(1)
            return len(counts)

        return FunctionToolset([count])

    return Case(agent)


def an_mcp_toolset() -> Case:
    transport = StdioTransport(command=sys.executable, args=[str(MCP_SERVER)])
    toolset: MCPToolset[Any] = MCPToolset(transport)
    turns = Script([call("roll", "c1", sides=6), call("shout", "c2", text="hi")], [call("broken", "c3")], tool_words)
    return Case(Agent(turns.model(), name="a", toolsets=[toolset]))


def an_mcp_toolset_of_this_process_with_a_prefix() -> Case:
    toolset: AbstractToolset[Any] = MCPToolset(server).prefixed("dice")
    turns = Script([call("dice_roll", sides=6)], tool_words)
    return Case(Agent(turns.model(), name="a", toolsets=[toolset]))


def a_filtered_toolset() -> Case:
    toolset = three().filtered(lambda ctx, tool: tool.name != "b" or ctx.run_step > 1)
    return Case(
        Agent(Script(lambda m, i: [*tool_names(m, i), call("a")], tool_names).model(), name="a", toolsets=[toolset])
    )


def a_prepared_toolset() -> Case:
    async def prepare(ctx: RunContext[Any], tools: list[ToolDefinition]) -> list[ToolDefinition]:
        return [replace(tool, description=f"{tool.name} in step {ctx.run_step}") for tool in tools]

    script = Script(lambda m, i: [*tool_names(m, i), call("a")], tool_names)
    return Case(Agent(script.model(), name="a", toolsets=[three().prepared(prepare)]))


def a_renamed_and_prefixed_toolset() -> Case:
    toolset = three().renamed({"first": "a"}).prefixed("my")
    script = Script(lambda m, i: [*tool_names(m, i), call("my_first")], tool_words)
    return Case(Agent(script.model(), name="a", toolsets=[toolset]))


def three() -> FunctionToolset[Any]:
    """A toolset of three tools."""

    def a() -> str:
        return "A"

    def b() -> str:
        return "B"

    def c() -> str:
        return "C"

    return FunctionToolset([a, b, c])


def a_tool_that_prepares_itself() -> Case:
    async def only_later(ctx: RunContext[Any], tool: ToolDefinition) -> ToolDefinition | None:
        return tool if ctx.run_step > 1 else None

    def first() -> str:
        return "1"

    def later() -> str:
        return "2"

    script = Script(lambda m, i: [*tool_names(m, i), call("first")], lambda m, i: [*tool_names(m, i)])
    return Case(Agent(script.model(), name="a", tools=[first, Tool(later, prepare=only_later)]))


def an_agent_that_is_asked_by_a_tool() -> Case:
    other: Agent[Any, str] = Agent(Script(["eight words that another agent says to us"]).model(), name="other")

    async def ask(ctx: RunContext[Any]) -> str:
        result = await other.run("Please!", usage=ctx.usage)
        return result.output

    async def count(ctx: RunContext[Any]) -> str:
        ctx.usage.input_tokens += 1000
        if ctx.retry == 0:
            raise ModelRetry("again")
        return "counted"

    turns = Script([call("ask", "c1"), call("count", "c2")], [call("count", "c3")], tool_words)
    agent: Agent[Any, str] = Agent(turns.model(), name="a")
    agent.tool(ask)
    agent.tool(count)
    return Case(agent)


def tools_that_enqueue_messages() -> Case:
    async def remark(ctx: RunContext[Any], priority: Any, whole: bool) -> str:
        words = f"{priority} {whole}"
        ctx.enqueue(ModelRequest(parts=[UserPromptPart(words)]) if whole else words, priority=priority)
        return "remarked"

    kinds = [("asap", True), ("asap", False), ("when_idle", True), ("when_idle", False)]
    calls = [call("remark", f"c{n}", priority=kind, whole=whole) for n, (kind, whole) in enumerate(kinds)]
    turns = Script(calls, [call("remark", "c9", priority="asap", whole=False)], ["done"], ["so be it"], ["really done"])
    agent: Agent[Any, str] = Agent(turns.model(), name="a")
    agent.tool(remark)
    return Case(agent)


def a_tool_that_asks_for_another_try() -> Case:
    notes: list[Any] = []

    def guess(ctx: RunContext[Any], n: int) -> str:
        notes.append((n, ctx.retry, ctx.last_attempt))
        if n != 7:
            raise ModelRetry(f"{n} is wrong")
        return "right"

    script = Script([call("guess", "c1", n=3)], [call("guess", "c2", n=5)], [call("guess", "c3", n=7)], tool_words)
    agent: Agent[Any, str] = Agent(script.model(), name="a", retries=3)
    agent.tool(guess)
    return Case(agent, notes=notes)


def arguments_that_do_not_fit() -> Case:
    def double(n: int) -> int:
        return n * 2

    broken = call("double", "c2")
    broken.args = '{"n": 4'
    script = Script([call("double", "c1", n="four")], [broken], [call("double", "c3", n=4)], tool_words)
    return Case(Agent(script.model(), name="a", tools=[double], retries=3))


def a_tool_that_is_not_there() -> Case:
    def double(n: int) -> int:
        return n * 2

    script = Script([call("triple", "c1", n=1)], [call("double", "c2", n=1)], tool_words)
    return Case(Agent(script.model(), name="a", tools=[double]))


def a_tool_that_says_it_failed() -> Case:
    def fragile() -> str:
        raise ToolFailed("no luck today")

    script = Script([call("fragile")], tool_words)
    return Case(Agent(script.model(), name="a", tools=[fragile]))


class Weather(BaseModel):
    """A rich value."""

    city: str
    at: datetime
    tags: set[str]


def rich_tool_returns() -> Case:
    def weather() -> Weather:
        return Weather(city="Rome", at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), tags={"sunny"})

    def shop() -> Shop:
        return Shop("Corner", {"tea": 1.5})

    def nothing() -> None:
        return None

    def text() -> str:
        return "half 🙂 \u2028 line"

    names = ("weather", "shop", "nothing", "text")
    calls = [call(name, f"c{n}") for n, name in enumerate(names)]
    return Case(Agent(Script(calls, tool_words).model(), name="a", tools=[weather, shop, nothing, text]))


def a_tool_that_returns_more_than_a_value() -> Case:
    def look() -> ToolReturn:
        picture = BinaryContent(b"\x89PNG", media_type="image/png")
        return ToolReturn(return_value="seen", content=["Here it is:", picture], metadata={"private": 1})

    return Case(Agent(Script([call("look")], ["nice"]).model(), name="a", tools=[look]))


def a_tool_that_returns_a_picture() -> Case:
    def look() -> BinaryContent:
        return BinaryContent(b"\x89PNG\xff\x00", media_type="image/png")

    return Case(Agent(Script([call("look")], ["nice"]).model(), name="a", tools=[look]))


def a_tool_that_uses_the_run() -> Case:
    agent: Agent[Any, str] = Agent(Script([call("peek")], tool_words).model(), name="a")

    @agent.tool
    def peek(ctx: RunContext[Any]) -> str:
        prompt = ctx.prompt
        return f"{prompt} {len(ctx.messages)} {ctx.model.model_name} {ctx.agent.name if ctx.agent else ''}"

    return Case(agent)


CASES = [
    a_sync_tool,
    an_async_tool,
    tools_with_dependencies,
    parallel_tools,
    sequential_tools,
    several_steps,
    the_same_call_id_in_every_step,
    a_toolset_without_an_id,
    a_dynamic_toolset,
    a_dynamic_toolset_once_a_run,
    an_mcp_toolset,
    an_mcp_toolset_of_this_process_with_a_prefix,
    a_filtered_toolset,
    a_prepared_toolset,
    a_renamed_and_prefixed_toolset,
    a_tool_that_prepares_itself,
    an_agent_that_is_asked_by_a_tool,
    tools_that_enqueue_messages,
    a_tool_that_asks_for_another_try,
    arguments_that_do_not_fit,
    a_tool_that_is_not_there,
    a_tool_that_says_it_failed,
    rich_tool_returns,
    a_tool_that_returns_more_than_a_value,
    a_tool_that_returns_a_picture,
    a_tool_that_uses_the_run,
]
