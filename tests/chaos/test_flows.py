"""Every flow with people in the loop, in each form: executed in one process, with another process for each step, and
with a kill where it hurts most. Each comes to the same, and what was decided happens once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Container
from typing import Final

import pytest

from durable.chunks import Chunk
from durable.probes import Point
from tests.chaos.effective import counted
from tests.chaos.effects import VARIABLE
from tests.chaos.flows import CANCEL, DECIDING, FLOWS, Flow, approve
from tests.chaos.forks import Forks
from tests.chaos.judge import log_faults
from tests.chaos.play import Crash, answer, let_them_be_found, pending, play
from tests.chaos.stage import Stage
from tests.conftest import eventually
from tests.workbench import on

ALL: Final = {**FLOWS, "all at once": DECIDING}


@pytest.fixture(params=ALL)
def flow(request: pytest.FixtureRequest) -> Flow:
    return ALL[request.param]


async def judge(stage: Stage, flow: Flow, run_id: str, *, torn: Container[int] = (0,)) -> None:
    """What has to come of a flow, whoever executed it."""
    record, chunks = await stage.record(run_id), await stage.bench.chunks(run_id)
    assert record.status == flow.status
    assert log_faults(chunks) == []
    if flow.told:
        assert json.loads(record.json("output")) == flow.told
    logs = [chunk for each in await stage.family(run_id) for chunk in await stage.bench.chunks(each)]
    assert Counter(answered(logs)) == Counter(call for call, what in flow.answers if what is not CANCEL)
    made = Counter(effect.key.rpartition(":")[2] for effect in stage.effects(run_id) if effect.kind != "model")
    more = made - Counter(flow.made)
    assert made >= Counter(flow.made)
    assert sum(more.values()) in torn, "a torn call is made once more, and nothing else is"
    outcomes = [*counted(chunks, "tool-result"), *counted(chunks, "tool-error"), *counted(chunks, "tool-output-denied")]
    if flow.told:
        assert sorted(outcomes) == sorted(flow.told)
    assert not await stage.bench.store.redis.exists(stage.bench.store.keys.pending)
    assert not await stage.bench.store.redis.exists(stage.bench.store.keys.deadlines)


def answered(chunks: list[Chunk]) -> list[str]:
    """The calls that were answered, once for each answer."""
    return [chunk.payload.tool_call_id for chunk in chunks if chunk.type in {"tool-call-decided", "tool-output-denied"}]


async def test_in_one_process(stage: Stage, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = await stage.bench.create(agent=flow.agent)
    monkeypatch.setenv(VARIABLE, str(stage.effects_file(run_id)))
    async with stage.engine() as engine:
        await engine.execute(run_id)
        while not (await stage.record(run_id)).status.ended:
            await answer(stage, flow, run_id)
            await engine.execute(run_id)
    await judge(stage, flow, run_id)


async def test_with_another_process_for_each_step(forks: Forks, redis_url: str, flow: Flow) -> None:
    async with Stage(forks, on(redis_url, always_resume=True)) as stage:
        run_id = await stage.bench.create(agent=flow.agent)
        reports = await play(stage, flow, run_id, once=True)
        assert len(reports) >= 2, "it was given back"
        await judge(stage, flow, run_id)


async def killed(stage: Stage, flow: Flow, crash: Crash) -> str:
    """A run of a flow whose worker is killed once."""
    run_id = await stage.bench.create(agent=flow.agent)
    assert (await play(stage, flow, run_id, crash))[-1].crashed
    await let_them_be_found(stage, [run_id])
    await play(stage, flow, run_id)
    return run_id


async def test_with_a_kill_right_after_the_announcement(stage: Stage, flow: Flow) -> None:
    await judge(stage, flow, await killed(stage, flow, Crash(0, Point.ANNOUNCE_AFTER)))


@pytest.mark.parametrize("flow", [name for name, flow in ALL.items() if flow.status != "cancelled"], indirect=True)
async def test_with_a_kill_right_after_the_decision(stage: Stage, flow: Flow) -> None:
    await judge(stage, flow, await killed(stage, flow, Crash(1, Point.CLAIM_AFTER)))


@pytest.mark.parametrize("flow", [name for name, flow in ALL.items() if flow.body is not None], indirect=True)
async def test_with_a_kill_in_the_middle_of_what_was_approved(stage: Stage, flow: Flow) -> None:
    run_id = await killed(stage, flow, Crash(1 + (flow.body or 0), Point.TOOL_END_BEFORE))
    await judge(stage, flow, run_id, torn=(1, 2) if flow.together else (1,))
    keys: dict[str, set[str]] = {}
    for effect in stage.effects(run_id):
        if effect.kind != "model":
            keys.setdefault(effect.key.rpartition(":")[2], set()).add(effect.key)
    assert all(len(found) == 1 for found in keys.values()), "one idempotency key for each call"


WATCHING: Final = Flow(
    "watching", [approve("c2")], {"c1": ["success", "seen"], "c2": ["success", "paid 1"]}, {"c1": 1, "c2": 1}
)


@pytest.mark.parametrize(
    ("point", "occurrence", "torn"),
    [("", 1, 0), (Point.TOOL_START_BEFORE, 2, 1), (Point.TOOL_START_AFTER, 2, 1), (Point.TOOL_END_BEFORE, 1, 2)],
    ids=["no kill", "right after the decision", "before the approved tool", "in the middle of the approved tool"],
)
async def test_of_a_call_that_is_answered_while_another_one_is_busy(
    stage: Stage, point: str, occurrence: int, torn: int
) -> None:
    """The busy call ends only after the approved one: so that was made in place."""
    run_id = await stage.bench.create(agent=WATCHING.agent)
    attempt = asyncio.create_task(asyncio.to_thread(stage.execute, run_id, point, occurrence))

    async def waits() -> bool:
        return set(await pending(stage, run_id)) == {"c2"}

    await eventually(waits, what="the call to wait")
    assert (await stage.record(run_id)).status == "running"
    await answer(stage, WATCHING, run_id)
    assert (await attempt).crashed is bool(point)
    await let_them_be_found(stage, [run_id])
    await play(stage, WATCHING, run_id)
    await judge(stage, WATCHING, run_id, torn=(torn,))
