"""Wake-ups: a broker that hangs holds nobody, and a process executes no more at a time than it may."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator

import pytest

from durable.dispatch import CeleryDispatcher, InProcessDispatcher
from durable.runs import RunRecord


@pytest.fixture
def hanging_broker() -> Iterator[str]:
    """A broker that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def _record(run_id: str) -> RunRecord:
    return RunRecord(run_id, {"agent": b"nobody", "queue": b"nowhere", "status": b"queued", "token": b"0"})


async def test_a_broker_that_hangs_holds_nobody_who_asks_for_a_run(
    hanging_broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = CeleryDispatcher(hanging_broker)
    caplog.set_level(logging.WARNING, logger="durable.dispatch")  # a worker in this process may have set the root's
    try:
        async with asyncio.timeout(3):  # the broker's own time limit is 5 s
            await asyncio.gather(*(dispatcher.dispatch(_record(f"run-{n}")) for n in range(20)))
    finally:
        await asyncio.wait_for(asyncio.to_thread(dispatcher.close), 1)
    assert sum("slow to take its wake-up" in message for message in caplog.messages) == 20


async def test_no_more_runs_are_executed_at_a_time_than_the_process_may() -> None:
    under_way: set[str] = set()
    most = 0
    ended: list[str] = []
    all_ended = asyncio.Event()

    async def execute(run_id: str) -> None:
        nonlocal most
        under_way.add(run_id)
        most = max(most, len(under_way))
        for _ in range(5):
            await asyncio.sleep(0)
        under_way.remove(run_id)
        ended.append(run_id)
        if len(ended) == 10:
            all_ended.set()
        if run_id == "run-3":
            raise ValueError("a run that can't be executed gives its place back too")

    dispatcher = InProcessDispatcher(execute, 2)
    for n in range(10):
        await dispatcher.dispatch(_record(f"run-{n}"))
    async with asyncio.timeout(10):
        await all_ended.wait()
    assert most == 2
    assert ended == [f"run-{n}" for n in range(10)]


async def test_a_run_that_waits_for_a_place_waits_once_however_often_it_is_woken() -> None:
    go_on, last = asyncio.Event(), asyncio.Event()
    executed: list[str] = []

    async def execute(run_id: str) -> None:
        executed.append(run_id)
        await go_on.wait()
        if run_id == "last":
            last.set()

    dispatcher = InProcessDispatcher(execute, 1)
    for run_id in ("first", "woken", "woken", "woken", "last"):
        await dispatcher.dispatch(_record(run_id))
    go_on.set()
    async with asyncio.timeout(10):
        await last.wait()
    assert executed == ["first", "woken", "last"]
