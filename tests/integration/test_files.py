"""Files that a model makes: told in their chunk or stored beside it, and kept as the run is."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.messages import FilePart, ModelResponse
from pydantic_ai.native_tools import ImageGenerationTool

from durable import DurableAgent, RunHandle, create_durable_agent
from durable.chunks import File, FilePayload
from durable.doctor import Doctor
from durable.errors import LeaseLost, RunExpired, UnknownFile, UnknownRun
from durable.files import RunFile, set_apart
from durable.leases import release
from durable.settings import Settings
from durable.store import Store
from durable.writer import Note
from tests.provider_wire import ProviderWire, openai_responses, picture, text, tool_call
from tests.provider_wire.models import openai_responses_model
from tests.workbench import Workbench, completed, finish, on

LARGE = b"\x89PNG" + bytes(range(256)) * 1200
SMALL = b"\x89PNG small"


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url, retention_seconds=60)) as found:
        yield found


def painter(wire: ProviderWire, connected: Callable[..., DurableAgent]) -> DurableAgent:
    """An agent whose provider makes pictures."""
    agent: Agent[None, str] = Agent(
        openai_responses_model(wire.base_url), name="painter", capabilities=[NativeTool(ImageGenerationTool())]
    )

    @agent.tool_plain
    def tick() -> str:
        return "tock"

    return connected(agent)


async def files_of(handle: RunHandle) -> list[FilePayload]:
    """The files in a run's log, once it has ended."""
    async with asyncio.timeout(30):
        return [chunk.payload async for chunk in handle if isinstance(chunk, File)]


async def test_a_small_picture_is_in_its_chunk_and_a_large_one_beside_it(
    provider_wire: ProviderWire, connected: Callable[..., DurableAgent], store: Store
) -> None:
    reply = openai_responses.reply(picture("ig_1", SMALL), picture("ig_2", LARGE), text("Look."))
    provider_wire.script(reply)
    async with painter(provider_wire, connected) as agent:
        handle = await agent.stream("paint")
        small, large = await files_of(handle)
        file = await handle.file(large.file_id or "")
        result = await handle.result()

    assert (b64decode(small.data), small.mime_type) == (SMALL, "image/png")
    assert small.model_fields_set == {"data", "mime_type"}
    assert (large.data, large.size, large.mime_type) == (large.url, len(LARGE), "image/png")
    assert large.url == f"/v1/runs/{handle.run_id}/files/{large.file_id}"
    assert file == RunFile(large.file_id or "", "image/png", LARGE)
    assert list(await store.redis.hkeys(store.keys.files(handle.run_id))) == [file.file_id.encode()]
    made = [part.content.data for part in parts(result.all_messages()) if isinstance(part, FilePart)]
    assert made == [SMALL, LARGE]


def parts(messages: list[Any]) -> list[Any]:
    """The parts of a model's responses."""
    return [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]


async def test_previews_are_held_back(provider_wire: ProviderWire, connected: Callable[..., DurableAgent]) -> None:
    provider_wire.script(openai_responses.reply(picture("ig_1", LARGE, LARGE[:-7], LARGE[:-3]), text("Look.")))
    async with painter(provider_wire, connected) as agent:
        handle = await agent.stream("paint")
        [only] = await files_of(handle)
        assert (await handle.file(only.file_id or "")).data == LARGE


async def test_the_model_is_told_of_its_picture_in_the_next_step(
    provider_wire: ProviderWire, settings: Settings
) -> None:
    """Also where another attempt goes on, from what is stored."""
    first = openai_responses.reply(picture("ig_1", LARGE), tool_call("c1", "tick"))
    provider_wire.script(first, openai_responses.reply(text("done")))
    resumed = settings.model_copy(update={"always_resume": True})
    async with painter(provider_wire, lambda agent: create_durable_agent(agent, cache=resumed)) as agent:
        handle = await agent.stream("paint")
        [large] = await files_of(handle)
        result = await handle.result()
        assert (await handle.status()).attempt > 1
        assert (await handle.file(large.file_id or "")).data == LARGE

    assert [part.content.data for part in parts(result.all_messages()) if isinstance(part, FilePart)] == [LARGE]
    _, second = provider_wire.bodies(openai_responses.PATH)
    assert [item["id"] for item in second["input"] if item.get("type") == "image_generation_call"] == ["ig_1"]


def told(run_id: str, data: bytes = LARGE) -> tuple[File, Note]:
    """A chunk that names a stored file, and the note that stores it."""
    chunk = File(payload=FilePayload(data=b64encode(data).decode(), mime_type="image/png"))
    chunk, file = set_apart(chunk, run_id, 10)
    assert file is not None
    return chunk, Note(file=file, progress=False)


async def test_a_worker_that_has_lost_the_run_stores_no_file(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    assert await release(bench.store, writer.lease, wake_after=0)
    await bench.claim(run_id)
    writer.write(*told(run_id))
    with pytest.raises(LeaseLost):
        await writer.flush()
    assert not await bench.store.redis.exists(bench.store.keys.files(run_id))
    assert await bench.chunks(run_id) == []


@pytest.mark.parametrize("how", ["completed", "cancelled"])
async def test_files_expire_with_their_run(bench: Workbench, how: str) -> None:
    writer = await bench.writer()
    run_id, redis, keys = writer.lease.run_id, bench.store.redis, bench.store.keys
    chunk, note = told(run_id)
    writer.write(chunk, note)
    await writer.flush()
    assert await redis.ttl(keys.files(run_id)) == -1
    if how == "completed":
        await writer.finish(completed(), finish())
    else:
        assert await release(bench.store, writer.lease, wake_after=60)
        await bench.runs.cancel(run_id)
    assert await redis.ttl(keys.files(run_id)) == await redis.ttl(keys.run(run_id)) > 0
    file_id = chunk.payload.file_id or ""
    assert (await bench.runs.file(run_id, file_id)).data == LARGE
    with pytest.raises(UnknownFile):
        await bench.runs.file(run_id, "another")
    await redis.delete(keys.run(run_id), keys.files(run_id))
    with pytest.raises(RunExpired):
        await bench.runs.file(run_id, file_id)
    with pytest.raises(UnknownRun):
        await bench.runs.file("never", file_id)


async def test_the_doctor_knows_files(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id, redis, keys = writer.lease.run_id, bench.store.redis, bench.store.keys
    writer.write(*told(run_id))
    await writer.finish(completed(), finish())
    doctor = Doctor(bench.store)
    assert await doctor.examine(run_id) == set()
    await redis.persist(keys.files(run_id))
    assert {finding.check for finding in await doctor.examine(run_id)} == {"retention"}
    await redis.delete(keys.files(run_id))
    assert {finding.check for finding in await doctor.examine(run_id)} == {"file"}


async def test_a_file_counts_against_the_buffer(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    for _ in range(6):
        writer.write(*told(run_id, LARGE * 10))
    assert bench.settings.max_buffer_bytes < 6 * 10 * len(LARGE)
    assert writer.full
    await writer.room()
    assert not writer.full


def test_a_type_that_no_header_can_hold_becomes_an_unknown_one() -> None:
    chunk = File(payload=FilePayload(data="d2hvbGU=", mime_type="image/png\r\nx: y"))
    _, file = set_apart(chunk, "r1", 0)
    assert file is not None
    assert file.mime_type == "application/octet-stream"
    assert RunFile.decode(file.file_id, file.encode()) == file
