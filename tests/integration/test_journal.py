"""A run's log on a real Redis: dense, fenced, written once, and readable from any cursor."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from durable.chunks import encode_body, parse
from durable.errors import LeaseLost
from durable.journal import LARGEST_PAGE, read
from durable.leases import Lease, release
from durable.observer import _Follower
from durable.scripts import APPEND, FINISH
from durable.settings import Settings
from durable.store import text
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, on


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url)) as bench:
        yield bench


async def append(bench: Workbench, lease: Lease, batch: int, *texts: str, writer: str = "w") -> tuple[str, ...]:
    """Send one batch of text deltas by hand; the script's answer."""
    keys, bodies = bench.store.keys, [encode_body(delta(item)) for item in texts]
    names = [keys.run(lease.run_id), keys.log(lease.run_id), keys.checkpoints(lease.run_id), keys.ledger(lease.run_id)]
    names += [keys.calls(lease.run_id), keys.pending, keys.deadlines]
    args: list[Any] = [keys.channel(lease.run_id), lease.token, writer, batch, len(bodies), b"\n".join(bodies)]
    args += ["0", "", lease.run_id, 0, 0]
    reply = await bench.store.run(APPEND, names, args)
    return tuple(text(item) for item in reply)


async def test_chunks_are_numbered_densely_from_one_whoever_writes_them(bench: Workbench) -> None:
    run_id = await bench.create()
    lease = await bench.claim(run_id)
    written = await asyncio.gather(*(append(bench, lease, 1, "x", "y", writer=f"w{n}") for n in range(50)))

    assert sorted(int(first) for _, first, _ in written) == list(range(1, 101, 2))
    assert [chunk.seq for chunk in await bench.chunks(run_id)] == list(range(1, 101))
    assert (await bench.runs.get(run_id)).last_seq == 100


