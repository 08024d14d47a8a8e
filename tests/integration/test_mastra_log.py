"""What a reader of Mastra's door is told of a run, and who waits for one: at the log itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse

from api.mastra import tools
from api.mastra.framing import DONE
from api.mastra.log import told
from api.mastra.outcome import CLOSED, outcome
from api.mastra.problems import Refused
from api.mastra.runs import post_generate
from durable.backend import Backend
from durable.chunks import ObjectChunk, StepStart, StepStartPayload, VoidRange
from durable.errors import StoreUnavailable
from durable.settings import Settings
from durable.store import Store, text
from tests.conftest import eventually
from tests.scripted_agents import scripted
from tests.workbench import Workbench, completed, delta, finish, new_run, step_start


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    """One process without an engine."""
    async with Workbench(settings) as found:
        yield found


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[Backend]:
    """What reads."""
    async with Backend(Store.of(settings), settings, celery=False) as found:
        yield found


@asynccontextmanager
async def executing(settings: Settings) -> AsyncIterator[Backend]:
    """A process that executes runs of the scripted agent by itself."""
    definition = scripted.definition
    async with Backend(Store.of(settings), settings, {definition.name: definition}, celery=False) as found:
        yield found


def caller(*, gone: bool = False) -> Request:
    """Somebody who waits, or has gone."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect" if gone else "http.request", "body": b"", "more_body": False}

    return Request({"type": "http"}, receive)


def voiding(first: int, last: int) -> StepStart:
    """A step that takes a range back."""
    void = VoidRange.model_validate({"from": first, "to": last})
    payload = StepStartPayload(step_id="step-1", message_id="m2", started_at=0, request={}, void=void)
    return StepStart(payload=payload)


def chunks(pieces: list[bytes]) -> list[Any]:
    blocks = b"".join(pieces).replace(DONE, b"").split(b"\n\n")
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks if block]


def texts(pieces: list[bytes]) -> list[str]:
    return [chunk["payload"]["text"] for chunk in chunks(pieces) if chunk["type"] == "text-delta"]


async def test_a_response_ends_before_what_takes_back_its_words(bench: Workbench, backend: Backend) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    for chunk in (step_start(), delta("torn")):
        writer.write(chunk)
    await writer.flush()
    record = await backend.runs.get(run_id)
    live, late = told(backend, record, 0), told(backend, record, 2)
    pieces = [await anext(live)]
    # The delta, the step that takes it back and what follows are one entry: the response ends inside of it.
    for chunk in (delta("more"), voiding(1, 3), delta("whole")):
        writer.write(chunk)
    await writer.flush()
    pieces += [piece async for piece in live]
    assert (texts(pieces), DONE in b"".join(pieces)) == (["torn", "more"], False)
    # One that has told none of these words goes on.
    assert texts([await anext(late)]) == ["more"]
    await late.aclose()

    writer.write(finish())
    await writer.finish(completed())
    pieces = [piece async for piece in told(backend, await backend.runs.get(run_id), 0)]
    assert texts(pieces) == ["", "", "whole"]
    assert [chunk["type"] for chunk in chunks(pieces)] == [
        "step-start", "text-delta", "text-delta", "step-start", "text-delta", "finish",
    ]  # fmt: skip
    assert pieces[-1] == DONE


async def test_an_object_that_does_not_count_keeps_its_place(bench: Workbench, backend: Backend) -> None:
    writer = await bench.writer()
    for chunk in (step_start(), ObjectChunk(object={"a": 1}), voiding(1, 2), ObjectChunk(object={"b": 2}), finish()):
        writer.write(chunk)
    await writer.finish(completed())
    pieces = [piece async for piece in told(backend, await backend.runs.get(writer.lease.run_id), 0)]
    assert [chunk["object"] for chunk in chunks(pieces) if chunk["type"] == "object"] == [{}, {"b": 2}]
    assert len(chunks(pieces)) == 5


