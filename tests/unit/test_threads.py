"""Calls that were given up and do not return are counted, and nobody else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from durable.execution.threads import ToolThreads
from tests.conftest import eventually


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What the blocked calls wait for. It comes at the end, for this process has to end as well."""
    event = threading.Event()
    yield event
    event.set()


def blocked(threads: ToolThreads, calls: int, until: threading.Event) -> None:
    """Give up an attempt in the middle of some calls."""
    attempt, begun = threads.of_attempt(), threading.Semaphore(0)

    def block() -> None:
        begun.release()
        until.wait()

    for _ in range(calls):
        attempt.submit(block)
    for _ in range(calls):
        assert begun.acquire(timeout=10)
    threads.give_up(attempt)


async def counted(caplog: pytest.LogCaptureFixture, words: str) -> None:
    async def said() -> bool:
        return any(message.startswith(words) for message in caplog.messages)

    await eventually(said, what=words)


async def test_when_more_than_half_of_the_threads_hang_it_is_told_once(
    caplog: pytest.LogCaptureFixture, released: threading.Event
) -> None:
    told: list[int] = []
    threads = ToolThreads(4, 0.01, lambda: told.append(threads.busy))
    with caplog.at_level(logging.WARNING, logger="durable.execution.threads"):
        blocked(threads, 2, released)
        await counted(caplog, "2 of 4 tool threads")
        assert told == []
        blocked(threads, 1, released)
        await counted(caplog, "3 of 4 tool threads")
        blocked(threads, 1, released)
        await counted(caplog, "4 of 4 tool threads")
    assert told == [3]
    threads.close()


async def test_a_call_that_returns_in_time_is_not_counted(
    caplog: pytest.LogCaptureFixture, released: threading.Event
) -> None:
    told: list[bool] = []
    returned = threading.Event()
    threads = ToolThreads(3, 0.2, lambda: told.append(True))
    with caplog.at_level(logging.WARNING, logger="durable.execution.threads"):
        blocked(threads, 2, returned)
        assert threads.busy == 2
        returned.set()

        async def free() -> bool:
            return threads.busy == 0

        await eventually(free, what="the threads to be free")
        blocked(threads, 1, released)
        await counted(caplog, "1 of 3 tool threads")
    assert told == []
    threads.close()


async def test_a_call_that_waits_for_a_thread_is_never_made_once_its_attempt_has_ended(
    released: threading.Event,
) -> None:
    threads, made = ToolThreads(1, 60), threading.Event()
    attempt, begun = threads.of_attempt(), threading.Event()

    def block() -> None:
        begun.set()
        released.wait()

    attempt.submit(block)
    waiting = attempt.submit(made.set)
    assert begun.wait(10)
    threads.give_up(attempt)
    assert waiting.cancelled()
    assert threads.busy == 1
    released.set()
    assert threads.of_attempt().submit(made.is_set).result(10) is False
    threads.close()
