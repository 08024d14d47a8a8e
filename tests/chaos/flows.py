"""Flows with people in the loop: an agent, the answers that its calls get, and what has to come of it.

Who executes a flow, and how often that one is lost, is somebody else's business: all that happens follows from the
messages, the answers and the effects.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel
from pydantic_ai import Agent, ApprovalRequired, CallDeferred, RunContext, Tool
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDefinition
from pydantic_ai.toolsets import ApprovalRequiredToolset, ExternalToolset, FunctionToolset

from durable import DurableAgent, create_evented_agent, resume_data, suspend
from durable.decisions import OUT_OF_TIME, Answer
from tests.chaos import effects
from tests.chaos.agents import Piece, act, calling, fetch, requests, scripted

LATE: Final = Answer(kind="fail", actor="nobody")
"""Stands for the answer that nobody gives: the deadline comes."""
CANCEL: Final = Answer(kind="decline", actor="canceller")
"""Stands for the cancel of the background task whose call waits."""


@dataclass(frozen=True)
class Flow:
    """One flow.

    Attributes:
        agent: Its name.
        answers: Which call is answered how, in this order; a call that asks again is there again.
        told: What the calls came to, as the model is told.
        made: How often the body of each call is executed when nothing is torn.
        status: How the run ends.
        together: Whether all calls that wait are answered before the run goes on.
        body: The answer after which a body comes to its end, by its place; None when none does.
        asked: What the run's request has beside its prompt.
    """

    agent: str
    answers: list[tuple[str, Answer]]
    told: dict[str, list[Any]] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    status: str = "completed"
    together: bool = False
    body: int | None = 0
    asked: dict[str, Any] = field(default_factory=dict)


def approve(call: str = "c1", **more: Any) -> tuple[str, Answer]:
    return call, Answer(kind="approve", actor="alice", **more)


def decline(call: str = "c1", reason: str = "no") -> tuple[str, Answer]:
    return call, Answer(kind="decline", reason=reason, actor="alice")


def resume(data: Any, call: str = "c1") -> tuple[str, Answer]:
    return call, Answer(kind="resume", data=data, actor="alice")


def _calling(*calls: tuple[str, dict[str, Any]]) -> FunctionModel:
    """A model that calls these tools at once, and then tells what they came to."""

    def turn(messages: list[ModelMessage]) -> Sequence[Piece]:
        if requests(messages):
            return [_told(messages)]
        return calling(*((name, f"c{number}", args) for number, (name, args) in enumerate(calls, 1)))

    return scripted(turn)


def returns_of(messages: list[ModelMessage]) -> dict[str, list[Any]]:
    """What the calls came to."""
    returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    return {part.tool_call_id: [part.outcome, part.content] for part in returns}


def _told(messages: list[ModelMessage]) -> str:
    return json.dumps(returns_of(messages), sort_keys=True)


# The tools.


async def pay(ctx: RunContext[Any], amount: int) -> str:
    """Something that nobody wants to happen twice."""
    act(ctx)
    await asyncio.sleep(0.002)
    return f"paid {amount}"


def send(ctx: RunContext[Any], to: str) -> str:
    """The same, in a thread."""
    act(ctx)
    return to


class Choice(BaseModel):
    """What a person is asked for."""

    colour: str


async def paint(ctx: RunContext[Any], what: str) -> str:
    """Ask for a colour."""
    act(ctx)
    choice = resume_data(ctx, Choice)
    if choice is None:
        raise suspend({"question": f"which colour for the {what}?"}, resume_schema=Choice)
    return f"{what}: {choice.colour}"


async def guess_it(ctx: RunContext[Any]) -> str:
    """Ask again and again."""
    act(ctx)
    found = resume_data(ctx)
    if found != 2:
        raise suspend({"not": found})
    return "two"


async def sign(ctx: RunContext[Any]) -> str:
    """Ask for a name, and then for an approval of it."""
    act(ctx)
    name = resume_data(ctx)
    if name is None:
        raise suspend({"question": "who signs?"})
    if not ctx.tool_call_approved:
        raise ApprovalRequired(metadata={"by": name})
    return f"signed by {name}"


async def sometimes(ctx: RunContext[Any], n: int) -> int:
    """Ask when it matters."""
    act(ctx)
    if n > 5 and not ctx.tool_call_approved:
        raise ApprovalRequired(metadata={"why": "large"})
    return n


def later(ctx: RunContext[Any]) -> str:
    """Have it done elsewhere."""
    act(ctx)
    raise CallDeferred(metadata={"job": 7})


async def watch(ctx: RunContext[Any]) -> str:
    """Be busy until something else was done."""
    act(ctx)
    async with asyncio.timeout(20):
        while not any(effect.kind == "pay" for effect in effects.of_this_process()):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.005)
    return "seen"


# The agents.


def _ask_first(*tools: Any, **options: Any) -> list[Tool[Any]]:
    return [Tool(tool, requires_approval=True, **options) for tool in tools]


paying = create_evented_agent(Agent(_calling(("pay", {"amount": 500})), name="paying", tools=_ask_first(pay)))
sending = create_evented_agent(
    Agent(
        _calling(("send", {"to": "a"}), ("send", {"to": "b"}), ("fetch", {"n": 1}), ("send", {"to": "c"})),
        name="sending",
        tools=[*_ask_first(send), fetch],
    )
)
painting = create_evented_agent(Agent(_calling(("paint", {"what": "door"})), name="painting", tools=[paint]))
guessing = create_evented_agent(Agent(_calling(("guess_it", {})), name="guessing", tools=_ask_first(guess_it)))
signing = create_evented_agent(Agent(_calling(("sign", {})), name="signing", tools=[sign]))
watching = create_evented_agent(
    Agent(_calling(("watch", {}), ("pay", {"amount": 1})), name="watching", tools=[watch, *_ask_first(pay)])
)

_own = FunctionToolset[Any](tools=[later])
_schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
elsewhere = create_evented_agent(
    Agent(
        _calling(("open_file", {"path": "/x"}), ("later", {}), ("later", {})),
        name="elsewhere",
        toolsets=[ExternalToolset([ToolDefinition(name="open_file", parameters_json_schema=_schema)]), _own],
    )
)
cleaning = create_evented_agent(
    Agent(
        _calling(("send", {"to": "a"}), ("sometimes", {"n": 1}), ("sometimes", {"n": 9})),
        name="cleaning",
        output_type=[str, DeferredToolRequests],
        tools=[sometimes],
        toolsets=[ApprovalRequiredToolset(FunctionToolset[Any](tools=[send]))],
    )
)


def _first_only(_: RunContext[Any], asked: DeferredToolRequests) -> DeferredToolResults:
    return asked.build_results(approvals={call.tool_call_id: True for call in asked.approvals if "a" in str(call.args)})


handled = create_evented_agent(
    Agent(
        _calling(("pay", {"amount": 1}), ("send", {"to": "b"})),
        name="handled",
        tools=_ask_first(pay, send),
        capabilities=[HandleDeferredToolCalls(_first_only)],
    )
)
policed = create_evented_agent(
    Agent(_calling(("send", {"to": "a"}), ("send", {"to": "b"})), name="policed", tools=[send]),
    require_tool_approval=lambda _ctx, _tool, args: bool(args["to"] == "b"),
)


def _late(what: str) -> DurableAgent:
    """An agent whose call is answered by its deadline."""
    metadata = {"durable": {"expires_in": 3600, "on_expiry": what}}
    tools = _ask_first(pay, metadata=metadata)
    return create_evented_agent(Agent(_calling(("pay", {"amount": 5})), name=f"late-{what}", tools=tools))


late_decline, late_approve, late_fail, late_cancel = map(_late, ("decline", "approve", "fail", "cancel"))

asking_back = create_evented_agent(
    Agent(
        _calling(("pay", {"amount": 1}), ("fetch", {"n": 2})),
        name="asking-back",
        tools=[Tool(pay, requires_approval=True, metadata={"durable": {"on_crash": "ask"}}), fetch],
    )
)


def _decide_all(messages: list[ModelMessage]) -> Sequence[Piece]:
    match requests(messages):
        case 0:
            free, approved = ("fetch", "c1", {"n": 1}), ("pay", "c2", {"amount": 5})
            return calling(free, approved, ("paint", "c3", {"what": "door"}), ("send", "c4", {"to": "nobody"}))
        case 1:
            return calling(("pay", "c5", {"amount": 6}))
        case _:
            return [_told(messages)]


deciding = create_evented_agent(
    Agent(scripted(_decide_all), name="deciding", tools=[fetch, paint, *_ask_first(pay, send)]),
)

EVERYTHING: Final = Flow("everything", [])
"""Nobody is asked anything."""
FLOWS: Final[dict[str, Flow]] = {
    "approved": Flow("paying", [approve()], {"c1": ["success", "paid 500"]}, {"c1": 1}),
    "declined": Flow("paying", [decline()], {"c1": ["denied", "no"]}, body=None),
    "with edited arguments": Flow("paying", [approve(args={"amount": 99})], {"c1": ["success", "paid 99"]}, {"c1": 1}),
    "in any order": Flow(
        "sending",
        [approve("c4"), decline("c1"), approve("c2")],
        {"c1": ["denied", "no"], "c2": ["success", "b"], "c3": ["success", {"fetched": 1}], "c4": ["success", "c"]},
        {"c2": 1, "c3": 1, "c4": 1},
    ),
    "with data": Flow("painting", [resume({"colour": "blue"})], {"c1": ["success", "door: blue"]}, {"c1": 2}),
    "again and again": Flow(
        "guessing", [approve(), resume(1), resume(2)], {"c1": ["success", "two"]}, {"c1": 3}, body=2
    ),
    "data, then an approval": Flow(
        "signing", [resume("bob"), approve()], {"c1": ["success", "signed by bob"]}, {"c1": 3}, body=1
    ),
    "made elsewhere": Flow(
        "elsewhere",
        [resume({"content": "hello"}), decline("c3", "lost"), resume(None, "c2")],
        {"c1": ["success", {"content": "hello"}], "c2": ["success", None], "c3": ["denied", "lost"]},
        {"c2": 1, "c3": 1},
        body=None,
    ),
    "Pydantic AI's own": Flow(
        "cleaning",
        [approve("c3"), approve("c1")],
        {"c1": ["success", "a"], "c2": ["success", 1], "c3": ["success", 9]},
        {"c1": 1, "c2": 1, "c3": 2},
    ),
    "handled by the agent": Flow(
        "handled", [approve("c2")], {"c1": ["success", "paid 1"], "c2": ["success", "b"]}, {"c1": 1, "c2": 1}
    ),
    "by a policy": Flow(
        "policed", [approve("c2")], {"c1": ["success", "a"], "c2": ["success", "b"]}, {"c1": 1, "c2": 1}
    ),
    "declined by a deadline": Flow("late-decline", [("c1", LATE)], {"c1": ["denied", OUT_OF_TIME]}, body=None),
    "approved by a deadline": Flow("late-approve", [("c1", LATE)], {"c1": ["success", "paid 5"]}, {"c1": 1}),
    "failed by a deadline": Flow("late-fail", [("c1", LATE)], status="failed", body=None),
    "cancelled by a deadline": Flow("late-cancel", [("c1", LATE)], status="cancelled", body=None),
}
DECIDING: Final = Flow(
    "deciding",
    [approve("c2"), resume({"colour": "blue"}, "c3"), decline("c4"), approve("c5")],
    {
        "c1": ["success", {"fetched": 1}],
        "c2": ["success", "paid 5"],
        "c3": ["success", "door: blue"],
        "c4": ["denied", "no"],
        "c5": ["success", "paid 6"],
    },
    {"c1": 1, "c2": 1, "c3": 2, "c5": 1},
    together=True,
)
"""An approval, a decline and a suspended tool beside one that just runs; and an approval in the next step."""
