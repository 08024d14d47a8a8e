from __future__ import annotations

import asyncio
import logging

import pytest

from durable.client.outage import NOTICE_SECONDS, Outage
from durable.errors import DurableError, ServerUnreachable

FAILURE = ServerUnreachable("gone")


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[DurableError | None]:
    return []


@pytest.fixture
def outage(clock: Clock, told: list[DurableError | None]) -> Outage:
    return Outage("http://server", told.append, clock)


async def test_a_short_outage_is_not_told(outage: Outage, clock: Clock, told: list[DurableError | None]) -> None:
    await outage.pause(0, FAILURE)
    clock.now += NOTICE_SECONDS - 0.1
    await outage.pause(0, FAILURE)
    outage.over()
    clock.now += NOTICE_SECONDS
    await outage.pause(0, FAILURE)
    assert told == []


async def test_an_outage_and_its_end_are_told_once(
    outage: Outage, clock: Clock, told: list[DurableError | None]
) -> None:
    await outage.pause(0, FAILURE)
    clock.now += NOTICE_SECONDS
    await asyncio.gather(*(outage.pause(0, FAILURE) for _ in range(3)))
    assert told == [FAILURE]
    outage.over()
    outage.over()
    assert told == [FAILURE, None]


async def test_a_try_that_was_never_answered_counts_from_its_begin(
    outage: Outage, clock: Clock, told: list[DurableError | None]
) -> None:
    await outage.pause(0, FAILURE, since=clock.now - NOTICE_SECONDS)
    assert told == [FAILURE]


async def test_a_long_pause_does_not_delay_the_news(
    outage: Outage, clock: Clock, told: list[DurableError | None]
) -> None:
    pausing = asyncio.create_task(outage.pause(3600, FAILURE, since=clock.now - NOTICE_SECONDS))
    async with asyncio.timeout(10):
        while not told:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
    assert not pausing.done()
    pausing.cancel()


async def test_by_default_the_log_has_it_without_the_error_itself(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage("http://server", None, clock)
    with caplog.at_level(logging.WARNING, "durable.client"):
        await outage.pause(0, FAILURE, since=0)
        outage.over()
    assert [record.getMessage() for record in caplog.records] == [
        "http://server does not answer (server_unreachable); trying again",
        "http://server answers again",
    ]
