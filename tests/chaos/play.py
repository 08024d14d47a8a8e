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
from tests.chaos.flows import CANCEL, LATE, Flow
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
        family = await stage.family(run_id)
        status = {each: (await stage.record(each)).status for each in family}
        for each in family:
            if status[each].ended or status[each] is RunStatus.SUSPENDED:
                assert await Doctor(stage.bench.store).examine(each) == set()
        if all(each.ended for each in status.values()):
            return reports
        todo = [each for each in family if status[each] in {RunStatus.QUEUED, RunStatus.RUNNING}]
        if not todo:
            await answer(stage, flow, run_id)
            continue
        here = crash is not None and crash.attempt == len(reports)
        where = (crash.point, crash.occurrence) if crash is not None and here else ("", 1)
        reports.append(stage.execute(todo[0], *where, of=run_id, once=once))
        if reports[-1].crashed:
            return reports
    raise AssertionError("the run does not end")


async def answer(stage: Stage, flow: Flow, run_id: str) -> None:
    """Give the calls that wait the answers that are next; but leave to the sweeper whom to wake."""
    decisions = Decisions(stage.bench.store, stage.bench.runs)
    asking = {(call.tool_call_id, call.round): each for each, call in await asked(stage, run_id)}
    place = dict(rounds(flow))
    todo = [(name, what) for name, what in place.items() if name in asking]
    assert todo, f"nobody has an answer for {sorted(asking)}"
    for (call, round_), what in todo if flow.together else todo[:1]:
        whose = asking[call, round_]
        if what is LATE:
            await let_it_be_late(stage, whose, call)
        elif what is CANCEL:
            await stage.bench.runs.cancel(whose)
        else:
            await decisions.decide(whose, call, what)


async def asked(stage: Stage, run_id: str) -> list[tuple[str, Call]]:
    """The calls that wait, of a run and of those that it has started, each with its run."""
    family = await stage.family(run_id)
    found = await Decisions(stage.bench.store, stage.bench.runs).calls(family)
    return [(each, call) for each, calls in zip(family, found, strict=True) for call in calls if call.answer is None]


async def pending(stage: Stage, run_id: str) -> dict[str, Call]:
    """The calls that wait, by their ids."""
    return {call.tool_call_id: call for _, call in await asked(stage, run_id)}


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
    """Let the leases run out, and the sweeper find the runs that somebody left behind; those that they started, too."""
    found = [each for run_id in run_ids for each in await stage.family(run_id)]
    left = [run_id for run_id in found if (await stage.record(run_id)).status is RunStatus.RUNNING]
    for run_id in left:
        await stage.expire(run_id)
    await sweep(stage)
    assert set(left) <= set(stage.woken)
