"""Agents for crashes: whatever they do is noted as an effect, and their models depend on nothing but the messages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelRetry, RunContext, Tool, ToolFailed, ToolReturn
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel

from durable import Goal, GoalVerdict, JudgeContext, TaskCompletion, Tripwire, create_evented_agent, tool_context
from tests.chaos.effects import Effect, note

Piece = str | dict[int, DeltaToolCall] | dict[int, DeltaThinkingPart]
Turn = Callable[[list[ModelMessage]], Sequence[Piece]]


def calling(*calls: tuple[str, str, dict[str, Any]]) -> list[Piece]:
    """The pieces of calls, each as tool, call id and arguments; the arguments come in two halves."""
    pieces: list[Piece] = []
    for index, (tool, call_id, args) in enumerate(calls):
        text = json.dumps(args)
        pieces.append({index: DeltaToolCall(name=tool, json_args=text[:4], tool_call_id=call_id)})
        pieces.append({index: DeltaToolCall(json_args=text[4:])})
    return pieces


def scripted(turn: Turn) -> FunctionModel:
    """A model that says what the messages call for. Each piece is a chunk of its own: it lets the log get on."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Any]:
        note(Effect("model", str(requests(messages))))
        for piece in turn(messages):
            await asyncio.sleep(0.001)
            yield piece

    return FunctionModel(stream_function=stream, model_name="scripted")


def requests(messages: list[ModelMessage]) -> int:
    """How many responses there are."""
    return sum(isinstance(message, ModelResponse) for message in messages)


def prompt_of(messages: list[ModelMessage]) -> str:
    """What the user said."""
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    return next(str(part.content) for part in parts if isinstance(part, UserPromptPart))


def act(ctx: RunContext[Any], part: str = "") -> None:
    """Note the effect of the tool that is being called, or of a part of it."""
    call = tool_context(ctx)
    note(Effect(call.tool_name, call.idempotency_key + part, call.attempt))


# Everything that a run may have.


class Report(BaseModel):
    """What `everything` returns."""

    title: str
    score: int


async def fetch(ctx: RunContext[Any], n: int) -> dict[str, int]:
    """An asynchronous tool."""
    act(ctx)
    await asyncio.sleep(0.002)
    return {"fetched": n}


def weigh(ctx: RunContext[Any], what: str) -> Decimal:
    """A synchronous tool."""
    act(ctx)
    return Decimal("1.50") * len(what)


async def stamp(ctx: RunContext[Any]) -> date:
    """A slower one."""
    act(ctx)
    await asyncio.sleep(0.006)
    return date(2026, 2, 28)


async def break_down(ctx: RunContext[Any]) -> str:
    """A tool that tells the model that it failed."""
    act(ctx)
    raise ToolFailed("the printer is on fire")


async def guess(ctx: RunContext[Any], n: int) -> str:
    """A tool that wants another try."""
    act(ctx)
    if n < 5:
        raise ModelRetry("too small")
    return f"guessed {n}"


def _everything(messages: list[ModelMessage]) -> Sequence[Piece]:
    match requests(messages):
        case 0:
            thoughts: list[Piece] = [{0: DeltaThinkingPart(content=word)} for word in ("Let me ", "think.")]
            calls = calling(("fetch", "c1", {"n": 1}), ("weigh", "c2", {"what": "tea"}), ("stamp", "c3", {}))
            return [*thoughts, "I will ", "look.", *_moved(calls, 2)]
        case 1:
            calls = calling(("break_down", "c4", {}), ("guess", "c5", {"n": 1}), ("fetch", "c6", {"n": "no number"}))
            return ["Now ", "the rest.", *_moved(calls, 1)]
        case 2:
            return calling(("guess", "c7", {"n": 7}), ("fetch", "c8", {"n": 8}))
        case 3:
            return ["Done, ", "I think.", *_moved(calling(("final_result", "c9", {"title": "draft", "score": 1})), 1)]
        case _:
            return calling(("final_result", "c10", {"title": "final", "score": 9}))


def _moved(pieces: list[Piece], by: int) -> list[Piece]:
    """The pieces as later parts of their response."""
    return [{index + by: part for index, part in piece.items()} for piece in pieces if isinstance(piece, dict)]  # type: ignore[misc]


def _validate(output: Report) -> Report:
    if output.score < 5:
        raise ModelRetry("the score is too low")
    return output


_all = Agent(
    scripted(_everything),
    name="everything",
    output_type=Report,
    tools=[fetch, weigh, stamp, break_down, guess],
    retries=3,
)
_all.output_validator(_validate)
everything = create_evented_agent(_all)


# Values of all kinds.


@dataclass
class Point:
    """A dataclass."""

    x: int
    when: date


class Order(BaseModel):
    """A pydantic model."""

    price: Decimal
    lines: list[str]


VALUES: Final[dict[str, Any]] = {
    "none": None,
    "text": 'ä "quoted" \u2028 line',
    "integer": 2**53 + 1,
    "date": date(2026, 2, 28),
    "datetime": datetime(2026, 2, 28, 12, 30, tzinfo=UTC),
    "decimal": Decimal("1.50"),
    "dataclass": Point(1, date(2026, 2, 28)),
    "model": Order(price=Decimal("9.90"), lines=["tea"]),
    "binary": BinaryContent(b"\x89PNG\x00\xff", media_type="image/png"),
    "bytes": b"\x00\xff raw",
    "nan": float("nan"),
    "infinity": [1.0, float("inf")],
    "mixed": ["see", BinaryContent(b"\x00", media_type="application/pdf"), {"n": [1, None, True]}],
    "tool-return": ToolReturn(
        return_value={"n": Decimal("2.50")},
        content=["look", BinaryContent(b"\x01", media_type="image/png")],
        metadata={"seen": True},
    ),
}


