"""The agents that Mastra's client talks to: the same one durable and evented.

Its model follows the script of `tests.scripted_agents`, with these verbs besides:

tell                          says as JSON what it was given
then <tool> <json>;…          calls the tools one after the other, each in a step of its own
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import RunInfo, create_durable_agent, create_evented_agent
from tests.scripted_agents import add, explode, in_background, kill_worker, nap, paint, refund, script, wait

KINDS = ("durable", "evented")


async def tell_or_follow(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """The model."""
    last = messages[-1].parts[-1]
    if isinstance(last, UserPromptPart) and last.content == "tell":
        yield json.dumps(given(messages, info))
        return
    calls = calls_of(messages)
    made = sum(isinstance(message, ModelResponse) for message in messages)
    if made < len(calls):
        name, _, args = calls[made].strip().partition(" ")
        yield {0: DeltaToolCall(name=name, json_args=args, tool_call_id=f"call-{made}")}
        return
    async for piece in script(messages, info):
        yield piece


def calls_of(messages: list[ModelMessage]) -> list[str]:
    """The calls that a prompt wants one after the other."""
    prompts = [part.content for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    first = prompts[0] if prompts else ""
    return first.removeprefix("then ").split(";") if isinstance(first, str) and first.startswith("then ") else []


def given(messages: list[ModelMessage], info: AgentInfo) -> dict[str, Any]:
    """What the model was given."""
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    parts = [part for request in requests for part in request.parts]
    return {
        "instructions": info.instructions,
        "system": [part.content for part in parts if isinstance(part, SystemPromptPart)],
        "prompts": [told_of(part) for part in parts if isinstance(part, UserPromptPart)],
        "returns": [part.content for part in parts if isinstance(part, ToolReturnPart)],
        "settings": {**(info.model_settings or {})},
        "tools": sorted(tool.name for tool in info.function_tools),
    }


def told_of(prompt: UserPromptPart) -> str | list[str]:
    """A prompt's text; of one that is more than that its texts and the types of its files."""
    if isinstance(prompt.content, str):
        return prompt.content
    return [item.media_type if isinstance(item, BinaryContent) else str(item) for item in prompt.content]


async def context(ctx: RunContext[Any]) -> str:
    """Return the dependencies of the run."""
    return json.dumps(ctx.deps)


def deps_of(run: RunInfo) -> Any:
    """What the caller gave."""
    return run.deps


def helper(kind: str) -> Agent[Any, str]:
    """The agent of one kind."""
    agent: Agent[Any, str] = Agent(
        FunctionModel(stream_function=tell_or_follow), name=f"{kind}-helper", instructions="Be of help."
    )
    for tool in (add, explode, kill_worker):
        agent.tool_plain(tool)
    for tool_of_run in (wait, paint, context):
        agent.tool(tool_of_run)
    agent.tool_plain(requires_approval=True)(refund)
    agent.tool_plain(metadata={"durable": in_background})(nap)
    return agent


durable_helper = create_durable_agent(helper("durable"), deps_factory=deps_of)
evented_helper = create_evented_agent(helper("evented"), deps_factory=deps_of)