async def test_a_run_without_an_id_of_its_callers_is_not_asked_for_again(settings: Settings) -> None:
    async with executing(settings) as backend:
        await backend.announcements.announce([scripted.definition])
        backend.hub.dismiss()
        with pytest.raises(Refused) as refused:
            await post_generate(scripted.definition.name, {"messages": "slowly 300 a b"}, backend, caller())
        assert refused.value.status == 409
        body = {"messages": "slowly 300 a b", "runId": "mine"}
        with pytest.raises(StoreUnavailable):
            await post_generate(scripted.definition.name, body, backend, caller())


async def test_a_response_without_words_of_the_range_goes_on(bench: Workbench, backend: Backend) -> None:
    writer = await bench.writer()
    writer.write(step_start())
    await writer.flush()
    live = told(backend, await backend.runs.get(writer.lease.run_id), 0)
    pieces = [await anext(live)]
    for chunk in (voiding(1, 1), delta("whole"), finish()):
        writer.write(chunk)
    await writer.finish(completed())
    pieces += [piece async for piece in live]
    assert (texts(pieces), pieces[-1]) == (["whole"], DONE)


async def test_readers_that_a_server_dismisses_are_not_told_of_an_end(bench: Workbench, backend: Backend) -> None:
    writer = await bench.writer()
    writer.write(step_start())
    await writer.flush()
    live = told(backend, await backend.runs.get(writer.lease.run_id), 0)
    pieces = [await anext(live)]
    backend.hub.dismiss()
    pieces += [piece async for piece in live]
    assert DONE not in pieces
    with pytest.raises(StoreUnavailable):
        await outcome(backend, await backend.runs.get(writer.lease.run_id), caller())


async def test_an_answer_that_takes_long_begins_before_it_is_known(settings: Settings) -> None:
    async with executing(settings) as backend:
        for prompt, expected in (("slowly 300 a b", {"text": "a b "}), ("break a", {"finishReason": "error"})):
            record = await submitted(backend, prompt)
            answer = await outcome(backend, record, caller(), patience=0)
            assert isinstance(answer, StreamingResponse)
            assert answer.status_code == 200
            body = b"".join([bytes(piece) async for piece in answer.body_iterator])  # type: ignore[arg-type]  # of bytes
            assert body.startswith(b" ")
            assert json.loads(body).items() >= expected.items()


async def test_who_goes_away_stops_waiting_and_not_the_run(settings: Settings) -> None:
    async with executing(settings) as backend:
        record = await submitted(backend, "slowly 400 a b c d")
        answer = await outcome(backend, record, caller(gone=True))
        assert answer.status_code == CLOSED

        async def done() -> bool:
            return (await backend.runs.get(record.run_id)).status == "completed"

        await eventually(done, what="the run to complete")


async def test_a_call_that_nobody_has_waited_for_is_not_the_answer_to_a_later_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "LOOK_SECONDS", 0.02)
    name, body = scripted.definition.name, {"data": {"ms": 300}}
    async with executing(settings) as backend:
        await backend.announcements.announce([scripted.definition])
        assert (await tools.execute(name, "wait", body, backend, caller(gone=True))).status_code == CLOSED
        calls = f"{settings.prefix}:tasks"
        [call] = await backend.store.redis.zrange(calls, 0, -1)

        async def done() -> bool:
            return (await backend.runs.get(text(call))).status == "completed"

        await eventually(done, what="the call to end")
        # At once it is the client's own retry.
        assert (await tools.execute(name, "wait", body, backend, caller())).status_code == 200
        assert await backend.store.redis.zcard(calls) == 1
        monkeypatch.setattr(tools, "KNOWN_SECONDS", 0)
        assert (await tools.execute(name, "wait", body, backend, caller())).status_code == 200
        assert await backend.store.redis.zcard(calls) == 2


async def submitted(backend: Backend, prompt: str) -> Any:
    record, _ = await backend.submit(new_run(prompt, agent=scripted.definition.name))
    return record
