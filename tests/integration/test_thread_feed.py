"""Following a thread: each chunk of each of its runs once, also when notices are lost or pages come slowly."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from durable.errors import InvalidRequest, ThreadConflict
from durable.journal import Entry
from durable.observer import Hub
from durable.settings import Settings
from durable.thread_feed import ThreadFeed
from durable.writer import RunWriter
from tests.workbench import Workbench, completed, delta, finish

THREAD = {"thread_id": "t", "resource_id": "r"}


class Deaf(Hub):
    """Hears of no run of a thread, only that something may have been missed."""

    def _deliver(self, channel: str, data: bytes) -> None:
        if not channel.endswith(":begun"):
            super()._deliver(channel, data)
            return
        for ear in self._followers.get(channel, ()):
            ear.stir()


def feed(bench: Workbench) -> ThreadFeed:
    return ThreadFeed(bench.store, bench.runs, bench.hub, bench.observer)


async def run_in_thread(bench: Workbench, *texts: str, thread: dict[str, str] | None = None) -> str:
    """A run of the thread, from its beginning to its end."""
    run_id = await bench.create(asked=thread or THREAD)
    writer = await bench.writer(run_id)
    await say(writer, *texts)
    await writer.finish(completed(), finish())
    return run_id


async def say(writer: RunWriter, *texts: str) -> None:
    for text in texts:
        writer.write(delta(text))
    await writer.flush()


async def read(pages: AsyncGenerator[list[Entry]], count: int) -> list[tuple[str, int]]:
    """So many chunks: the run and the seq of each."""
    found: list[tuple[str, int]] = []
    while len(found) < count:
        page = await anext(pages)
        found += [(entry.run_id, seq) for entry in page for seq in range(entry.first, entry.last + 1)]
    return found


@pytest.mark.parametrize("hub", [Hub, Deaf])
async def test_all_of_each_run_that_begins_is_told_once_also_when_its_notice_is_lost(
    settings: Settings, hub: type[Hub]
) -> None:
    async with Workbench(settings, hub=hub) as bench:
        await run_in_thread(bench, "before")
        pages = feed(bench).pages("t", resource_id="r")
        assert await anext(pages) == []
        for _ in range(3):
            run_id = await run_in_thread(bench, "a", "b")
            assert await read(pages, 3) == [(run_id, 1), (run_id, 2), (run_id, 3)]
        await pages.aclose()


async def test_the_run_that_goes_on_is_told_from_where_it_is(settings: Settings) -> None:
    async with Workbench(settings) as bench:
        run_id = await bench.create(asked=THREAD)
        writer = await bench.writer(run_id)
        await say(writer, "a", "b")
        pages = feed(bench).pages("t")
        assert await anext(pages) == []
        await say(writer, "c")
        assert await read(pages, 1) == [(run_id, 3)]
        await pages.aclose()


async def test_runs_of_another_thread_or_resource_are_not_told(settings: Settings) -> None:
    async with Workbench(settings) as bench:
        pages = feed(bench).pages("t", resource_id="r", silence=0.2)
        assert await anext(pages) == []
        await run_in_thread(bench, "a", thread={"thread_id": "u", "resource_id": "r"})
        await run_in_thread(bench, "a", thread={"thread_id": "t", "resource_id": "s"})
        assert [await anext(pages) for _ in range(2)] == [[], []]
        await pages.aclose()
        with pytest.raises(ThreadConflict):
            await anext(feed(bench).pages("t", resource_id="r"))
        with pytest.raises(InvalidRequest):
            await anext(feed(bench).pages("no id"))


async def test_a_server_that_stops_ends_it(settings: Settings) -> None:
    async with Workbench(settings) as bench:
        pages = feed(bench).pages("t")
        assert await anext(pages) == []
        bench.hub.dismiss()
        assert [page async for page in pages] == []
