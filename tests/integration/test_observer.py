"""Readers on a real Redis: every reader sees the same bytes, once, whenever it comes and whatever it misses."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as Disconnected

from durable import observer
from durable.dev.redis_server import PrivateRedis
from durable.errors import InvalidRequest, RunExpired, StoreUnavailable, UnknownRun
from durable.leases import suspend
from durable.observer import LONGEST_QUEUE, SUSPENDED, Hub
from durable.runs import RunRecord
from durable.views import RunStatus
from durable.writer import RunWriter
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, on


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url)) as bench:
        yield bench


async def see(bench: Workbench, run_id: str, after: int = 0) -> list[bytes]:
    """All that a reader sees, to the run's end."""
    async with aclosing(bench.observer.pages(run_id, after)) as pages:
        return [data async for page in pages for entry in page for data in entry.wire]


def digest(wire: list[bytes]) -> str:
    return hashlib.sha256(b"\n".join(wire)).hexdigest()


async def write(writer: RunWriter, count: int, *, alone: bool = False) -> None:
    """Write chunks, a few at a time."""
    for number in range(count):
        writer.write(delta(f"w{number} "))
        if alone or number % 10 == 9:
            await writer.flush()
    await writer.flush()


async def end(writer: RunWriter) -> None:
    assert await writer.finish(completed(), finish())


async def followed(bench: Workbench, run_id: str, count: int = 1) -> None:
    """Wait until so many readers follow."""

    async def there() -> bool:
        return len(bench.hub._followers.get(bench.store.keys.channel(run_id), ())) >= count

    await eventually(there, what=f"{count} readers")


async def waiting(bench: Workbench, run_id: str, reader: asyncio.Future[Any]) -> None:
    """Wait until a reader has nothing to do, or has ended."""

    async def quiet() -> bool:
        followers: Any = bench.hub._followers.get(bench.store.keys.channel(run_id), ())
        last = (await bench.runs.get(run_id)).last_seq
        return reader.done() or all(item.highest == last and not cast("Any", item).heard for item in followers)

    await eventually(quiet, what="the reader to wait")


# Every reader sees the same


