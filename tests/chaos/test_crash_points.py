"""Crash once at every passing of every point, go on in a new process, and compare with the run that never crashed.

The run has all that can be torn: thinking, text, three tools side by side, a tool that fails, one that asks for another
try, arguments that do not fit, and an output that is refused once. `CHAOS=all` crashes everywhere; the ordinary suite
takes the first and the last passing of each point and some between them, by a seed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Final

import pytest

from durable.probes import Point
from durable.sweeper import Sweeper
from tests.chaos.chance import seeded
from tests.chaos.comparison import CALLS, Reference, compare, folder, recorded
from tests.chaos.effective import counted
from tests.chaos.forks import Forks
from tests.chaos.stage import Stage
from tests.workbench import on

EVERYWHERE: Final = os.environ.get("CHAOS") == "all"
SEED: Final = os.environ.get("SEED", "1")
SAMPLE: Final = 5
"""Passings of a point that the ordinary suite crashes at, at most."""
pytestmark = pytest.mark.timeout(900 if EVERYWHERE else 60)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as found:
        yield found


@pytest.fixture(params=[False, *([True] if EVERYWHERE else [])], ids=lambda each: "by steps" if each else "on end")
async def stage(request: pytest.FixtureRequest, forks: Forks, redis_url: str) -> AsyncIterator[Stage]:
    """Attempts that go on to the end, or give the run back after every step."""
    always: bool = request.param
    async with Stage(forks, on(redis_url, always_resume=always)) as found:
        yield found


@pytest.fixture
async def whole(stage: Stage) -> Reference:
    """The run that never crashed, with what is to be expected of it."""
    run_id = await stage.bench.create(agent="everything")
    report = stage.execute(run_id)
    assert report.outcome == "completed"
    whole = await Reference.of(stage, run_id, report)
    assert whole.record[0] == {"title": "final", "score": 9}
    assert counted(whole.chunks, "tool-call") == CALLS
    assert set(whole.effects.values()) == {1}
    assert len(whole.effects) == 5 + 7, "five requests and seven executions"
    assert whole.record[1].total_tokens > 0
    return whole


async def test_the_run_has_all_that_can_be_torn(whole: Reference) -> None:
    folded = folder(whole.chunks)
    assert folded.text == "I will look.Now the rest.Done, I think."
    assert folded.reasoning == "Let me think."
    errors = {call.tool_call_id: call.error.code for call in folded.calls.values() if call.error is not None}
    assert errors == {"c4": "tool_failed", "c5": "tool_retry", "c6": "tool_retry", "c9": "tool_retry"}
    assert len(whole.ledger) == 7, "what was executed, and nothing else"


@pytest.mark.parametrize("point", [point for point in Point if not point.startswith("release")])
async def test_a_crash_leaves_no_trace_in_what_counts(stage: Stage, whole: Reference, point: Point) -> None:
    await crash_and_compare(stage, whole, point)


@pytest.mark.parametrize("point", [Point.RELEASE_BEFORE, Point.RELEASE_AFTER])
@pytest.mark.parametrize("stage", [True], indirect=True, ids=["by steps"])
async def test_a_crash_while_a_run_is_given_back_leaves_no_trace(stage: Stage, whole: Reference, point: Point) -> None:
    await crash_and_compare(stage, whole, point)


async def crash_and_compare(stage: Stage, whole: Reference, point: Point) -> None:
    """Crash at passings of a point, one run each; take them all over; compare."""
    crashed: dict[str, tuple[str, set[str]]] = {}
    for occurrence in occurrences(point, whole.passed.get(point, 0)):
        run_id = await stage.bench.create(agent="everything")
        if stage.execute(run_id, point, occurrence).crashed:
            crashed[run_id] = f"{point} {occurrence}", await recorded(stage, run_id)
        else:  # what is sent in one batch depends on time: this point was passed less often
            await compare(stage, whole, run_id, f"no {point} {occurrence}", torn=0, complete=set())
    assert crashed, f"{point} is never passed"
    await let_them_be_found(stage, list(crashed))
    for run_id, (where, complete) in crashed.items():
        if (await stage.record(run_id)).status != "completed":
            assert stage.resume(run_id) == "completed", where
        await compare(stage, whole, run_id, where, torn=1, complete=complete)


def occurrences(point: Point, passed: int) -> list[int]:
    """At which passings to crash."""
    every = range(1, passed + 1)
    if EVERYWHERE or passed <= SAMPLE:
        return list(every)
    return sorted({1, passed, *seeded(f"{SEED} {point}").sample(every, SAMPLE - 2)})


async def let_them_be_found(stage: Stage, run_ids: list[str]) -> None:
    """Let the leases run out, and the sweeper find the runs that somebody left behind."""
    left = [run_id for run_id in run_ids if (await stage.record(run_id)).status == "running"]
    for run_id in left:
        await stage.expire(run_id)
    await Sweeper(stage.bench.store, stage.settings, stage.wake, "test").sweep()
    assert set(left) <= set(stage.woken)
