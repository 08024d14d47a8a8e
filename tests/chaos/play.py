"""Plays flows on a stage: attempts in processes of their own, and answers to the calls that wait between them.

Nothing is kept between two steps: what comes next follows from what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from durable.decisions import Answer, Call, Decisions
from durable.doctor import Doctor
from durable.sweeper import Sweeper
from durable.views import RunStatus
from tests.chaos.flows import LATE, Flow
from tests.chaos.forks import Report
from tests.chaos.stage import Stage

MOST: Final = 40
"""Attempts that any flow needs, and more."""


@dataclass(frozen=True)
class Crash:
    """Where a process is killed: in which attempt, counted from 0, and at which passing of a point."""

    attempt: int
    point: str
    occurrence: int = 1


async def play(
    stage: Stage, flow: Flow, run_id: str, crash: Crash | None = None, *, once: bool = False
) -> list[Report]:
    """Go on with a run until it has ended, or its process has crashed; what its attempts report.

    Args:
        stage: Where the run is.
        flow: What its calls are answered.
        run_id: The run.
        crash: Where to crash; None for nowhere.
        once: Whether each step is made by another process.
    """
    reports: list[Report] = []
    while len(reports) < MOST:
        status = (await stage.record(run_id)).status
        if status.ended or status is RunStatus.SUSPENDED:
            assert await Doctor(stage.bench.store).examine(run_id) == set()
        if status.ended:
            return reports
        if status is RunStatus.SUSPENDED:
            await answer(stage, flow, run_id)
            continue
        here = crash is not None and crash.attempt == len(reports)
        where = (crash.point, crash.occurrence) if crash is not None and here else ("", 1)
        reports.append(stage.execute(run_id, *where, once=once))
        if reports[-1].crashed:
            return reports
    raise AssertionError("the run does not end")


async def answer(stage: Stage, flow: Flow, run_id: str) -> None:
    """Give the calls that wait the answers that are next; but leave to the sweeper whom to wake."""
    decisions = Decisions(stage.bench.store, stage.bench.runs)
    waiting = await pending(stage, run_id)

    place = dict(rounds(flow))
    todo = [(name, what) for name, what in place.items() if name[0] in waiting and waiting[name[0]].round == name[1]]
    assert todo, f"nobody has an answer for {sorted(waiting)}"
    for (call, _), what in todo if flow.together else todo[:1]:
        if what is LATE:
            await let_it_be_late(stage, run_id, call)
        else:
            await decisions.decide(run_id, call, what)


async def pending(stage: Stage, run_id: str) -> dict[str, Call]:
    """The calls that wait."""
    [calls] = await Decisions(stage.bench.store, stage.bench.runs).calls([run_id])
    return {call.tool_call_id: call for call in calls if call.answer is None}


def rounds(flow: Flow) -> list[tuple[tuple[str, int], Answer]]:
    """The answers of a flow, each under its call and round."""
    found: list[tuple[tuple[str, int], Answer]] = []
    for call, what in flow.answers:
        found.append(((call, sum(name == call for (name, _), _ in found)), what))
    return found


async def let_it_be_late(stage: Stage, run_id: str, call: str) -> None:
    """Let a deadline pass, and the sweeper come."""
    store = stage.bench.store
    assert await store.redis.zadd(store.keys.deadlines, {f"{run_id}:{call}": 0}, xx=True, ch=True) == 1
    await sweep(stage)


async def sweep(stage: Stage) -> None:
    """Let the sweeper come."""
    await Sweeper(stage.bench.store, stage.settings, stage.wake, "test").sweep()


async def let_them_be_found(stage: Stage, run_ids: list[str]) -> None:
    """Let the leases run out, and the sweeper find the runs that somebody left behind."""
    left = [run_id for run_id in run_ids if (await stage.record(run_id)).status is RunStatus.RUNNING]
    for run_id in left:
        await stage.expire(run_id)
    await sweep(stage)
    assert set(left) <= set(stage.woken)
