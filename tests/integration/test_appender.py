"""Writers and the appender on a real Redis: nothing lost, nothing doubled, and nobody waits for the store."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from durable.chunks import (
    Chunk,
    ObjectChunk,
    PartPayload,
    PartTextPayload,
    ReasoningDelta,
    TextDelta,
    TextEnd,
    TextStart,
    ToolCallDelta,
    ToolCallDeltaPayload,
)
from durable.dev.redis_server import PrivateRedis
from durable.errors import LeaseLost
from durable.leases import release
from durable.store import text
from durable.writer import LARGEST_BATCH, LONGEST_MERGE, RunWriter
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, on, step_start

NEVER_MS = 5000.0
"""A flush time that no test waits for."""


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    """Deltas wait for company for as long as they may."""
    async with Workbench(on(redis_url, flush_ms=NEVER_MS)) as bench:
        yield bench


@pytest.fixture
async def unmerged(redis_url: str) -> AsyncIterator[Workbench]:
    """Each delta alone."""
    async with Workbench(on(redis_url, flush_ms=0)) as bench:
        yield bench


def text_start(part: str = "p1") -> TextStart:
    return TextStart(payload=PartPayload(id=part))


def text_end(part: str = "p1") -> TextEnd:
    return TextEnd(payload=PartPayload(id=part))


def reasoning(text: str, part: str = "p1") -> ReasoningDelta:
    return ReasoningDelta(payload=PartTextPayload(id=part, text=text))


def arguments(text: str, call: str = "c1") -> ToolCallDelta:
    return ToolCallDelta(payload=ToolCallDeltaPayload(tool_call_id=call, args_text_delta=text))


async def settle(bench: Workbench) -> None:
    """Give whatever is about to be sent all the turns that it needs."""
    for _ in range(20):
        await bench.store.ping()


async def in_log(bench: Workbench, writer: RunWriter, count: int) -> None:
    """Wait until the log has so many chunks."""

    async def there() -> bool:
        return (await bench.runs.get(writer.lease.run_id)).last_seq >= count

    await eventually(there, what=f"{count} chunks")


# What leaves when


async def test_the_first_delta_of_a_step_leaves_at_once_and_later_ones_gather(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    for chunk in (step_start(), text_start(), delta("a")):
        writer.write(chunk)
    await in_log(bench, writer, 3)

    writer.write(delta("b"))
    await settle(bench)
    writer.write(delta("c"))
    await settle(bench)
    assert await bench.texts(run_id) == ["a"]
    await writer.flush()
    assert await bench.texts(run_id) == ["a", "bc"]


def growing(text: str) -> ObjectChunk:
    return ObjectChunk(object={"text": text})


async def told(bench: Workbench, writer: RunWriter) -> list[Any]:
    """What the log has: types, with what an object holds."""
    await writer.flush()
    found = await bench.chunks(writer.lease.run_id)
    return [chunk.object["text"] if isinstance(chunk, ObjectChunk) else chunk.type for chunk in found]


async def test_of_objects_that_grow_while_they_wait_the_last_is_written(bench: Workbench) -> None:
    writer = await bench.writer()
    for chunk in (step_start(), arguments("{")):  # the first delta leaves at once
        writer.write(chunk)
    await in_log(bench, writer, 2)
    for size in range(1, 4):
        writer.write(arguments("a"))
        writer.write(growing("a" * size))
    assert writer.next_seq == 3 + 4
    writer.write(text_end())
    writer.write(growing("other"))
    assert await told(bench, writer) == [
        *("step-start", "tool-call-delta", "tool-call-delta", "tool-call-delta", "tool-call-delta"),
        *("aaa", "text-end", "other"),
    ]


async def test_an_object_of_the_step_before_is_left_alone(bench: Workbench) -> None:
    writer = await bench.writer()
    writer.write(text_start())  # while this is under way, the others wait
    writer.write(growing("before"))
    seq = writer.next_seq
    writer.write(step_start())
    writer.write(growing("after"))
    assert await told(bench, writer) == ["text-start", "before", "step-start", "after"]
    assert (await bench.chunks(writer.lease.run_id))[seq - 1].type == "step-start"


async def test_an_object_alone_waits_for_company(bench: Workbench) -> None:
    writer = await bench.writer()
    writer.write(text_start())
    await in_log(bench, writer, 1)
    writer.write(growing("a"))
    await settle(bench)
    assert len(await bench.chunks(writer.lease.run_id)) == 1
    assert await told(bench, writer) == ["text-start", "a"]


async def test_the_first_delta_of_every_step_leaves_at_once(bench: Workbench) -> None:
    writer = await bench.writer()
    for step in (1, 2, 3):
        for chunk in (step_start(step), text_start(f"p{step}"), delta("first", f"p{step}")):
            writer.write(chunk)
        await in_log(bench, writer, step * 4 - 1)
        writer.write(delta("later", f"p{step}"))
        writer.write(text_end(f"p{step}"))  # no delta: takes along what waits
        await in_log(bench, writer, step * 4 + step)

    assert await bench.texts(writer.lease.run_id) == ["first", "later"] * 3


async def test_the_seq_of_a_step_is_that_of_the_log_whoever_else_writes_to_it(bench: Workbench) -> None:
    writer = await bench.writer()
    keys, run_id = bench.store.keys, writer.lease.run_id
    writer.write(delta("before"))
    await writer.flush()
    await bench.store.redis.xadd(keys.log(run_id), {"c": b'0 {"type":"other"}'}, id="0-2")
    await bench.store.redis.hset(keys.run(run_id), "lastSeq", "2")

    writer.write(delta("still of the step before"))
    writer.write(step_start())
    writer.write(delta("after"))
    await writer.flush()

    [begun] = [chunk for chunk in await bench.chunks(run_id) if chunk.type == "step-start"]
    assert writer.step_seq == begun.seq == 4


async def test_a_chunk_that_is_no_delta_takes_along_what_waits_before_it(bench: Workbench) -> None:
    writer = await bench.writer()
    for chunk in (step_start(), text_start(), delta("a")):
        writer.write(chunk)
    await in_log(bench, writer, 3)
    writer.write(delta("b"))
    writer.write(delta("c"))
    await settle(bench)
    writer.write(text_end())
    await in_log(bench, writer, 5)

    assert [chunk.type for chunk in await bench.chunks(writer.lease.run_id)][-2:] == ["text-delta", "text-end"]
    assert await bench.texts(writer.lease.run_id) == ["a", "bc"]


async def test_deltas_leave_by_themselves_when_they_have_waited_long_enough(redis_url: str) -> None:
    async with Workbench(on(redis_url, flush_ms=20)) as bench:
        writer = await bench.writer()
        for chunk in (step_start(), text_start(), delta("a")):
            writer.write(chunk)
        await in_log(bench, writer, 3)
        writer.write(delta("b"))
        await in_log(bench, writer, 4)
        assert await bench.texts(writer.lease.run_id) == ["a", "b"]


# What is merged


async def test_without_patience_deltas_are_never_merged(unmerged: Workbench) -> None:
    writer = await unmerged.writer()
    words = [f"w{number}" for number in range(1200)]
    for word in words:
        writer.write(delta(word))
    await writer.flush()

    assert await unmerged.texts(writer.lease.run_id) == words
    assert all(len(entry.bodies) <= LARGEST_BATCH for entry in await unmerged.log(writer.lease.run_id))


async def test_text_is_merged_within_its_part_only(bench: Workbench) -> None:
    writer = await bench.writer()
    writer.write(delta("0", "warm"))
    await in_log(bench, writer, 1)
    pieces: list[Chunk] = [
        *(delta("a", "p1"), delta("b", "p1")),
        *(delta("c", "p2"), delta("d", "p2")),
        delta("e", "p1"),
        *(reasoning("f", "p1"), reasoning("g", "p1")),
        *(arguments("h", "p1"), arguments("i", "p1")),
        arguments("j", "p2"),
    ]
    for piece in pieces:
        writer.write(piece)
    await writer.flush()

    seen = [_delta(chunk) for chunk in await bench.chunks(writer.lease.run_id)][1:]
    assert seen == [
        ("text-delta", "p1", "ab"),
        ("text-delta", "p2", "cd"),
        ("text-delta", "p1", "e"),
        ("reasoning-delta", "p1", "fg"),
        ("tool-call-delta", "p1", "hi"),
        ("tool-call-delta", "p2", "j"),
    ]


def _delta(chunk: Chunk) -> tuple[str, str, str]:
    match chunk:
        case TextDelta() | ReasoningDelta():
            return chunk.type, chunk.payload.id, chunk.payload.text
        case ToolCallDelta():
            return chunk.type, chunk.payload.tool_call_id, chunk.payload.args_text_delta
        case _:
            raise AssertionError(chunk.type)


async def test_a_delta_with_words_of_the_provider_is_left_alone(bench: Workbench) -> None:
    writer = await bench.writer()
    marked = TextDelta(payload=PartTextPayload(id="p1", text="b", provider_metadata={"x": {"k": 1}}))
    for chunk in (delta("a"), marked, delta("c")):
        writer.write(chunk)
    await writer.flush()

    chunks = await bench.chunks(writer.lease.run_id)
    assert await bench.texts(writer.lease.run_id) == ["a", "b", "c"]
    assert [chunk.payload.provider_metadata for chunk in chunks] == [None, {"x": {"k": 1}}, None]


async def test_merging_keeps_every_character_and_stops_at_a_size(bench: Workbench) -> None:
    writer = await bench.writer()
    words = [f"{number} 🙂\n" for number in range(20_000)]
    for word in words:
        writer.write(delta(word))
    await writer.flush()

    texts = await bench.texts(writer.lease.run_id)
    assert "".join(texts) == "".join(words)
    assert max(len(item) for item in texts) <= LONGEST_MERGE + max(len(word) for word in words)
    assert len(texts) < len(words) / 100


async def test_chunks_larger_than_a_batch_may_be_are_written_whole(unmerged: Workbench) -> None:
    writer = await unmerged.writer()
    texts = ["x" * 900_000, "y" * 3_000_000, "z" * 900_000]
    for item in texts:
        writer.write(delta(item))
    await writer.flush()

    assert await unmerged.texts(writer.lease.run_id) == texts


# Redis is away


async def test_many_writers_lose_and_double_nothing_when_redis_is_killed_in_mid_batch(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=60)) as bench:
        written: dict[RunWriter, list[str]] = {await bench.writer(): [] for _ in range(20)}
        stopped = asyncio.Event()

        async def write(writer: RunWriter) -> None:
            while not stopped.is_set():
                for _ in range(3):
                    written[writer].append(f"w{len(written[writer])}")
                    writer.write(delta(written[writer][-1]))
                await asyncio.sleep(0.001)

        async def under_way() -> bool:
            return all(writer.under_way for writer in written)

        writing = asyncio.gather(*(write(writer) for writer in written))
        for _ in range(3):
            for writer in written:
                await in_log(bench, writer, writer.last_seq + 1)
            await asyncio.to_thread(own_redis.kill)
            await eventually(under_way, what="batches that wait for Redis")
            await asyncio.to_thread(own_redis.start)
        stopped.set()
        await writing
        await asyncio.gather(*(writer.flush() for writer in written))

        for writer, words in written.items():
            chunks = await bench.chunks(writer.lease.run_id)
            assert [chunk.seq for chunk in chunks] == list(range(1, len(words) + 1))
            assert await bench.texts(writer.lease.run_id) == words


async def test_a_batch_whose_answer_was_lost_is_not_written_twice(redis_url: str) -> None:
    async with Workbench(on(redis_url)) as bench:
        writer, lost = await bench.writer(), 0
        attempt = bench.appender._attempt

        async def unanswered(writers: Any) -> list[RunWriter]:
            """The first two times the batch arrives, but its answer does not."""
            nonlocal lost
            if lost == 2:
                return await attempt(writers)
            lost += 1
            async with bench.store.redis.pipeline(transaction=False) as pipe:
                for script, keys, args in [item.call() for item in writers]:
                    pipe.eval(script.text, len(keys), *keys, *args)
                await pipe.execute()
            return list(writers)

        bench.appender._attempt = unanswered  # type: ignore[method-assign]  # the network's part
        for word in ("a", "b", "c"):
            writer.write(delta(word))
        await writer.flush()

        assert lost == 2
        assert await bench.texts(writer.lease.run_id) == ["a", "b", "c"]
        assert writer.last_seq == 3


async def test_who_writes_never_waits_for_redis(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=60)) as bench:
        writer = await bench.writer()
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            for number in range(3000):
                writer.write(delta(f"w{number}"))
                if number % 100 == 0:
                    await asyncio.sleep(0)
            assert writer.under_way is not None  # written, and nothing was acknowledged
            assert writer.last_seq == 0
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        await writer.flush()
        assert await bench.texts(writer.lease.run_id) == [f"w{number}" for number in range(3000)]


async def test_a_silence_longer_than_the_deadline_of_a_batch_doubles_nothing(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=0.3, heartbeat_seconds=0.1)) as bench:
        writer, tries = await bench.writer(), 0
        attempt = bench.appender._attempt

        async def counted(writers: Any) -> list[RunWriter]:
            nonlocal tries
            tries += 1
            return await attempt(writers)

        async def tried_again() -> bool:
            return tries >= 3

        bench.appender._attempt = counted  # type: ignore[method-assign]  # to see that a batch is sent again
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            for number in range(100):
                writer.write(delta(f"w{number}"))
            await eventually(tried_again, what="the batch to be sent again")
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        await writer.flush()
        assert await bench.texts(writer.lease.run_id) == [f"w{number}" for number in range(100)]


async def test_a_full_buffer_makes_room_only_when_redis_takes_the_chunks(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=60, max_buffer_bytes=65_536)) as bench:
        writer = await bench.writer()
        writer.write(delta("warm"))
        await writer.flush()
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            for _ in range(200):
                writer.write(delta("x" * 1000))
            full = writer.full
            room = asyncio.ensure_future(writer.room())
            for _ in range(10):
                await asyncio.sleep(0)
            made = room.done()
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        assert (full, made) == (True, False)
        await room
        assert not writer.full
        await writer.flush()
        assert len(await bench.texts(writer.lease.run_id)) == 201


async def test_scripts_that_redis_forgot_are_loaded_again(redis_url: str) -> None:
    async with Workbench(on(redis_url)) as bench:
        writer = await bench.writer()
        for word in ("a", "b", "c"):
            await bench.store.redis.script_flush()
            writer.write(delta(word))
            await writer.flush()
        assert await bench.texts(writer.lease.run_id) == ["a", "b", "c"]


# The run is lost, or ends


async def test_a_writer_that_lost_its_run_drops_what_it_is_given(bench: Workbench) -> None:
    writer = await bench.writer()
    writer.write(step_start())
    await writer.flush()
    writer.fail(LeaseLost())
    writer.write(text_start())

    for wait in (writer.flush, writer.room):
        with pytest.raises(LeaseLost):
            await wait()
    with pytest.raises(LeaseLost):
        await writer.finish(completed(), finish())
    assert [chunk.type for chunk in await bench.chunks(writer.lease.run_id)] == ["step-start"]


async def test_a_late_batch_of_an_earlier_attempt_is_refused_though_its_number_is_forgotten(
    unmerged: Workbench,
) -> None:
    """Whether it was written before, and whatever has become of the run since."""
    keys, redis, writer = unmerged.store.keys, unmerged.store.redis, await unmerged.writer()
    run_id, sent = writer.lease.run_id, []
    for word in ("a", "b", "c"):
        writer.write(delta(word))
        sent.append(writer.call())
        await writer.flush()

    async def late() -> list[Any]:
        return [await redis.eval(script.text, len(names), *names, *args) for script, names, args in sent]

    async def writers() -> set[str]:
        return {name for name in map(text, await redis.hkeys(keys.run(run_id))) if name.startswith("w:")}

    assert await late() == [[b"gap"], [b"gap"], [b"seen", 3, 3]], "while it is the run's newest attempt"
    for token in range(2, 6):
        assert await release(unmerged.store, writer.lease, wake_after=5)
        assert (await late())[:2] == [[b"fenced"]] * 2
        writer = await unmerged.writer(run_id)
        assert await late() == [[b"fenced"]] * 3
        writer.write(delta(f"by {token}"))
        await writer.flush()
        assert await late() == [[b"fenced"]] * 3
        assert await writers() == {f"w:a{token}"}, "a run of many attempts does not grow"
    await writer.finish(completed(), finish())
    assert await late() == [[b"fenced"]] * 3
    assert await unmerged.texts(run_id) == ["a", "b", "c", *(f"by {token}" for token in range(2, 6))]


async def test_who_waits_for_a_writer_that_loses_its_run_is_told(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=60)) as bench:
        writer = await bench.writer()
        assert own_redis.pid is not None
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            writer.write(delta("a"))
            flushing = asyncio.ensure_future(writer.flush())
            await asyncio.sleep(0)
            writer.fail(LeaseLost())
            with pytest.raises(LeaseLost):
                await flushing
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)


async def test_the_end_comes_after_all_that_was_written(bench: Workbench) -> None:
    writer = await bench.writer()
    for chunk in (step_start(), text_start(), delta("a"), delta("b")):
        writer.write(chunk)
    assert await writer.finish(completed(), text_end(), finish())

    chunks = await bench.chunks(writer.lease.run_id)
    assert [chunk.type for chunk in chunks] == ["step-start", "text-start", "text-delta", "text-end", "finish"]
    assert [chunk.final for chunk in chunks] == [None] * 4 + [True]
    assert (await bench.runs.get(writer.lease.run_id)).status == "completed"


async def test_one_run_that_redis_refuses_does_not_hold_up_the_others(unmerged: Workbench) -> None:
    healthy, broken = await unmerged.writer(), await unmerged.writer()
    await unmerged.store.redis.set(unmerged.store.keys.log(broken.lease.run_id), "no stream")
    for writer in (broken, healthy):
        writer.write(delta("a"))
        writer.write(delta("b"))
    await healthy.flush()

    assert await unmerged.texts(healthy.lease.run_id) == ["a", "b"]
    with pytest.raises(Exception, match="refused"):
        await broken.flush()
