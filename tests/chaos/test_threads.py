"""Crash at every point of a run of a thread: what it says is added once, and the next run begins with its end."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter

from durable.doctor import Doctor
from durable.probes import Point
from durable.sweeper import Sweeper
from durable.threads import thread_page
from tests.chaos.stage import Stage

pytestmark = pytest.mark.timeout(120)
ELSEWHERE = ("release", "announce", "suspend", "delegate", "mirror")
"""Points that runs which neither wait nor start others do not pass."""
POINTS = [point for point in Point if not point.startswith(ELSEWHERE)]


async def two_runs(stage: Stage, thread: str) -> tuple[str, str]:
    """Two runs of a thread, of which the second waits for the first."""
    asked = {"thread_id": thread}
    first, second = [await stage.bench.create(agent="talker", asked=asked) for _ in range(2)]
    assert not (await stage.record(first)).behind
    assert (await stage.record(second)).behind
    return first, second


async def said(stage: Stage, thread: str) -> list[tuple[str, Any]]:
    """What the runs of a thread have said, without what differs from one thread to another."""
    own = frozenset({"timestamp", "run_id", "conversation_id"})

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(item) for name, item in value.items() if name not in own}
        return [without(item) for item in value] if isinstance(value, list) else value

    found, _ = await thread_page(stage.bench.runs, thread, list, limit=1000)
    return [
        (run_id, without(ModelMessagesTypeAdapter.dump_python([message for _, message in group], mode="json")))
        for run_id, group in groupby(found, lambda one: one[0].run_id)
    ]


async def check(stage: Stage, first: str, second: str) -> None:
    """Whatever happened to the first run, the second has begun exactly if that has ended."""
    one, two = await stage.record(first), await stage.record(second)
    woken = await stage.bench.store.redis.zscore(stage.bench.store.keys.wakeups, second) is not None
    assert two.behind != one.status.ended
    assert woken == one.status.ended
    assert not any([await Doctor(stage.bench.store).examine(first), await Doctor(stage.bench.store).examine(second)])


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_neither_doubles_what_a_run_says_nor_loses_the_next_one(stage: Stage, point: Point) -> None:
    first, second = await two_runs(stage, "whole")
    passed = stage.execute(first).passed[point]
    stage.resume(second)
    whole = await said(stage, "whole")
    assert [run_id for run_id, _ in whole] == [first, second]
    for occurrence in sorted({1, passed // 2 or 1, passed}):
        thread = f"torn-{occurrence}"
        first, second = await two_runs(stage, thread)
        report = stage.execute(first, point, occurrence)
        await check(stage, first, second)
        if not (await stage.record(first)).status.ended:
            assert report.crashed
            assert await said(stage, thread) == []
            if (await stage.record(first)).status == "running":
                await stage.expire(first)
                await check(stage, first, second)
            assert stage.execute(second).outcome == "", "it waits"
            assert stage.resume(first) == "completed"
            await check(stage, first, second)
        stage.woken.clear()
        await Sweeper(stage.bench.store, stage.settings, stage.wake, "test").sweep()
        assert second in stage.woken, "whoever ended the first run may be gone"
        assert stage.resume(second) == "completed"
        assert [messages for _, messages in await said(stage, thread)] == [messages for _, messages in whole]
        assert [run_id for run_id, _ in await said(stage, thread)] == [first, second]
