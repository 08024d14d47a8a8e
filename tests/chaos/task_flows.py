"""Flows whose calls are made in the background: awaited, deferred, asked about, made again, cancelled, by other agents.

As with people in the loop, all that happens follows from the messages, the answers and the effects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ModelMessage, UserPromptPart
from pydantic_ai.models.function import FunctionModel

from durable import Background, agent_tool, create_evented_agent, tool_context
from tests.chaos import effects
from tests.chaos.agents import Piece, act, calling, fetch, requests, scripted
from tests.chaos.effects import Effect, note
from tests.chaos.flows import CANCEL, Flow, approve, paint, pay, resume, returns_of, send

NEWS: Final = re.compile(
    r"Background task task-\w+ \(tool \w+, call (\w+)\) (completed|failed)(?:\.|:) (.*)", re.DOTALL
)
UNTIL_IDLE: Final[dict[str, Any]] = {"max_idle": 300}
CANCELLED: Final = "The background task was cancelled."


def _heard(messages: list[ModelMessage]) -> str:
    """What the calls came to, as the model was told: by a return, or later as news."""
    found = returns_of(messages)
    for message in messages:
        for part in message.parts:
            news = NEWS.fullmatch(str(part.content)) if isinstance(part, UserPromptPart) else None
            if news is not None:
                found[news[1]] = [news[2], news[3].removeprefix("Its result: ")]
    return json.dumps(found, sort_keys=True)


def _calling(*calls: tuple[str, dict[str, Any]]) -> FunctionModel:
    """A model that calls these tools at once, and then tells in every turn what it knows of them."""

    def turn(messages: list[ModelMessage]) -> Sequence[Piece]:
        if requests(messages):
            return [_heard(messages)]
        return calling(*((name, f"c{number}", args) for number, (name, args) in enumerate(calls, 1)))

    return scripted(turn)


async def flaky(ctx: RunContext[Any]) -> str:
    """Raise once, and then do well."""
    act(ctx)
    key = tool_context(ctx).idempotency_key
    if not any(effect.kind == "raised" and effect.key == key for effect in effects.of_this_process()):
        note(Effect("raised", key))
        raise RuntimeError("once more")
    return "at last"


async def broken(ctx: RunContext[Any]) -> str:
    """Raise every time."""
    act(ctx)
    raise LookupError("lost")


def _tool(body: Any, how: str, *, name: str | None = None, **options: Any) -> Tool[Any]:
    return Tool(body, name=name, metadata={"durable": {"background": how, **options}})


def _helper(name: str, tool: Any, args: dict[str, Any]) -> Any:
    """An agent that others ask."""

    def turn(messages: list[ModelMessage]) -> Sequence[Piece]:
        return ["helped"] if requests(messages) else calling((tool.name, "s1", args))

    return create_evented_agent(Agent(scripted(turn), name=name, tools=[tool]))


helping = _helper("helping", Tool(fetch), {"n": 1})
helping_if_allowed = _helper("helping-if-allowed", Tool(pay, requires_approval=True), {"amount": 2})

_AWAITED: Final = [_tool(pay, "awaited"), _tool(send, "awaited")]
_DEFERRED: Final = [_tool(pay, "deferred"), _tool(send, "deferred")]
_TWO: Final = (("pay", {"amount": 5}), ("send", {"to": "b"}))

awaiting = create_evented_agent(Agent(_calling(*_TWO), name="awaiting", tools=_AWAITED))
deferring = create_evented_agent(Agent(_calling(*_TWO), name="deferring", tools=_DEFERRED))
limited = create_evented_agent(
    Agent(_calling(*_TWO), name="limited", tools=_DEFERRED), background=Background(max_concurrency=1)
)
awaiting_data = create_evented_agent(
    Agent(_calling(("paint", {"what": "door"})), name="awaiting-data", tools=[_tool(paint, "awaited")])
)
deferring_data = create_evented_agent(
    Agent(_calling(("paint", {"what": "door"})), name="deferring-data", tools=[_tool(paint, "deferred")])
)
trying = create_evented_agent(
    Agent(_calling(("flaky", {})), name="trying", tools=[_tool(flaky, "awaited", retries=3, retry_seconds=0.001)])
)
failing = create_evented_agent(Agent(_calling(("broken", {})), name="failing", tools=[_tool(broken, "deferred")]))
asking = create_evented_agent(
    Agent(_calling(("helping", {"prompt": "help"})), name="asking", tools=[agent_tool(helping)])
)
asking_aloud = create_evented_agent(
    Agent(_calling(("helping", {"prompt": "help"})), name="asking-aloud", tools=[agent_tool(helping, nested=True)])
)
asking_later = create_evented_agent(
    Agent(
        _calling(("ask", {"prompt": "help"})),
        name="asking-later",
        tools=[agent_tool(helping_if_allowed, name="ask", background="deferred")],
    )
)
allowed = create_evented_agent(
    Agent(
        _calling(("pay", {"amount": 5})),
        name="allowed",
        tools=[Tool(pay, requires_approval=True, metadata={"durable": {"background": "awaited"}})],
    )
)
delegating = create_evented_agent(
    Agent(
        _calling(
            ("pay", {"amount": 5}),
            ("send", {"to": "b"}),
            ("paint", {"what": "door"}),
            ("flaky", {}),
            ("helping", {"prompt": "help"}),
            ("colour", {"what": "wall"}),
            ("broken", {}),
        ),
        name="delegating",
        tools=[
            _tool(pay, "awaited"),
            _tool(send, "deferred"),
            _tool(paint, "awaited"),
            _tool(flaky, "awaited", retries=3, retry_seconds=0.001),
            agent_tool(helping),
            _tool(paint, "deferred", name="colour"),
            _tool(broken, "deferred"),
        ],
    )
)

_BROKEN: Final = ["failed", "The tool 'broken' raised LookupError."]
TASK_FLOWS: Final[dict[str, Flow]] = {
    "awaited": Flow("awaiting", [], {"c1": ["success", "paid 5"], "c2": ["success", "b"]}, {"c1": 1, "c2": 1}),
    "deferred": Flow(
        "deferring",
        [],
        {"c1": ["completed", "paid 5"], "c2": ["completed", "b"]},
        {"c1": 1, "c2": 1},
        asked=UNTIL_IDLE,
    ),
    "one at a time": Flow(
        "limited",
        [],
        {"c1": ["completed", "paid 5"], "c2": ["completed", "b"]},
        {"c1": 1, "c2": 1},
        asked=UNTIL_IDLE,
    ),
    "awaited, with data": Flow(
        "awaiting-data", [resume({"colour": "blue"})], {"c1": ["success", "door: blue"]}, {"c1": 2}
    ),
    "deferred, with data": Flow(
        "deferring-data",
        [resume({"colour": "blue"})],
        {"c1": ["completed", "door: blue"]},
        {"c1": 2},
        asked=UNTIL_IDLE,
    ),
    "made again": Flow("trying", [], {"c1": ["success", "at last"]}, {"c1": 3}),
    "failed": Flow("failing", [], {"c1": _BROKEN}, {"c1": 1}, asked=UNTIL_IDLE),
    "by another agent": Flow("asking", [], {"c1": ["success", "helped"]}, {"s1": 1}),
    "by another agent that asks": Flow(
        "asking-later", [approve("s1")], {"c1": ["completed", "helped"]}, {"s1": 1}, asked=UNTIL_IDLE
    ),
    "approved before": Flow("allowed", [approve()], {"c1": ["success", "paid 5"]}, {"c1": 1}),
    "awaited, cancelled": Flow("awaiting-data", [("c1", CANCEL)], {"c1": ["failed", CANCELLED]}, {"c1": 1}),
    "deferred, cancelled": Flow(
        "deferring-data", [("c1", CANCEL)], {"c1": ["failed", CANCELLED]}, {"c1": 1}, asked=UNTIL_IDLE
    ),
}
NESTED: Final = Flow("asking-aloud", [], {"c1": ["success", "helped"]}, {"s1": 1})
DELEGATING: Final = Flow(
    "delegating",
    [resume({"colour": "blue"}, "c3"), ("c6", CANCEL)],
    {
        "c1": ["success", "paid 5"],
        "c2": ["completed", "b"],
        "c3": ["success", "door: blue"],
        "c4": ["success", "at last"],
        "c5": ["success", "helped"],
        "c6": ["failed", CANCELLED],
        "c7": _BROKEN,
    },
    {"c1": 1, "c2": 1, "c3": 2, "c4": 3, "s1": 1, "c6": 1, "c7": 1},
    asked=UNTIL_IDLE,
)
"""All of it in one step, and a turn more for what comes late."""