async def test_a_batch_that_is_sent_again_gets_the_seqs_that_it_got(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    first = await append(bench, lease, 1, "a", "b")
    await append(bench, lease, 1, "z", writer="another")
    again = await append(bench, lease, 1, "a", "b")

    assert first == ("written", "1", "2")
    assert again == ("seen", "1", "2")
    assert await bench.texts(lease.run_id) == ["a", "b", "z"]


async def test_a_batch_that_is_sent_many_times_at_once_is_written_once(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    replies = await asyncio.gather(*(append(bench, lease, 1, "a", "b", "c") for _ in range(50)))

    assert sorted(verdict for verdict, _, _ in replies) == ["seen"] * 49 + ["written"]
    assert {reply[1:] for reply in replies} == {("1", "3")}
    assert await bench.texts(lease.run_id) == ["a", "b", "c"]


async def test_a_batch_after_one_that_was_never_written_is_refused(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    await append(bench, lease, 1, "a")

    assert await append(bench, lease, 3, "c") == ("gap",)
    assert await bench.texts(lease.run_id) == ["a"]


async def test_a_token_that_was_never_given_is_refused(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())

    assert await append(bench, replace(lease, token=lease.token + 1), 1, "a") == ("fenced",)
    assert await bench.log(lease.run_id) == []


async def test_a_run_that_was_handed_back_takes_no_more_chunks(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    assert await append(bench, lease, 1, "a") == ("written", "1", "1")
    assert await release(bench.store, lease, wake_after=60)

    assert await append(bench, lease, 2, "b") == ("fenced",)
    assert await append(bench, lease, 1, "a") == ("seen", "1", "1")
    assert await bench.texts(lease.run_id) == ["a"]


async def test_an_ended_run_takes_no_more_chunks(bench: Workbench) -> None:
    writer = await bench.writer()
    assert await writer.finish(completed(), finish())
    before = await bench.wire(writer.lease.run_id)

    assert await append(bench, writer.lease, 1, "late", writer="another") == ("fenced",)
    writer.write(delta("late"))
    with pytest.raises(LeaseLost):
        await writer.flush()
    assert await bench.wire(writer.lease.run_id) == before
    assert parse(before[-1]).final is True


async def test_the_end_that_is_sent_again_is_written_once(bench: Workbench) -> None:
    writer = await bench.writer()
    sent: list[tuple[Any, Any, Any]] = []
    call = writer.call

    def kept() -> Any:
        sent.append(call())
        return sent[-1]

    writer.call = kept  # type: ignore[method-assign]  # to look at what is sent
    assert await writer.finish(completed(), finish())
    before = await bench.wire(writer.lease.run_id)
    script, keys, args = sent[-1]

    assert script is FINISH
    assert [text(item) for item in await bench.store.run(script, keys, args)] == ["seen", "1", "1"]
    assert await bench.wire(writer.lease.run_id) == before


async def test_a_stopped_worker_cannot_write_after_takeover(redis_url: str) -> None:
    async with Workbench(on(redis_url, lease_seconds=0.3, heartbeat_seconds=0.1)) as bench:
        stopped = await bench.writer()
        run_id, fenced = stopped.lease.run_id, asyncio.Event()
        stopped.on_fenced = fenced.set
        stopped.write(delta("before"))
        await stopped.flush()

        await eventually(lambda: _claimable(bench, run_id), what="the lease to run out")
        new = await bench.writer(run_id)
        assert new.lease.token == stopped.lease.token + 1
        assert new.lease.last_seq == 1
        stopped.write(delta("zombie"))
        with pytest.raises(LeaseLost):
            await stopped.flush()
        new.write(delta("after"))
        await new.flush()

        assert fenced.is_set()
        assert await bench.texts(run_id) == ["before", "after"]
        assert [entry.attempt for entry in await bench.log(run_id)] == [1, 2]


async def test_a_stopped_worker_cannot_end_the_run_after_takeover(redis_url: str) -> None:
    async with Workbench(on(redis_url, lease_seconds=0.3, heartbeat_seconds=0.1)) as bench:
        stopped = await bench.writer()
        run_id = stopped.lease.run_id
        await eventually(lambda: _claimable(bench, run_id), what="the lease to run out")
        await bench.claim(run_id)

        with pytest.raises(LeaseLost):
            await stopped.finish(completed(), finish())
        assert not (await bench.runs.get(run_id)).status.ended
        assert await bench.log(run_id) == []


async def _claimable(bench: Workbench, run_id: str) -> bool:
    """Whether the run's lease has run out, by the store's clock."""
    seconds, micros = await bench.store.redis.time()
    leases: Any = await bench.store.redis.zrange(bench.store.keys.leases, 0, -1, withscores=True)
    now = int(seconds) * 1000 + int(micros) / 1000
    return all(expiry < now for member, expiry in leases if text(member).startswith(run_id))


async def test_a_cursor_inside_an_entry_of_many_chunks_works(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    await append(bench, lease, 1, *"abc")
    await append(bench, lease, 2, *"defgh")
    await append(bench, lease, 3, "i")
    whole = await bench.wire(lease.run_id)

    assert [len(entry.bodies) for entry in await bench.log(lease.run_id)] == [3, 5, 1]
    assert [parse(data).seq for data in whole] == list(range(1, 10))
    for cursor in range(10):
        rest = [data for entry in await bench.log(lease.run_id, cursor) for data in entry.wire]
        assert rest == whole[cursor:]
    assert await bench.log(lease.run_id, 10) == []


async def test_a_log_is_read_in_pages_from_where_the_last_one_ended(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    for batch in range(1, 21):
        await append(bench, lease, batch, "a", "b", "c")

    cursor, seqs = 0, []
    while page := await read(bench.store, lease.run_id, cursor, limit=7):
        assert len(page) <= 7
        seqs += [chunk.seq for entry in page for chunk in entry.chunks()]
        cursor = page[-1].last
    assert seqs == list(range(1, 61))


async def test_a_page_of_a_log_ends_at_its_bytes_however_large_the_entries_are(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    for batch in range(1, 21):
        await append(bench, lease, batch, "x" * 1_000_000 if batch != 9 else "y" * 2 * LARGEST_PAGE)
    for batch in range(21, 41):
        await append(bench, lease, batch, "z" * 300_000)

    cursor, counts = 0, []
    while page := await read(bench.store, lease.run_id, cursor):
        assert len(page) == 1 or sum(len(body) for entry in page for body in entry.bodies) <= LARGEST_PAGE
        assert page[0].first == cursor + 1
        counts.append(len(page))
        cursor = page[-1].last
    assert cursor == 40
    assert counts == [1] * 20 + [3] * 6 + [2]


async def test_small_entries_come_by_the_thousand(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    for batch in range(1, 1102):
        await append(bench, lease, batch, "a")

    assert [entry.first for entry in await read(bench.store, lease.run_id, 0)] == list(range(1, 1001))
    assert [entry.first for entry in await read(bench.store, lease.run_id, 1000)] == list(range(1001, 1102))


async def test_each_append_is_announced_with_its_chunks(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    follower = _Follower()
    await bench.hub.follow(lease.run_id, follower)
    await append(bench, lease, 1, "a", "b")
    await append(bench, lease, 1, "a", "b")  # written before: nothing new to tell
    await append(bench, lease, 2, "c")
    await eventually(lambda: _true(len(follower.heard) == 2), what="two announcements")

    heard = [data for entry in follower.heard for data in entry.wire]
    assert heard == await bench.wire(lease.run_id)


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("chunks_an_entry", [1, 20])
async def test_a_chunk_takes_its_own_bytes_and_at_most_32_more(redis_url: str, chunks_an_entry: int) -> None:
    settings: Settings = on(redis_url)
    async with Workbench(settings) as bench:
        writer = await bench.writer()
        total, lengths = 0, random.Random(7)
        for number in range(2000):
            # Words of all lengths: for one single length, what the allocator adds can be far from the average.
            chunk = delta("x" * lengths.randint(1, 40))
            total += len(encode_body(chunk))
            writer.write(chunk)
            if number % chunks_an_entry == chunks_an_entry - 1:
                await writer.flush()
        entries = await bench.log(writer.lease.run_id)
        size = await bench.store.redis.memory_usage(bench.store.keys.log(writer.lease.run_id), samples=0)

    assert sum(len(entry.bodies) for entry in entries) == 2000
    assert size is not None
    assert (size - total) / 2000 <= 32
