"""Crash once at every passing of every point, go on in a new process, and compare with the run that never crashed.

The run has all that can be torn: thinking, text, three tools side by side, a tool that fails, one that asks for another
try, arguments that do not fit, and an output that is refused once. Another has calls that wait for somebody: it is
answered, and goes on in a new process each time. A third has calls that are made in the background. `CHAOS=all` crashes
everywhere; the ordinary suite takes the first and the last passing of each point and some between them, by a seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Final

import pytest

from durable.probes import Point
from tests.chaos.chance import seeded
from tests.chaos.comparison import Reference, compare, folder, recorded
from tests.chaos.effective import counted
from tests.chaos.flows import DECIDING, EVERYTHING, Flow
from tests.chaos.forks import Forks
from tests.chaos.play import Crash, let_them_be_found, play
from tests.chaos.stage import Stage
from tests.chaos.task_flows import DELEGATING
from tests.workbench import on

EVERYWHERE: Final = os.environ.get("CHAOS") == "all"
SEED: Final = os.environ.get("SEED", "1")
SAMPLE: Final = 5
"""Passings of a point that the ordinary suite crashes at, at most."""
WAITING: Final = ("announce", "suspend")
"""Points that only a run with calls that wait passes."""
TASKS: Final = ("delegate", "mirror")
"""Points that only a run with background tasks passes, or a task."""
pytestmark = pytest.mark.timeout(900 if EVERYWHERE else 60)


@pytest.fixture(params=[False, *([True] if EVERYWHERE else [])], ids=lambda each: "by steps" if each else "on end")
async def stage(request: pytest.FixtureRequest, forks: Forks, redis_url: str) -> AsyncIterator[Stage]:
    """Attempts that go on to the end, or give the run back after every step."""
    always: bool = request.param
    async with Stage(forks, on(redis_url, always_resume=always)) as found:
        yield found


@pytest.fixture
async def whole(stage: Stage) -> Reference:
    """The run that never crashed, with what is to be expected of it."""
    whole = await uncrashed(stage, EVERYTHING)
    assert whole.record[0] == {"title": "final", "score": 9}
    assert counted(whole.chunks, "tool-call") == [f"c{number}" for number in range(1, 11)]
    assert set(whole.effects.values()) == {1}
    assert len(whole.effects) == 5 + 7, "five requests and seven executions"
    assert whole.record[1].total_tokens > 0
    return whole


@pytest.fixture
async def decided(stage: Stage) -> Reference:
    """The run whose calls wait, and that never crashed."""
    decided = await uncrashed(stage, DECIDING)
    assert json.loads(decided.record[0]) == DECIDING.told
    assert {key: decided.effects[f":1:{key}"] for key in ("c1", "c2", "c3", "c4")} == {
        "c1": 1,
        "c2": 1,
        "c3": 2,
        "c4": 0,
    }
    assert len(decided.passed) >= 3
    return decided


@pytest.fixture
async def delegated(stage: Stage) -> Reference:
    """The run whose calls are made in the background, and that never crashed."""
    delegated = await uncrashed(stage, DELEGATING)
    assert json.loads(delegated.record[0]) == DELEGATING.told
    assert sorted(counted(delegated.chunks, "background-task-started")) == sorted(DELEGATING.told)
    return delegated


async def uncrashed(stage: Stage, flow: Flow) -> Reference:
    run_id = await stage.bench.create(agent=flow.agent, asked=flow.asked)
    return await Reference.of(stage, run_id, *await play(stage, flow, run_id))


async def test_the_run_has_all_that_can_be_torn(whole: Reference) -> None:
    folded = folder(whole.chunks)
    assert folded.text == "I will look.Now the rest.Done, I think."
    assert folded.reasoning == "Let me think."
    errors = {call.tool_call_id: call.error.code for call in folded.calls.values() if call.error is not None}
    assert errors == {"c4": "tool_failed", "c5": "tool_retry", "c6": "tool_retry", "c9": "tool_retry"}
    assert len(whole.ledger) == 7, "what was executed, and nothing else"


@pytest.mark.parametrize("point", [point for point in Point if not point.startswith(("release", *WAITING, *TASKS))])
async def test_a_crash_leaves_no_trace_in_what_counts(stage: Stage, whole: Reference, point: Point) -> None:
    await crash_and_compare(stage, EVERYTHING, whole, point)


@pytest.mark.parametrize("point", [point for point in Point if not point.startswith(("release", *TASKS))])
async def test_a_crash_leaves_no_trace_in_what_was_decided(stage: Stage, decided: Reference, point: Point) -> None:
    await crash_and_compare(stage, DECIDING, decided, point)


@pytest.mark.parametrize("point", list(Point))
async def test_a_crash_leaves_no_trace_in_what_is_made_in_the_background(
    stage: Stage, delegated: Reference, point: Point
) -> None:
    await crash_and_compare(stage, DELEGATING, delegated, point, sample=3)  # it has many attempts


@pytest.mark.parametrize("point", [Point.RELEASE_BEFORE, Point.RELEASE_AFTER])
@pytest.mark.parametrize("stage", [True], indirect=True, ids=["by steps"])
async def test_a_crash_while_a_run_is_given_back_leaves_no_trace(
    stage: Stage, whole: Reference, decided: Reference, point: Point
) -> None:
    await crash_and_compare(stage, EVERYTHING, whole, point)
    await crash_and_compare(stage, DECIDING, decided, point)


async def crash_and_compare(stage: Stage, flow: Flow, whole: Reference, point: Point, *, sample: int = SAMPLE) -> None:
    """Crash at passings of a point, one run each; take them all over; compare."""
    crashed: dict[str, tuple[str, set[str]]] = {}
    for crash in crashes(point, whole, sample):
        run_id = await stage.bench.create(agent=flow.agent, asked=flow.asked)
        reports = await play(stage, flow, run_id, crash)
        if reports[-1].crashed:
            crashed[run_id] = str(crash), await recorded(stage, run_id)
        else:  # what is sent in one batch depends on time: this point was passed less often
            await compare(stage, whole, run_id, f"no {crash}", torn=0, complete=set())
    assert crashed, f"{point} is never passed"
    await let_them_be_found(stage, list(crashed))
    for run_id, (where, complete) in crashed.items():
        await play(stage, flow, run_id)
        await compare(stage, whole, run_id, where, torn=1, complete=complete)


def crashes(point: Point, whole: Reference, sample: int) -> list[Crash]:
    """Where to crash."""
    every = [
        Crash(attempt, point, occurrence)
        for attempt, passed in enumerate(whole.passed)
        for occurrence in range(1, passed.get(point, 0) + 1)
    ]
    if EVERYWHERE or len(every) <= sample:
        return every
    chosen = seeded(f"{SEED} {point}").sample(every[1:-1], sample - 2)
    return [every[0], *(crash for crash in every if crash in chosen), every[-1]]
