"""A conversation is read in pages: no message is left out and none comes twice, whatever is said meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart

from durable.conversation import Conversation
from durable.errors import InvalidRequest
from durable.runs import Runs
from durable.settings import Settings
from durable.threads import READ_AT_ONCE, exchange, thread_page
from tests.workbench import Workbench

NOTHING = Conversation(None, [], None)


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


def said_by(run_id: str, count: int) -> bytes:
    """What a run has said: questions and answers in turn."""
    messages: list[ModelMessage] = []
    for number in range(1, count + 1):
        text = f"{run_id}.{number}"
        question, answer = ModelRequest(parts=[UserPromptPart(text)]), ModelResponse(parts=[TextPart(text)])
        messages.append(question if number % 2 else answer)
    return exchange(run_id, NOTHING, messages, whole=True)


async def say(bench: Workbench, *runs: tuple[str, int], at: int | None = None) -> None:
    """Have runs say so many messages each; the first of them in the place of another."""
    keys, redis = bench.store.keys, bench.store.redis
    await redis.hset(keys.thread("t"), "resource", "")
    if at is not None:
        await redis.ltrim(keys.exchanges("t"), 0, at - 1)
    await redis.rpush(keys.exchanges("t"), *(said_by(run_id, count) for run_id, count in runs))


async def page(bench: Workbench, limit: int, cursor: str | None, newest_first: bool) -> tuple[list[str], str | None]:
    """Messages by their run and number, and the cursor of the next page."""
    found, following = await thread_page(bench.runs, "t", list, limit=limit, cursor=cursor, newest_first=newest_first)
    names = [f"{place.run_id}.{place.number}" for place, _ in found]
    assert names == [getattr(message.parts[0], "content", None) for _, message in found]
    return names, following


async def rest(bench: Workbench, limit: int, cursor: str | None = None, *, newest_first: bool = False) -> list[str]:
    """All messages from a cursor on."""
    found: list[str] = []
    while True:
        names, cursor = await page(bench, limit, cursor, newest_first)
        assert len(names) <= limit
        found += names
        if cursor is None:
            return found


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 200])
async def test_pages_leave_no_gap_and_repeat_nothing(bench: Workbench, limit: int, newest_first: bool) -> None:
    runs = [(f"r{number}", 2 + number % 4) for number in range(30)]
    await say(bench, *runs)
    expected = [f"{run_id}.{number}" for run_id, count in runs for number in range(1, count + 1)]
    found = await rest(bench, limit, newest_first=newest_first)
    assert found == (expected[::-1] if newest_first else expected)


async def test_a_page_of_a_long_thread_reads_a_small_part_of_it(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, read = list[int](), Runs.exchanges

    async def noted(self: Runs, thread_id: str, count: int, *, start: int = 0) -> list[bytes]:
        found = await read(self, thread_id, count, start=start)
        asked.append(len(found))
        return found

    await say(bench, *((f"r{number}", 2) for number in range(5000)))
    monkeypatch.setattr(Runs, "exchanges", noted)
    for newest_first in (False, True):
        first, cursor = await page(bench, 50, None, newest_first)
        second, _ = await page(bench, 50, cursor, newest_first)
        assert len(set(first + second)) == 100
    assert max(asked) <= READ_AT_ONCE
    assert sum(asked) <= 4 * (25 + 1 + READ_AT_ONCE)


async def test_what_is_said_while_a_thread_is_read_shifts_nothing(bench: Workbench) -> None:
    await say(bench, ("r1", 3), ("r2", 3))
    forward, onward = await page(bench, 4, None, False)
    backward, back = await page(bench, 2, None, True)
    await say(bench, ("r2", 5), ("r3", 2), at=1)  # it was suspended, and has gone on
    assert forward + await rest(bench, 2, onward) == [
        *("r1.1", "r1.2", "r1.3", "r2.1"),
        *("r2.2", "r2.3", "r2.4", "r2.5", "r3.1", "r3.2"),
    ]
    assert backward + await rest(bench, 2, back, newest_first=True) == ["r2.3", "r2.2", "r2.1", "r1.3", "r1.2", "r1.1"]


async def test_what_a_retry_says_in_the_place_of_its_run_is_read_whole(bench: Workbench) -> None:
    await say(bench, ("r1", 2), ("r2", 4))
    _, onward = await page(bench, 5, None, False)
    _, back = await page(bench, 2, None, True)
    await say(bench, ("retry", 4), at=1)
    assert await rest(bench, 10, onward) == ["retry.1", "retry.2", "retry.3", "retry.4"]
    assert await rest(bench, 10, back, newest_first=True) == [
        *("retry.4", "retry.3", "retry.2", "retry.1"),
        *("r1.2", "r1.1"),
    ]


async def test_a_place_that_is_there_no_more_is_gone_on_from(bench: Workbench) -> None:
    await say(bench, ("r1", 2), ("r2", 2), ("r3", 2))
    _, onward = await page(bench, 5, None, False)
    _, back = await page(bench, 1, None, True)
    await bench.store.redis.ltrim(bench.store.keys.exchanges("t"), 0, 1)  # a retry that fails takes all of it back
    assert await rest(bench, 10, onward) == []
    async with asyncio.timeout(10):
        for cursor in (back, "999999999.r9.1"):
            assert await rest(bench, 10, cursor, newest_first=True) == ["r2.2", "r2.1", "r1.2", "r1.1"]


@pytest.mark.parametrize("cursor", ["", "1", "1.r1", "-1.r1.1", "1.r1.x", "1.r 1.1", "1.r1.1.1", "1.r1.1\n", "٣.r1.1"])
async def test_a_cursor_that_is_none_of_ours_is_refused(bench: Workbench, cursor: str) -> None:
    await say(bench, ("r1", 2))
    with pytest.raises(InvalidRequest):
        await page(bench, 5, cursor, False)