async def give(ctx: RunContext[Any], kind: str) -> Any:
    """Return a value of a kind."""
    act(ctx)
    return VALUES[kind]


def _seen(messages: list[ModelMessage]) -> Sequence[Piece]:
    """Say all that the model can see of the value, beside its type."""
    if not requests(messages):
        return calling(("give", "c1", {"kind": prompt_of(messages)}))
    last = messages[-1]
    assert isinstance(last, ModelRequest)
    return [
        " / ".join(
            part.model_response_str() if isinstance(part, ToolReturnPart) else _shown(part)
            for part in last.parts
            if isinstance(part, ToolReturnPart | UserPromptPart)
        )
    ]


def _shown(part: UserPromptPart) -> str:
    """What a tool's return has beside its value."""
    contents = [part.content] if isinstance(part.content, str) else part.content
    return " ".join(item if isinstance(item, str) else f"{item.media_type} {item.data!r}" for item in contents)  # type: ignore[union-attr]


giver = create_evented_agent(Agent(scripted(_seen), name="giver", tools=[give]))


# Long ones, stubborn ones, careful ones.


async def tick(ctx: RunContext[Any]) -> str:
    """A tool that is called once a step, each time under the same call id."""
    act(ctx)
    return "tock " * 20


def _ticking(messages: list[ModelMessage]) -> Sequence[Piece]:
    return calling(("tick", "again", {})) if requests(messages) < int(prompt_of(messages)) else ["the ", "end"]


ticking = create_evented_agent(Agent(scripted(_ticking), name="ticking", tools=[tick]), max_steps=200)


async def refuse(ctx: RunContext[Any]) -> str:
    """A tool that is never content."""
    act(ctx)
    raise ModelRetry("again")


stubborn = create_evented_agent(
    Agent(scripted(lambda _: calling(("refuse", "c", {}))), name="stubborn", tools=[refuse], retries=2)
)


async def lose(ctx: RunContext[Any]) -> str:
    """A tool that raises."""
    act(ctx)
    raise LookupError("lost")


losing = create_evented_agent(Agent(scripted(lambda _: calling(("lose", "c", {}))), name="losing", tools=[Tool(lose)]))


async def charge(ctx: RunContext[Any]) -> str:
    """A tool that must not be repeated."""
    act(ctx)
    return "charged"


def _charging(messages: list[ModelMessage]) -> Sequence[Piece]:
    return ["so be it"] if requests(messages) else calling(("charge", "c1", {}), ("fetch", "c2", {"n": 2}))


careful = create_evented_agent(
    Agent(
        scripted(_charging),
        name="careful",
        tools=[Tool(charge, metadata={"durable": {"on_crash": "fail"}}), fetch],
    )
)


_asking = {"durable": {"on_crash": "ask", "expires_in": 3600}}
doubting = create_evented_agent(
    Agent(scripted(_charging), name="doubting", tools=[Tool(charge, metadata=_asking), fetch])
)


async def die(ctx: RunContext[Any]) -> str:
    """End the process as a crash would, after a while."""
    act(ctx)
    await asyncio.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


poison = create_evented_agent(Agent(scripted(lambda _: calling(("die", "c", {}))), name="poison", tools=[die]))


async def _speak(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    """Say as many words as the prompt says, 10 ms each."""
    for number in range(int(prompt_of(messages))):
        await asyncio.sleep(0.01)
        yield f"w{number} "


speaker = create_evented_agent(Agent(FunctionModel(stream_function=_speak, model_name="scripted"), name="speaker"))


def _talking(messages: list[ModelMessage]) -> Sequence[Piece]:
    last = messages[-1]
    if any(isinstance(part, ToolReturnPart) for part in last.parts):
        return ["I have heard ", f"{sum(isinstance(message, ModelRequest) for message in messages)} requests"]
    return calling(("fetch", "c", {"n": 1}))


talker = create_evented_agent(Agent(scripted(_talking), name="talker", tools=[fetch]))
# Judged by all that may judge a run.


def admit(ctx: JudgeContext, _: Sequence[ModelMessage]) -> None:
    """An input guardrail that lets everything pass."""
    note(Effect("input-guardrail", "1", ctx.attempt))


async def second_draft(ctx: JudgeContext, output: str) -> bool:
    """A scorer that is content with the second draft."""
    note(Effect("scorer", str(ctx.iteration), ctx.attempt))
    return output != "draft 1"


async def third_draft(ctx: JudgeContext, _: str, output: str) -> GoalVerdict:
    """A judge that wants the third one, and first of all asks somebody if the prompt says so."""
    note(Effect("goal", str(ctx.iteration), ctx.attempt))
    if ctx.iteration == 1 and prompt_of(list(ctx.messages)) == "wait":
        return GoalVerdict(status="waiting", reason="really?")
    return GoalVerdict(status="done" if output == "draft 3" else "continue", reason=f"{output} was read")


async def give_out(ctx: JudgeContext, output: str) -> Tripwire | None:
    """An output guardrail that stops what the prompt tells it to."""
    note(Effect("output-guardrail", "1", ctx.attempt))
    return Tripwire(f"{output} is stopped") if prompt_of(list(ctx.messages)) == "stop" else None


def _drafting(messages: list[ModelMessage]) -> Sequence[Piece]:
    number = requests(messages)
    return ["draft ", str(number)] if number else calling(("fetch", "c1", {"n": 1}))


judged = create_evented_agent(
    Agent(scripted(_drafting), name="judged", tools=[fetch]),
    input_guardrails=[admit],
    output_guardrails=[give_out],
    completion=TaskCompletion([second_draft]),
    goal=Goal("three drafts", third_draft),
)
