"""A call that was torn, and must not be repeated without somebody's word: it asks. And what a retried run asks."""

from __future__ import annotations

import json
from typing import Any

from durable.chunks import ToolCallApproval
from durable.decisions import DEADLINE, Answer, Decisions
from durable.doctor import Doctor
from durable.probes import Point
from tests.chaos.flows import Flow, approve
from tests.chaos.play import Crash, let_them_be_found, pending, play
from tests.chaos.stage import Stage

ASKING = Flow("asking-back", [approve()])


async def torn(stage: Stage) -> str:
    """A run whose approved call was torn by a crash, and that was taken over."""
    run_id = await stage.bench.create(agent="asking-back")
    assert (await play(stage, ASKING, run_id, Crash(1, Point.TOOL_END_BEFORE)))[-1].crashed
    await let_them_be_found(stage, [run_id])
    assert stage.execute(run_id).outcome == "suspended"
    return run_id


async def decide(stage: Stage, run_id: str, answer: Answer, call: str = "c1") -> None:
    await Decisions(stage.bench.store, stage.bench.runs).decide(run_id, call, answer)


async def expire(stage: Stage, run_id: str, call: str = "c1") -> None:
    """Let the deadline of a call pass; it then fails the run."""
    store = stage.bench.store
    await store.redis.zadd(store.keys.deadlines, {f"{run_id}:{call}": 1})
    answer = Answer(kind="fail", actor=DEADLINE)
    assert await Decisions(store, stage.bench.runs).decide(run_id, call, answer, due=True) is not None


async def told(stage: Stage, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await stage.record(run_id)).json("output"))
    assert await Doctor(stage.bench.store).examine(run_id) == set()
    return found


async def test_a_torn_call_asks_and_runs_again_with_the_same_idempotency_key(stage: Stage) -> None:
    run_id = await torn(stage)
    assert len(stage.effects(run_id, "pay")) == 1, "it was not repeated"
    [call] = (await pending(stage, run_id)).values()
    assert call.question.payload["reason"] == "outcome_unknown"
    asked = [chunk for chunk in await stage.bench.chunks(run_id) if isinstance(chunk, ToolCallApproval)]
    assert [(chunk.payload.suspend_payload or {}).get("reason") for chunk in asked] == [None, "outcome_unknown"]
    await decide(stage, run_id, Answer(kind="approve"))
    assert stage.resume(run_id) == "completed"
    assert (await told(stage, run_id))["c1"] == ["success", "paid 1"]
    done = stage.effects(run_id, "pay")
    assert len(done) == 2
    assert len({effect.key for effect in done}) == 1


async def test_a_torn_call_that_is_declined_is_told_to_the_model(stage: Stage) -> None:
    run_id = await torn(stage)
    await decide(stage, run_id, Answer(kind="decline", reason="it was paid"))
    assert stage.resume(run_id) == "completed"
    assert (await told(stage, run_id))["c1"] == ["denied", "it was paid"]
    assert len(stage.effects(run_id, "pay")) == 1


async def test_a_torn_call_asks_each_time(stage: Stage) -> None:
    run_id = await torn(stage)
    await decide(stage, run_id, Answer(kind="approve"))
    await stage.crash(run_id, Point.TOOL_END_BEFORE)
    assert stage.execute(run_id).outcome == "suspended"
    assert len(stage.effects(run_id, "pay")) == 2
    await decide(stage, run_id, Answer(kind="approve"))
    assert stage.resume(run_id) == "completed"
    assert len(stage.effects(run_id, "pay")) == 3


async def test_a_retried_run_asks_again_what_nobody_answered(stage: Stage) -> None:
    old = await stage.bench.create(agent="paying")
    assert stage.execute(old).outcome == "suspended"
    await stage.bench.runs.cancel(old)
    record, _ = await stage.bench.runs.retry(old)
    assert stage.execute(record.run_id).outcome == "suspended"
    assert set(await pending(stage, record.run_id)) == {"c1"}
    await decide(stage, record.run_id, Answer(kind="approve"))
    assert stage.resume(record.run_id) == "completed"
    assert await told(stage, record.run_id) == {"c1": ["success", "paid 500"]}
    assert (len(stage.effects(old, "pay")), len(stage.effects(record.run_id, "pay"))) == (0, 1)


async def test_a_retried_run_asks_again_what_its_deadline_has_failed(stage: Stage) -> None:
    old = await stage.bench.create(agent="late-fail")
    assert stage.execute(old).outcome == "suspended"
    await expire(stage, old)
    assert stage.execute(old).outcome == "failed"
    record, _ = await stage.bench.runs.retry(old)
    assert stage.execute(record.run_id).outcome == "suspended"
    await decide(stage, record.run_id, Answer(kind="approve"))
    assert stage.resume(record.run_id) == "completed"
    assert await told(stage, record.run_id) == {"c1": ["success", "paid 5"]}


async def test_a_retried_run_does_not_ask_what_was_approved_and_executed(stage: Stage) -> None:
    old = await stage.bench.create(agent="sending")
    assert stage.execute(old).outcome == "suspended"
    await decide(stage, old, Answer(kind="approve"), "c2")
    await decide(stage, old, Answer(kind="decline", reason="no"), "c1")
    assert stage.execute(old).outcome == "suspended"
    await stage.bench.runs.cancel(old)
    record, _ = await stage.bench.runs.retry(old)
    assert stage.execute(record.run_id).outcome == "suspended"
    assert set(await pending(stage, record.run_id)) == {"c4"}, "not what was decided before"
    await decide(stage, record.run_id, Answer(kind="approve"), "c4")
    assert stage.resume(record.run_id) == "completed"
    found = await told(stage, record.run_id)
    assert (found["c1"], found["c2"], found["c4"]) == (["denied", "no"], ["success", "b"], ["success", "c"])
    assert [effect.kind for effect in stage.effects(record.run_id) if effect.kind != "model"] == ["send"]