async def test_readers_from_anywhere_and_at_any_time_see_the_same_bytes(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    before = [asyncio.ensure_future(see(bench, run_id)) for _ in range(4)]
    await followed(bench, run_id, 4)
    await write(writer, 200)
    during = {cursor: asyncio.ensure_future(see(bench, run_id, cursor)) for cursor in (0, 1, 105, 200)}
    await followed(bench, run_id, 5)
    await write(writer, 200)
    await end(writer)
    after = {cursor: await see(bench, run_id, cursor) for cursor in (0, 7, 400, 401)}

    whole = await bench.wire(run_id)
    assert len(whole) == 401
    for reader in before:
        assert digest(await reader) == digest(whole)
    for cursor, live in during.items():
        assert digest(await live) == digest(whole[cursor:])
    for cursor, wire in after.items():
        assert digest(wire) == digest(whole[cursor:])


async def test_twenty_readers_at_once_see_the_same_bytes(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    readers = [asyncio.ensure_future(see(bench, run_id)) for _ in range(20)]
    await write(writer, 1000)
    await end(writer)

    assert {digest(wire) for wire in await asyncio.gather(*readers)} == {digest(await bench.wire(run_id))}


async def test_readers_of_another_process_see_the_same_bytes(bench: Workbench) -> None:
    async with Workbench(bench.settings) as other:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        readers = [asyncio.ensure_future(see(place, run_id)) for place in (bench, other)]
        await write(writer, 300)
        await end(writer)
        here, there = await asyncio.gather(*readers)
    assert here == there
    assert len(here) == 301


async def test_a_reader_may_leave_and_go_on_from_its_cursor_any_number_of_times(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    writing = asyncio.ensure_future(write(writer, 300))
    seen: list[bytes] = []
    while len(seen) < 290:
        async with aclosing(bench.observer.pages(run_id, len(seen))) as pages:
            async for page in pages:
                seen += [data for entry in page for data in entry.wire]
                break
    await writing
    await end(writer)
    seen += await see(bench, run_id, len(seen))

    assert seen == await bench.wire(run_id)


async def test_a_reader_of_many_runs_mixes_nothing_up(bench: Workbench) -> None:
    writers = [await bench.writer() for _ in range(10)]
    readers = [asyncio.ensure_future(see(bench, writer.lease.run_id)) for writer in writers]
    await asyncio.gather(*(write(writer, 100) for writer in writers))
    await asyncio.gather(*(end(writer) for writer in writers))

    for writer, wire in zip(writers, await asyncio.gather(*readers), strict=True):
        assert wire == await bench.wire(writer.lease.run_id)


# What a reader misses, it finds in the log


class Deaf(Hub):
    """Misses announcements at random."""

    chance = 0.5

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.missed = 0
        self._dice = random.Random(7)

    def _deliver(self, channel: str, data: bytes) -> None:
        if self._dice.random() < self.chance:
            self.missed += 1
        else:
            super()._deliver(channel, data)


class StoneDeaf(Deaf):
    """Misses all of them."""

    chance = 1


@pytest.mark.parametrize("hub", [Deaf, StoneDeaf])
async def test_lost_announcements_cost_no_chunk(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, hub: type[Deaf]
) -> None:
    monkeypatch.setattr(observer, "CHECK_SECONDS", 0.05)
    async with Workbench(on(redis_url), hub=hub) as bench:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        readers = [asyncio.ensure_future(see(bench, run_id)) for _ in range(5)]
        await followed(bench, run_id, 5)
        await write(writer, 200, alone=True)
        await end(writer)

        whole = await bench.wire(run_id)
        assert [await reader for reader in readers] == [whole] * 5
        assert isinstance(bench.hub, Deaf)
        assert bench.hub.missed > 50


async def test_an_announcement_that_comes_twice_or_late_is_seen_once(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id, messages = writer.lease.run_id, []
    deliver = bench.hub._deliver

    def keep(channel: str, data: bytes) -> None:
        messages.append(data)
        deliver(channel, data)
        for old in messages[-3:]:
            deliver(channel, old)

    bench.hub._deliver = keep  # type: ignore[method-assign]  # a network that repeats itself
    reader = asyncio.ensure_future(see(bench, run_id))
    await followed(bench, run_id)
    await write(writer, 60, alone=True)
    await end(writer)
    assert await reader == await bench.wire(run_id)


async def test_a_slow_reader_finds_what_it_could_not_keep_in_the_log(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    await write(writer, 1)
    async with aclosing(bench.observer.pages(run_id)) as pages:
        seen = [data for entry in await anext(pages) for data in entry.wire]
        await write(writer, LONGEST_QUEUE * 2, alone=True)  # the reader does not read meanwhile
        follower = cast("Any", next(iter(bench.hub._followers[bench.store.keys.channel(run_id)])))
        await eventually(lambda: _reached(follower, LONGEST_QUEUE * 2 + 1), what="the announcements to be heard")
        assert len(follower.heard) <= LONGEST_QUEUE
        await end(writer)
        async for page in pages:
            seen += [data for entry in page for data in entry.wire]
    assert seen == await bench.wire(run_id)


async def _reached(follower: Any, seq: int) -> bool:
    return bool(follower.highest >= seq)


async def test_a_closed_connection_of_the_hub_costs_no_chunk(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        readers = [asyncio.ensure_future(see(bench, run_id)) for _ in range(3)]
        await followed(bench, run_id, 3)
        for _ in range(4):
            await write(writer, 20)
            await bench.store.redis.client_kill_filter(_type="pubsub")
            await write(writer, 20)
        await end(writer)
        assert [await reader for reader in readers] == [await bench.wire(run_id)] * 3


async def test_the_hub_hears_again_after_its_connection_was_closed(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        first, second = await bench.writer(), await bench.writer()
        readers = [asyncio.ensure_future(see(bench, item.lease.run_id)) for item in (first, second)]
        for writer in (first, second):
            await heard(bench, writer, 1)
        await bench.store.redis.client_kill_filter(_type="pubsub")
        for writer in (first, second):
            await heard(bench, writer, 1)
            await end(writer)
        await asyncio.gather(*readers)


async def test_a_reader_that_comes_before_anybody_noticed_a_closed_connection_is_served(
    own_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closed(*_: str) -> None:
        raise Disconnected("closed")

    async with Workbench(on(own_redis.url)) as bench:
        first, second = await bench.writer(), await bench.writer()
        readers = [asyncio.ensure_future(see(bench, first.lease.run_id))]
        await heard(bench, first, 1)
        monkeypatch.setattr(bench.hub._pubsub, "subscribe", closed)
        readers.append(asyncio.ensure_future(see(bench, second.lease.run_id)))
        for writer in (first, second):
            await heard(bench, writer, 1)
            await end(writer)
        assert await asyncio.gather(*readers) == [await bench.wire(item.lease.run_id) for item in (first, second)]


async def test_the_hub_hears_again_after_its_connection_was_closed_while_nobody_read(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        reader = asyncio.ensure_future(see(bench, run_id))
        await heard(bench, writer, 1)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await bench.store.redis.client_kill_filter(_type="pubsub")

        reader = asyncio.ensure_future(see(bench, run_id))
        await heard(bench, writer, 1)
        await end(writer)
        assert await reader == await bench.wire(run_id)


async def test_the_hub_hears_again_after_redis_was_restarted_while_nobody_read(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=60)) as bench:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        reader = asyncio.ensure_future(see(bench, run_id))
        await heard(bench, writer, 1)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await asyncio.to_thread(own_redis.kill)
        await eventually(lambda: _gone(bench), what="the hub to notice")
        await asyncio.to_thread(own_redis.start)

        reader = asyncio.ensure_future(see(bench, run_id))
        await heard(bench, writer, 1)
        await end(writer)
        assert await reader == await bench.wire(run_id)


async def _gone(bench: Workbench) -> bool:
    try:
        await bench.store.ping()
    except StoreUnavailable:
        return True
    return False


async def test_the_hub_hears_although_redis_was_away_when_the_first_reader_came(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=60)) as bench:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        await asyncio.to_thread(own_redis.kill)
        with pytest.raises(StoreUnavailable):
            await see(bench, run_id)
        await asyncio.to_thread(own_redis.start)

        reader = asyncio.ensure_future(see(bench, run_id))
        await heard(bench, writer, 1)
        await end(writer)
        assert await reader == await bench.wire(run_id)


async def test_readers_that_come_while_the_hub_reconnects_are_heard_for(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url, lease_seconds=60)) as bench:
        writers = [await bench.writer() for _ in range(4)]
        first = asyncio.ensure_future(see(bench, writers[0].lease.run_id))
        await heard(bench, writers[0], 1)
        await asyncio.to_thread(own_redis.kill)
        await eventually(lambda: _lost(bench), what="the hub to lose its connection")
        await asyncio.to_thread(own_redis.start)
        readers = [asyncio.ensure_future(see(bench, writer.lease.run_id)) for writer in writers[1:]]
        results = await asyncio.gather(*(_through(bench, writer) for writer in writers), return_exceptions=True)
        assert results == [None] * 4
        wires = await asyncio.gather(first, *readers, return_exceptions=True)
        for writer, wire in zip(writers[1:], wires[1:], strict=True):
            assert wire == await bench.wire(writer.lease.run_id)
        # The first reader may have been told that Redis is away; it goes on from its cursor then.
        assert isinstance(wires[0], StoreUnavailable) or wires[0] == await bench.wire(writers[0].lease.run_id)
        assert sum(task.get_name() == "hub" for task in asyncio.all_tasks()) == 1


async def _lost(bench: Workbench) -> bool:
    return bench.hub._pubsub is None


async def _through(bench: Workbench, writer: RunWriter) -> None:
    await followed(bench, writer.lease.run_id) if writer.last_seq == 0 else None
    await write(writer, 20)
    await end(writer)


async def heard(bench: Workbench, writer: RunWriter, count: int) -> None:
    """Write until the readers of the run hear of it; the slow look into the log alone is no hearing."""
    run_id = writer.lease.run_id
    await followed(bench, run_id)
    channel, told = bench.store.keys.channel(run_id), asyncio.Event()
    deliver = bench.hub._deliver

    def listen(name: str, data: bytes) -> None:
        if name == channel:
            told.set()
        deliver(name, data)

    async def spoken() -> bool:
        await write(writer, count)
        return told.is_set()

    bench.hub._deliver = listen  # type: ignore[assignment, method-assign]  # to see what is heard
    try:
        await eventually(spoken, what="an announcement to be heard")
    finally:
        bench.hub._deliver = deliver  # type: ignore[method-assign]  # as it was


# Many readers, few connections


async def test_runs_that_are_first_read_by_several_readers_at_once_are_listened_to(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        writers = [await bench.writer() for _ in range(5)]
        readers = [asyncio.ensure_future(see(bench, writer.lease.run_id)) for writer in writers for _ in range(4)]
        for writer in writers:
            await followed(bench, writer.lease.run_id, 4)
        names = [bench.store.keys.channel(writer.lease.run_id) for writer in writers]

        async def subscribed() -> bool:
            found = await bench.store.redis.pubsub_numsub(*names)
            return [count for _, count in found] == [1] * 5

        await eventually(subscribed, seconds=3, what="each run to be listened to once")
        await asyncio.gather(*(end(writer) for writer in writers))
        await asyncio.gather(*readers)


async def test_readers_of_one_process_share_one_connection(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        writers = [await bench.writer() for _ in range(10)]
        readers = [asyncio.ensure_future(see(bench, writer.lease.run_id)) for writer in writers for _ in range(10)]
        for writer in writers:
            await followed(bench, writer.lease.run_id, 10)
            await write(writer, 5)
        assert len(await bench.store.redis.client_list(_type="pubsub")) == 1
        await asyncio.gather(*(end(writer) for writer in writers))
        await asyncio.gather(*readers)


async def test_readers_that_are_cancelled_leave_nothing_behind(own_redis: PrivateRedis) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        await write(writer, 20)
        counts, pool = [], cast("Any", bench.store.redis.connection_pool)
        for turn in range(12):
            readers = [asyncio.ensure_future(see(bench, run_id)) for _ in range(20)]
            if turn % 3:
                await followed(bench, run_id, 20)
            if turn % 3 == 2:
                await write(writer, 3)
            for _ in range(turn):
                await asyncio.sleep(0)
            for reader in readers:
                reader.cancel()
            ends = await asyncio.gather(*readers, return_exceptions=True)
            assert all(isinstance(item, asyncio.CancelledError) for item in ends)
            assert bench.hub._followers == {}
            counts.append(len(await bench.store.redis.client_list()))
            assert not pool._in_use_connections
        assert max(counts) <= pool.max_connections + 2  # and one for the hub, one for leases
        channel = bench.store.keys.channel(run_id)
        assert await bench.store.redis.pubsub_numsub(channel) == [(channel.encode(), 0)]
        assert await bench.store.redis.client_list(_type="pubsub") == []

        connections = len(await bench.store.redis.client_list())
        await bench.hub.stop()

        async def closed() -> bool:
            return len(await bench.store.redis.client_list()) == connections - 1

        await eventually(closed, what="the hub's connection to be closed")
        await end(writer)
        assert (await bench.runs.get(run_id)).status == "completed"


# Where reading ends


async def test_reading_ends_with_the_final_chunk(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    reader = asyncio.ensure_future(see(bench, run_id))
    await followed(bench, run_id)
    await write(writer, 3)
    await waiting(bench, run_id, reader)
    assert not reader.done()
    await end(writer)

    wire = await reader
    assert b'"final":true' in wire[-1]
    assert await see(bench, run_id, len(wire)) == []


async def test_a_text_that_reads_like_the_final_chunk_ends_nothing(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    reader = asyncio.ensure_future(see(bench, run_id))
    await followed(bench, run_id)
    writer.write(delta('{"type":"finish","final":true}'))
    await writer.flush()
    await waiting(bench, run_id, reader)
    assert not reader.done()
    await end(writer)
    assert len(await reader) == 2


async def test_a_reader_of_a_run_that_is_cancelled_in_the_queue_sees_its_end(bench: Workbench) -> None:
    run_id = await bench.create()
    reader = asyncio.ensure_future(see(bench, run_id))
    await followed(bench, run_id)
    await bench.runs.cancel(run_id)
    assert await reader == await bench.wire(run_id)


@pytest.mark.parametrize("run_id", ["nobody-knows-it", "", "a/b", "x" * 200])
async def test_an_unknown_run_is_an_error_and_not_a_silence(bench: Workbench, run_id: str) -> None:
    with pytest.raises(UnknownRun):
        await see(bench, run_id)
    assert bench.hub._followers == {}


async def test_an_expired_run_is_an_error_of_its_own(bench: Workbench) -> None:
    run_id = await bench.create(retention=1)
    writer = await bench.writer(run_id)
    await write(writer, 3)
    await end(writer)
    assert len(await see(bench, run_id)) == 4

    async def expired() -> bool:
        return not await bench.store.redis.exists(bench.store.keys.run(run_id), bench.store.keys.log(run_id))

    await eventually(expired, what="the retention to pass")
    with pytest.raises(RunExpired):
        await see(bench, run_id)
    assert bench.hub._followers == {}


@pytest.mark.parametrize("cursor", [-1, 4, 10**9])
async def test_a_cursor_outside_of_the_log_is_refused(bench: Workbench, cursor: int) -> None:
    writer = await bench.writer()
    await write(writer, 3)
    with pytest.raises(InvalidRequest) as caught:
        await see(bench, writer.lease.run_id, cursor)
    assert caught.value.details == {"lastSeq": 3}
    assert bench.hub._followers == {}


async def test_parsed_chunks_are_those_of_the_log(bench: Workbench) -> None:
    writer = await bench.writer()
    await write(writer, 10)
    await end(writer)
    seen = [chunk async for chunk in bench.observer.chunks(writer.lease.run_id, 4)]
    assert seen == (await bench.chunks(writer.lease.run_id))[4:]
    assert [chunk.seq for chunk in seen] == list(range(5, 12))


# A log that is not what its record says


async def test_a_reader_of_a_run_whose_log_is_gone_is_told(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    await write(writer, 10)
    await bench.store.redis.delete(bench.store.keys.log(run_id))

    async with asyncio.timeout(15):
        with pytest.raises(StoreUnavailable, match="lacks"):
            await see(bench, run_id)


async def test_a_reader_never_skips_what_the_log_has_lost(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    await write(writer, 10)
    await bench.store.redis.delete(bench.store.keys.log(run_id))
    await write(writer, 10)

    async with asyncio.timeout(15):
        with pytest.raises(StoreUnavailable, match="lacks"):
            await see(bench, run_id, 5)


async def test_a_message_that_cannot_be_read_costs_no_reader_its_ear(own_redis: PrivateRedis) -> None:
    """As another version may send it: whoever follows the run looks into the log, and all hear on."""
    async with Workbench(on(own_redis.url)) as bench:
        writer = await bench.writer()
        run_id = writer.lease.run_id
        reader = asyncio.ensure_future(see(bench, run_id))
        await heard(bench, writer, 1)
        for _ in range(2):  # the first that is heard may be that message itself
            assert await bench.store.redis.publish(bench.store.keys.channel(run_id), b"\xff") == 1
            await heard(bench, writer, 1)
        await end(writer)
        assert await reader == await bench.wire(run_id)


async def is_suspended(record: RunRecord) -> bool:
    return record.status is RunStatus.SUSPENDED


async def rest_of(bench: Workbench, run_id: str, **how: Any) -> list[int]:
    """The last seqs of the entries that a reader sees who may end where the run waits."""
    async with aclosing(bench.observer.pages(run_id, pauses=is_suspended, **how)) as pages:
        return [entry.last async for page in pages for entry in page]


async def test_a_reader_may_end_where_the_run_waits_and_not_before_it_has_all(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    await write(writer, 1)
    reader = asyncio.ensure_future(rest_of(bench, run_id))
    await followed(bench, run_id)
    await waiting(bench, run_id, reader)
    assert await suspend(bench.store, writer.lease, 0, {"reason": "decision"}, [delta("last")]) == "suspended"
    async with asyncio.timeout(20):
        assert await reader == [1, 2]
    assert await rest_of(bench, run_id, after=2) == []


async def test_a_reader_hears_that_the_run_waits_where_no_chunk_tells_it(bench: Workbench) -> None:
    writer = await bench.writer()
    await write(writer, 1)
    reader = asyncio.ensure_future(rest_of(bench, writer.lease.run_id))
    await followed(bench, writer.lease.run_id)
    await waiting(bench, writer.lease.run_id, reader)
    assert await suspend(bench.store, writer.lease, 0, {"reason": "decision"}) == "suspended"
    async with asyncio.timeout(20):
        assert await reader == [1]


async def test_a_reader_that_did_not_hear_that_the_run_waits_finds_out(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await bench.writer()
    await write(writer, 1)
    deliver = Hub._deliver
    monkeypatch.setattr(Hub, "_deliver", lambda self, channel, data: data == SUSPENDED or deliver(self, channel, data))
    reader = asyncio.ensure_future(rest_of(bench, writer.lease.run_id, silence=0.5))
    await followed(bench, writer.lease.run_id)
    await waiting(bench, writer.lease.run_id, reader)
    assert await suspend(bench.store, writer.lease, 0, {"reason": "decision"}) == "suspended"
    async with asyncio.timeout(20):
        assert await reader == [1]
