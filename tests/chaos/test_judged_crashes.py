"""Crash a run around each verdict on it: no verdict that was stored is asked for again, and the end is the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from durable import ledger
from durable.decisions import Answer, Decisions
from durable.probes import Point
from tests.chaos.chance import seeded
from tests.chaos.comparison import folder
from tests.chaos.effective import effective
from tests.chaos.forks import Forks
from tests.chaos.stage import Stage
from tests.workbench import on

EVERYWHERE: Final = os.environ.get("CHAOS") == "all"
SEED: Final = os.environ.get("SEED", "1")
SAMPLE: Final = 6
KINDS: Final = ("input-guardrail", "scorer", "goal", "output-guardrail")
POINTS: Final = (Point.MODEL_BEFORE, Point.APPEND_BEFORE, Point.APPEND_AFTER, Point.FINISH_BEFORE)
pytestmark = pytest.mark.timeout(300 if EVERYWHERE else 60)


@pytest.fixture(params=[False, True], ids=["on end", "by steps"])
async def stage(request: pytest.FixtureRequest, forks: Forks, redis_url: str) -> AsyncIterator[Stage]:
    async with Stage(forks, on(redis_url, always_resume=request.param)) as found:
        yield found


async def to_the_end(stage: Stage, run_id: str) -> Counter[str]:
    """Make attempts until the run has ended. Returns how often each point was passed."""
    passed: Counter[str] = Counter()
    while (status := (await stage.record(run_id)).status) != "completed":
        if status == "suspended":
            await answer(stage, run_id)
        report = stage.execute(run_id)
        assert not report.crashed
        passed.update(report.passed)
    return passed


async def answer(stage: Stage, run_id: str) -> None:
    """Resume the run's goal."""
    decisions = Decisions(stage.bench.store, stage.bench.runs)
    [[call]] = await decisions.calls([run_id])
    await decisions.decide(run_id, call.tool_call_id, Answer(kind="resume", data={"message": "really"}))


async def verdicts(stage: Stage, run_id: str) -> Counter[str]:
    """How many verdicts of each kind are stored."""
    fields = await stage.bench.runs.ledger(run_id)
    return Counter(
        kind for field in fields if not ledger.is_answer(field) for kind in KINDS if ledger.judgement(kind) in field
    )


async def outcome(stage: Stage, run_id: str) -> list[Any]:
    """What has to be the same, however often the run was lost."""
    view, chunks = (await stage.record(run_id)).view(), await stage.bench.chunks(run_id)
    messages = await stage.messages(run_id)
    return [view.status, view.reason, view.output, view.tripwire, view.usage, messages, effective(chunks)]


@pytest.mark.parametrize("prompt", ["go", "stop", "wait"])
@pytest.mark.parametrize("point", POINTS)
async def test_no_stored_verdict_is_asked_for_again(stage: Stage, point: Point, prompt: str) -> None:
    whole = await stage.bench.create(prompt=prompt, agent="judged")
    passed = await to_the_end(stage, whole)
    expected = await outcome(stage, whole)
    assert expected[1] == ("tripwire" if prompt == "stop" else None)
    text = folder(await stage.bench.chunks(whole)).text
    assert text == ("draft 1draft 2" if prompt == "stop" else "draft 1draft 2draft 3")
    once = Counter((effect.kind, effect.key) for effect in stage.effects(whole, *KINDS))
    assert once == {("input-guardrail", "1"): 1, ("output-guardrail", "1"): 1} | {
        (kind, str(number)): 1 for kind, count in (("scorer", 3), ("goal", 2)) for number in range(1, count + 1)
    }
    every = range(1, passed[point] + 1)
    chosen = every if EVERYWHERE or len(every) <= SAMPLE else sorted(seeded(f"{SEED} {point}").sample(every, SAMPLE))
    crashed = 0
    for occurrence in chosen:
        run_id = await stage.bench.create(prompt=prompt, agent="judged")
        left = occurrence
        while (status := (await stage.record(run_id)).status) != "completed":
            if status == "suspended":
                await answer(stage, run_id)
            report = stage.execute(run_id, point, left)
            if report.crashed:
                break
            left -= report.passed.get(point, 0)
        if (await stage.record(run_id)).status == "running":
            crashed += 1
            await stage.expire(run_id)
        stored = await verdicts(stage, run_id)
        await to_the_end(stage, run_id)
        assert await outcome(stage, run_id) == expected, occurrence
        asked = Counter((effect.kind, effect.key) for effect in stage.effects(run_id, *KINDS))
        assert set(asked) == set(once), occurrence
        again = {(kind, int(key)) for (kind, key), count in asked.items() if count > 1}
        assert not {(kind, number) for kind, number in again if number <= stored[kind]}, (occurrence, stored, asked)
        assert len(again) <= 1, (occurrence, asked)
    assert crashed, f"{point} is never passed"


async def test_a_retry_of_a_run_whose_goal_was_paused_asks_the_judge_anew(stage: Stage) -> None:
    old = await stage.bench.create(prompt="wait", agent="judged")
    while (await stage.record(old)).status != "suspended":
        stage.execute(old)
    await stage.bench.runs.cancel(old)
    new, _ = await stage.bench.runs.retry(old)
    while (await stage.record(new.run_id)).status != "suspended":
        stage.execute(new.run_id)
    await to_the_end(stage, new.run_id)
    assert (await stage.record(new.run_id)).json("output") == "draft 3"
    asked = Counter(effect.kind for effect in stage.effects(new.run_id, *KINDS))
    assert asked == {"goal": 2, "scorer": 1, "output-guardrail": 1}, "what was judged before the cancel stands"
