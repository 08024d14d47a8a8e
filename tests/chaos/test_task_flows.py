"""Every flow with calls in the background, in each form: executed in one process, with another process for each step,
and with a kill of the run and of the task. Each comes to the same, each end is told once, and each effect has one key.
"""

from __future__ import annotations

from collections import Counter

import pytest

from durable.chunks import StepOutput, ToolOutput
from durable.probes import Point
from tests.chaos.effective import counted
from tests.chaos.effects import VARIABLE
from tests.chaos.flows import Flow
from tests.chaos.forks import Forks
from tests.chaos.judge import log_faults
from tests.chaos.play import Crash, answer, let_them_be_found, play
from tests.chaos.stage import Stage
from tests.chaos.task_flows import DELEGATING, NESTED, TASK_FLOWS
from tests.chaos.test_flows import judge as judge_flow
from tests.workbench import on

ALL = {**TASK_FLOWS, "all at once": DELEGATING}
ENDS = ("background-task-completed", "background-task-failed", "background-task-cancelled")


@pytest.fixture(params=ALL)
def flow(request: pytest.FixtureRequest) -> Flow:
    return ALL[request.param]


async def judge(stage: Stage, flow: Flow, run_id: str, *, torn: tuple[int, ...] = (0,)) -> None:
    """What has to come of a flow, whoever executed it."""
    await judge_flow(stage, flow, run_id, torn=torn)
    chunks = await stage.bench.chunks(run_id)
    assert sorted(call for kind in ENDS for call in counted(chunks, kind)) == sorted(flow.told)
    assert sorted(counted(chunks, "background-task-started")) == sorted(flow.told)
    assert sorted(counted(chunks, "background-task-running")) == sorted(flow.told)
    keys: dict[str, set[str]] = {}
    for effect in stage.effects(run_id):
        if effect.kind != "model":
            keys.setdefault(effect.key.rpartition(":")[2], set()).add(effect.key)
    assert all(len(found) == 1 for found in keys.values()), "one idempotency key for each call"
    tasks = (await stage.family(run_id))[1:]
    assert len(tasks) == len(flow.told)
    for task in tasks:
        assert log_faults(await stage.bench.chunks(task)) == []


async def test_in_one_process(stage: Stage, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = await stage.bench.create(agent=flow.agent, asked=flow.asked)
    monkeypatch.setenv(VARIABLE, str(stage.effects_file(run_id)))
    async with stage.engine() as engine:
        while True:
            for each in await stage.family(run_id):
                await engine.execute(each)
            status = Counter([(await stage.record(each)).status.value for each in await stage.family(run_id)])
            if not status["queued"] + status["running"] + status["suspended"]:
                break
            if not status["queued"] + status["running"]:
                await answer(stage, flow, run_id)
    await judge(stage, flow, run_id)


async def test_with_another_process_for_each_step(forks: Forks, redis_url: str, flow: Flow) -> None:
    async with Stage(forks, on(redis_url, always_resume=True)) as stage:
        run_id = await stage.bench.create(agent=flow.agent, asked=flow.asked)
        await play(stage, flow, run_id, once=True)
        await judge(stage, flow, run_id)


async def killed(stage: Stage, flow: Flow, crash: Crash) -> str:
    """A run of a flow whose worker, or that of its task, is killed once."""
    run_id = await stage.bench.create(agent=flow.agent, asked=flow.asked)
    assert (await play(stage, flow, run_id, crash))[-1].crashed
    await let_them_be_found(stage, [run_id])
    await play(stage, flow, run_id)
    return run_id


@pytest.mark.parametrize("flow", [name for name in ALL if name != "approved before"], indirect=True)
async def test_with_a_kill_between_the_start_of_a_task_and_its_record(stage: Stage, flow: Flow) -> None:
    await judge(stage, flow, await killed(stage, flow, Crash(0, Point.DELEGATE_AFTER)))


@pytest.mark.parametrize(
    "flow",
    [name for name in ALL if name not in {"approved before", "by another agent", "by another agent that asks"}],
    indirect=True,
)
async def test_with_a_kill_in_the_middle_of_the_task(stage: Stage, flow: Flow) -> None:
    await judge(stage, flow, await killed(stage, flow, Crash(1, Point.TOOL_START_AFTER)))


async def test_with_a_kill_before_the_run_goes_on_with_what_the_task_came_to(stage: Stage, flow: Flow) -> None:
    run_id = await stage.bench.create(agent=flow.agent, asked=flow.asked)
    reports = await play(stage, flow, run_id)
    last = await killed(stage, flow, Crash(len(reports) - 1, Point.CLAIM_AFTER))
    await judge(stage, flow, last)


CRASHES = {
    "when it has begun": Crash(1, Point.MIRROR_BEFORE),
    "when it has said that it has begun": Crash(1, Point.MIRROR_AFTER),
    "before it says the rest": Crash(1, Point.MIRROR_BEFORE, 2),
    "when it has said the rest": Crash(1, Point.MIRROR_AFTER, 2),
    "in the middle of its response": Crash(1, Point.MODEL_BEFORE, 2),
    "in the middle of its tool": Crash(1, Point.TOOL_START_AFTER),
    "before its end": Crash(1, Point.FINISH_BEFORE),
    "after its end": Crash(1, Point.FINISH_AFTER),
}


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES)
async def test_a_sub_agent_whose_worker_is_killed_is_told_once_and_whole_to_who_asks(
    stage: Stage, crash: Crash
) -> None:
    run_id = await killed(stage, NESTED, crash)
    await judge(stage, NESTED, run_id, torn=(0, 1))
    (child,) = (await stage.family(run_id))[1:]
    told = [
        chunk.payload.output
        for chunk in await stage.bench.chunks(run_id)
        if isinstance(chunk, StepOutput | ToolOutput) and chunk.payload.task_id == child
    ]
    assert told == [chunk.to_wire() for chunk in await stage.bench.chunks(child)]
