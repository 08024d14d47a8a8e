"""Each guarantee is broken on purpose: the case that proves it fails then, and only then."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durable.errors import LeaseLost
from durable.probes import Point
from durable.runs import RunRecord
from durable.scripts import APPEND
from durable.sweeper import Sweeper
from tests.chaos import sabotage
from tests.chaos.comparison import Reference, compare, recorded
from tests.chaos.judge import log_faults
from tests.chaos.stage import Stage
from tests.workbench import Workbench, completed, delta, finish, on


async def a_stopped_worker_comes_back(bench: Workbench) -> None:
    old = await bench.writer()
    run_id = old.lease.run_id
    old.write(delta("one "))
    await old.flush()
    await bench.store.redis.zadd(bench.store.keys.leases, {old.lease.member: 0})
    new = await bench.writer(run_id)
    new.write(delta("two "))
    await new.flush()
    old.write(delta("from the grave "))
    old._schedule()
    with contextlib.suppress(LeaseLost):
        await old._until(lambda: old.under_way is None)
    await new.finish(completed(), finish())
    assert log_faults(await bench.chunks(run_id)) == []


async def an_acknowledgement_is_lost(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id, keys = writer.lease.run_id, bench.store.keys
    names = [keys.run(run_id), keys.log(run_id), keys.checkpoints(run_id), keys.ledger(run_id)]
    names += [keys.calls(run_id), keys.pending, keys.deadlines]
    body = b'{"type":"text-delta","payload":{"id":"p","text":"once"}}'
    for _ in range(2):
        args: list[Any] = [keys.channel(run_id), writer.lease.token, "a1", 1, 1, body, "0", "", run_id, 0, 0]
        await bench.store.run(APPEND, names, args)
    assert await bench.texts(run_id) == ["once"]


async def a_sweep_comes_late(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id

    async def dispatch(_: RunRecord) -> None:
        """Nobody comes."""

    sweeper = Sweeper(bench.store, bench.settings, dispatch, "late")
    assert await sweeper._requeue(run_id, str(writer.lease.token)) == 0
    assert (await bench.runs.get(run_id)).status == "running"


SCRIPTS: dict[str, Callable[[Workbench], Awaitable[None]]] = {
    "fencing": a_stopped_worker_comes_back,
    "retry": an_acknowledgement_is_lost,
    "sweep": a_sweep_comes_late,
}


@pytest.mark.parametrize("broken", SCRIPTS)
async def test_a_broken_script_is_noticed(redis_url: str, broken: str) -> None:
    with sabotage.applied(broken):
        async with Workbench(on(redis_url)) as bench:
            with pytest.raises(AssertionError):
                await SCRIPTS[broken](bench)


@pytest.mark.parametrize("whole", SCRIPTS)
async def test_a_script_as_it_is_passes(redis_url: str, whole: str) -> None:
    async with Workbench(on(redis_url)) as bench:
        await SCRIPTS[whole](bench)


POINTS = {"ledger": (Point.MODEL_BEFORE, 2), "checkpoint": (Point.TOOL_END_AFTER, 3), "void": (Point.MODEL_AFTER, 1)}


@pytest.mark.parametrize("broken", ["", *POINTS])
async def test_a_broken_engine_is_noticed_at_a_crash(stage: Stage, broken: str) -> None:
    whole = await stage.bench.create(agent="everything")
    reference = await Reference.of(stage, whole, stage.execute(whole))
    for point, occurrence in [POINTS[broken]] if broken else POINTS.values():
        run_id = await stage.bench.create(agent="everything")
        stage.sabotage = broken
        await stage.crash(run_id, point, occurrence)
        complete = await recorded(stage, run_id)
        assert stage.resume(run_id) in {"completed", "failed"}
        stage.sabotage = ""
        if broken:
            with pytest.raises(AssertionError):
                await compare(stage, reference, run_id, broken, torn=1, complete=complete)
        else:
            await compare(stage, reference, run_id, str(point), torn=1, complete=complete)
