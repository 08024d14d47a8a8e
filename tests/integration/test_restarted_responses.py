"""A model response that its provider begins anew in mid-stream: observers see what counts, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai._parts_manager import ModelResponsePartsManager
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings

from durable import create_durable_agent
from durable.chunks import (
    BackgroundTaskStarted,
    Chunk,
    PartTextPayload,
    StepStart,
    TaskPayload,
    TextDelta,
    ToolCall,
    VoidRange,
    encode_body,
)
from durable.execution.turn import Turn
from durable.fold import Folder
from durable.translate import Translator

Step = Callable[[ModelResponsePartsManager], Any]


def text(content: str, part: str = "t") -> Step:
    return lambda parts: parts.handle_text_delta(vendor_part_id=part, content=content)


def thinking(content: str) -> Step:
    return lambda parts: parts.handle_thinking_delta(vendor_part_id="r", content=content)


def call(name: str, args: str, call_id: str) -> Step:
    return lambda parts: [
        parts.handle_tool_call_part(vendor_part_id=call_id, tool_name=name, args=args, tool_call_id=call_id)
    ]


@dataclass(frozen=True)
class Segment:
    """What one connection to the provider brings. A segment of the job before is that job, read again from its start;
    one of another job adds to what is there. All but an answer's last segment leave the job suspended."""

    job: str
    steps: tuple[Step, ...]


def segment(*steps: Step, job: str = "job") -> Segment:
    return Segment(job, steps)


@dataclass
class Stream(StreamedResponse):
    """Streams a segment."""

    steps: tuple[Step, ...] = ()

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for step in self.steps:
            for event in step(self._parts_manager):
                yield event

    @property
    def model_name(self) -> str:
        return "suspending"

    @property
    def provider_name(self) -> str | None:
        return None

    @property
    def provider_url(self) -> str | None:
        return None

    @property
    def timestamp(self) -> datetime:
        return datetime.now(UTC)


class Suspending(Model):
    """Answers with segments, as a provider does that works in the background. Pydantic AI stitches them together."""

    def __init__(self, *answers: list[Segment]) -> None:
        super().__init__()
        self._segments = [(each, each is not answer[-1]) for answer in answers for each in answer]

    async def request(self, *_: Any) -> ModelResponse:
        raise NotImplementedError

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],  # noqa: ARG002 - what is asked does not matter
        model_settings: ModelSettings | None,  # noqa: ARG002
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,  # noqa: ARG002
    ) -> AsyncIterator[StreamedResponse]:
        found, suspended = self._segments.pop(0)
        stream = Stream(model_request_parameters=model_request_parameters, steps=found.steps)
        stream.provider_response_id = found.job
        stream.state = "suspended" if suspended else "complete"
        yield stream

    @property
    def model_name(self) -> str:
        return "suspending"

    @property
    def system(self) -> str:
        return "test"


def shout(word: str) -> str:
    """Say it louder."""
    return word.upper()


async def told(*answers: list[Segment]) -> tuple[Any, list[Chunk]]:
    """What a run returns, and its log."""
    agent = create_durable_agent(Agent(Suspending(*answers), name="suspending", tools=[shout]))
    try:
        handle = await agent.stream("go")
        chunks = [chunk async for chunk in handle.observe()]
        return (await handle.result()).output, chunks
    finally:
        await agent.aclose()


def fold(chunks: list[Chunk]) -> Folder:
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    return folder


def voids(chunks: list[Chunk]) -> list[tuple[int, int]]:
    ranges = [chunk.payload.void for chunk in chunks if isinstance(chunk, StepStart) and chunk.payload.void]
    return [(void.from_, void.to) for void in ranges]


async def test_text_that_begins_anew_counts_once() -> None:
    output, chunks = await told(
        [segment(text("so "), text("far")), segment(text("so "), text("far, "), text("so good"))]
    )
    assert output == "so far, so good"
    assert "".join(chunk.payload.text for chunk in chunks if isinstance(chunk, TextDelta)) == "so farso far, so good"
    folder = fold(chunks)
    assert (folder.text, folder.steps) == ("so far, so good", 1)
    first, second = (chunk for chunk in chunks if isinstance(chunk, StepStart))
    assert (first.payload.step_id, first.payload.message_id) == (second.payload.step_id, second.payload.message_id)
    assert voids(chunks) == [(first.seq, second.seq - 1)]


async def test_thinking_and_calls_that_begin_anew_count_once() -> None:
    output, chunks = await told(
        [
            segment(thinking("Hm"), call("shout", '{"word":"no"}', "c1")),
            segment(thinking("Ah"), call("shout", '{"word":"yes"}', "c2")),
        ],
        [segment(text("done"))],
    )
    assert output == "done"
    folder = fold(chunks)
    assert (folder.reasoning, folder.text) == ("Ah", "done")
    assert [(each.tool_call_id, each.args, each.result) for each in folder.calls.values()] == [
        ("c2", {"word": "yes"}, "YES")
    ]
    assert [chunk.payload.tool_call_id for chunk in chunks if isinstance(chunk, ToolCall)] == ["c2"]


async def test_it_may_begin_anew_more_than_once() -> None:
    output, chunks = await told([segment(text("a")), segment(text("b")), segment(text("c"))])
    assert (output, fold(chunks).text) == ("c", "c")
    assert len(voids(chunks)) == 2


async def by_others(turn: Turn) -> None:
    """Somebody else writes to the log of a run, once that has all that its attempt has said."""
    writer = turn._writer
    await writer.flush()
    store, run_id = writer._sender.store, writer.lease.run_id
    last = await store.redis.hincrby(store.keys.run(run_id), "lastSeq", 1)
    body = encode_body(BackgroundTaskStarted(payload=TaskPayload(task_id="t", tool_name="x", tool_call_id="c")))
    await store.redis.xadd(store.keys.log(run_id), {"c": b"0 " + body}, id=f"0-{last}")


async def test_all_that_was_torn_is_void_though_others_have_written_to_the_log_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a background task does when it ends: from then on an attempt does not know the number of its next chunk."""
    void_step = Turn._void_step

    async def after_others(turn: Turn) -> VoidRange:
        await by_others(turn)
        turn._writer.write(TextDelta(payload=PartTextPayload(id="torn", text="torn")))
        return await void_step(turn)

    monkeypatch.setattr(Turn, "_void_step", after_others)
    output, chunks = await told([segment(text("so "), text("far")), segment(text("so good"))])
    assert output == fold(chunks).text == "so good"
    assert "torn" in [chunk.payload.text for chunk in chunks if isinstance(chunk, TextDelta)]


async def test_nothing_before_a_step_is_void_though_others_have_written_to_the_log_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask_model = Turn._ask_model

    async def after_others(turn: Turn, run: Any, node: Any) -> Any:
        await by_others(turn)
        turn._writer.write(TextDelta(payload=PartTextPayload(id="before", text="before, ")))
        return await ask_model(turn, run, node)

    monkeypatch.setattr(Turn, "_ask_model", after_others)
    output, chunks = await told([segment(text("so "), text("far")), segment(text("so good"))])
    assert (output, fold(chunks).text) == ("so good", "before, so good")


def test_what_stands_before_the_part_that_begins_anew_is_told_again() -> None:
    translator = Translator()
    translator.begin_step(1, "m1")
    for event in (
        PartStartEvent(index=0, part=ThinkingPart("Hm")),
        PartEndEvent(index=0, part=ThinkingPart("Hm, hm", signature="sig")),
        PartStartEvent(index=1, part=TextPart("first")),
        PartDeltaEvent(index=1, delta=TextPartDelta(" words")),
        PartEndEvent(index=1, part=TextPart("first words")),
        PartStartEvent(index=2, part=TextPart("more")),
    ):
        assert not translator.begins_anew(event)
        translator.event(event)
    anew = PartStartEvent(index=1, part=TextPart("second"))
    assert translator.begins_anew(anew)
    chunks = translator.begin_again(1, "m1", VoidRange.model_validate({"from": 1, "to": 9}), anew)
    chunks += translator.event(anew)
    folder = fold([chunk.model_copy(update={"seq": seq}) for seq, chunk in enumerate(chunks, 10)])
    assert (folder.reasoning, folder.text) == ("Hm, hm", "second")
    assert [chunk.type for chunk in chunks].count("reasoning-signature") == 1
    assert not translator.begins_anew(PartStartEvent(index=2, part=TextPart("third")))


@pytest.mark.parametrize(
    "answer",
    [
        [segment(text("one "), text("two", part="u"))],
        [segment(text("one ")), segment(text("two"), job="next")],
        [segment(text("")), segment(text("one "), text("two"))],
        [segment(call("shout", "{}", "c1")), segment(call("shout", '{"word":"ja"}', "c1"))],
        [segment(), segment(text("one"))],
    ],
    ids=["another part", "it adds", "nothing said yet", "the same call in another shape", "nothing at all yet"],
)
async def test_what_is_no_new_beginning_voids_nothing(answer: list[Segment]) -> None:
    _, chunks = await told(answer, [segment(text("done"))])
    assert voids(chunks) == []
