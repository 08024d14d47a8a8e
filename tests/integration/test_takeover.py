"""An attempt is lost with its process; the next one goes on where it stopped, and repeats nothing that is complete."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from typing import Literal

import pytest

from durable.chunks import ToolError
from durable.decisions import Answer, Decisions
from durable.dev.redis_server import PrivateRedis
from durable.errors import RunEnded
from durable.execution import Outcome
from durable.probes import Point
from durable.sweeper import Sweeper
from tests.chaos.agents import VALUES
from tests.chaos.chance import seeded
from tests.chaos.forks import Forks
from tests.chaos.stage import Stage
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, on


class TestWhatCarriesOver:
    """A process is killed; another one resumes."""

    @pytest.mark.parametrize("kind", VALUES)
    async def test_a_recorded_value_is_to_the_model_what_it_was(self, stage: Stage, kind: str) -> None:
        whole, torn = [await stage.bench.create(prompt=kind, agent="giver") for _ in range(2)]
        assert stage.resume(whole) == "completed"
        await stage.crash(torn, Point.MODEL_BEFORE, 2)
        assert stage.resume(torn) == "completed"

        assert (await stage.record(torn)).json("output") == (await stage.record(whole)).json("output")
        assert await _said_to_the_model(stage, torn) == await _said_to_the_model(stage, whole)
        assert len(stage.effects(torn, "give")) == 1

    async def test_usage_steps_and_the_step_limit_count_all_attempts(self, stage: Stage) -> None:
        run_id = await stage.bench.create(prompt="2", agent="ticking")
        for _ in range(2):
            await stage.crash(run_id, Point.CHECKPOINT_AFTER)
        assert stage.resume(run_id) == "completed"
        usage = (await stage.record(run_id)).view().usage
        whole = await stage.bench.create(prompt="2", agent="ticking")
        assert stage.resume(whole) == "completed"
        assert usage == (await stage.record(whole)).view().usage
        assert len(stage.effects(run_id, "model")) == 3

    async def test_a_tool_may_not_ask_for_more_retries_because_its_worker_was_lost(self, stage: Stage) -> None:
        whole, torn = [await stage.bench.create(agent="stubborn") for _ in range(2)]
        assert stage.resume(whole) == "failed"
        for _ in range(3):
            if stage.execute(torn, Point.CHECKPOINT_AFTER).crashed:
                await stage.expire(torn)
        assert stage.resume(torn) == "failed"
        assert [effect.kind for effect in stage.effects(torn)] == [effect.kind for effect in stage.effects(whole)]
        assert (await stage.record(torn)).json("error") == (await stage.record(whole)).json("error")

    async def test_a_tool_that_raised_fails_the_run_in_the_same_words_after_its_worker_was_lost(
        self, stage: Stage
    ) -> None:
        whole, torn = [await stage.bench.create(agent="losing") for _ in range(2)]
        assert stage.resume(whole) == "failed"
        await stage.crash(torn, Point.FINISH_BEFORE)
        assert [chunk.type for chunk in await stage.bench.chunks(torn)][-1] == "tool-error"
        assert stage.resume(torn) == "failed"
        assert (await stage.record(torn)).json("error") == (await stage.record(whole)).json("error")
        assert (await stage.record(torn)).json("error")["name"] == "LookupError"
        assert len(stage.effects(torn, "lose")) == 1

    async def test_an_idempotency_key_is_that_of_the_call_in_every_attempt(self, stage: Stage) -> None:
        run_id = await stage.bench.create(prompt="2", agent="ticking")
        await stage.crash(run_id, Point.TOOL_END_BEFORE)
        assert stage.resume(run_id) == "completed"
        done = stage.effects(run_id, "tick")
        assert [effect.attempt for effect in done] == [1, 2, 2], "the torn call, the same again, the next step's"
        assert done[0].key == done[1].key
        assert done[2].key != done[1].key, "another step's call with the same id"

    async def test_a_call_that_must_not_be_repeated_is_told_as_unknown(self, stage: Stage) -> None:
        run_id = await stage.bench.create(agent="careful")
        await stage.crash(run_id, Point.TOOL_END_BEFORE)
        assert stage.resume(run_id) == "completed"
        [error] = [chunk for chunk in await stage.bench.chunks(run_id) if isinstance(chunk, ToolError)]
        assert (error.payload.tool_call_id, error.payload.error.code) == ("c1", "outcome_unknown")
        assert len(stage.effects(run_id, "charge")) == 1

    @pytest.mark.parametrize(("answer", "times"), [("approve", 2), ("decline", 1)])
    async def test_a_call_that_is_asked_about_is_repeated_only_if_somebody_says_so(
        self, stage: Stage, answer: Literal["approve", "decline"], times: int
    ) -> None:
        run_id = await stage.bench.create(agent="doubting")
        await stage.crash(run_id, Point.TOOL_END_BEFORE)
        assert stage.resume(run_id) == "suspended"
        decisions = Decisions(stage.bench.store, stage.bench.runs)
        [[call]] = await decisions.calls([run_id])
        assert (call.tool_call_id, call.question.kind) == ("c1", "approval")
        assert call.question.payload["reason"] == "outcome_unknown"
        assert call.until is not None, "the tool's deadline counts for this question, too"
        assert len(stage.effects(run_id, "charge")) == 1
        await decisions.decide(run_id, "c1", Answer(kind=answer))
        assert stage.resume(run_id) == "completed"
        done = stage.effects(run_id, "charge")
        assert len(done) == times
        assert len({effect.key for effect in done}) == 1

    @pytest.mark.parametrize("point", [Point.ANNOUNCE_BEFORE, Point.ANNOUNCE_AFTER])
    async def test_a_question_has_the_same_id_in_every_attempt(self, stage: Stage, point: Point) -> None:
        run_id = await stage.bench.create(agent="guessing")
        decisions = Decisions(stage.bench.store, stage.bench.runs)
        for place, answer in enumerate((Answer(kind="approve"), Answer(kind="resume", data=1))):
            await stage.crash(run_id, point)
            [calls] = await decisions.calls([run_id])
            waiting = [call.place for call in calls if call.answer is None]
            assert waiting == ([(1, place)] if point is Point.ANNOUNCE_AFTER else [])
            assert stage.resume(run_id) == "suspended"
            [[call]] = await decisions.calls([run_id])
            assert (call.place, call.answer) == ((1, place), None)
            await decisions.decide(run_id, "c1", answer, question=f"1.{place}")
        assert stage.resume(run_id) == "suspended"
        assert await decisions.decide(run_id, "c1", Answer(kind="approve"), question="1.0") is None
        chunks = [chunk for chunk in await stage.bench.chunks(run_id) if chunk.type.startswith("tool-call-")]
        asked = [chunk.payload.question_id for chunk in chunks if chunk.type.endswith(("-approval", "-suspended"))]
        assert asked == ["1.0", "1.1", "1.2"]

    async def test_a_call_that_must_not_be_repeated_and_was_not_begun_is_made(self, stage: Stage) -> None:
        run_id = await stage.bench.create(agent="careful")
        await stage.crash(run_id, Point.TOOL_START_BEFORE)
        assert stage.resume(run_id) == "completed"
        assert not [chunk for chunk in await stage.bench.chunks(run_id) if isinstance(chunk, ToolError)]
        assert len(stage.effects(run_id, "charge")) == 1

    @pytest.mark.parametrize("entry", [b"\xff", b"{}", b'{"kind":"content"}', b'{"kind":"later"}', b""])
    async def test_a_ledger_entry_that_cannot_be_read_ends_the_run_without_another_call(
        self, stage: Stage, entry: bytes
    ) -> None:
        run_id = await stage.bench.create(prompt="2", agent="ticking")
        await stage.crash(run_id, Point.MODEL_BEFORE, 2)
        store = stage.bench.store
        await store.redis.hset(store.keys.ledger(run_id), "1:again", entry)
        assert stage.resume(run_id) == "failed"
        assert (await stage.record(run_id)).json("error")["code"] == "ledger_corrupt"
        assert len(stage.effects(run_id, "tick")) == 1
        assert len(stage.effects(run_id, "model")) == 1

    async def test_a_checkpoint_that_cannot_be_read_ends_the_run(self, stage: Stage) -> None:
        run_id = await stage.bench.create(prompt="2", agent="ticking")
        await stage.crash(run_id, Point.MODEL_BEFORE, 2)
        store = stage.bench.store
        await store.redis.lset(store.keys.checkpoints(run_id), 0, "{}")
        async with stage.engine() as engine:
            assert await engine.execute(run_id) is Outcome.FAILED
        assert (await stage.bench.chunks(run_id))[-1].final
        assert stage.woken == []

    async def test_checkpoints_grow_with_the_run_not_with_its_square(self, stage: Stage) -> None:
        sizes = []
        for steps in (20, 40):
            run_id = await stage.bench.create(prompt=str(steps), agent="ticking")
            assert stage.resume(run_id) == "completed"
            entries = await stage.bench.runs.checkpoints(run_id)
            assert len(entries) >= steps
            sizes.append(sum(len(entry) for entry in entries))
        assert sizes[1] < 2.2 * sizes[0]


async def _said_to_the_model(stage: Stage, run_id: str) -> list[object]:
    """The parts that the model was sent after the tool's return. Its value is what the run's output tells."""
    [_, _, request, *_] = await stage.messages(run_id)
    return [{name: value for name, value in part.items() if name != "content"} for part in request["parts"]]


class TestWhoExecutes:
    """However often and by whomever a run is executed, one attempt at a time writes to it."""

    async def test_the_same_message_ten_times_is_one_execution(self, stage: Stage) -> None:
        run_id = await stage.bench.create(prompt="5", agent="speaker")
        async with stage.engine() as one, stage.engine() as two:
            outcomes = await asyncio.gather(*(engine.execute(run_id) for engine in (one, two) for _ in range(5)))
            log = await stage.bench.wire(run_id)
            again = await one.execute(run_id)
        assert Counter(outcomes) == {Outcome.COMPLETED: 1, None: 9}
        assert again is None
        assert (await stage.record(run_id)).token == 1
        assert await stage.bench.wire(run_id) == log
        assert (await stage.bench.texts(run_id)) == [f"w{number} " for number in range(5)]

    async def test_of_a_cancel_and_an_end_one_is_last_and_the_only_one(self, stage: Stage) -> None:
        chance, ends, span = seeded(11), Counter[str](), 0.06
        async with stage.engine() as engine:
            while sum(ends.values()) < 60 or min(ends["cancelled"], ends["completed"]) <= 5:
                # About as long as a run takes on this machine just now.
                span *= 1.1 if ends["completed"] < ends["cancelled"] else 0.9
                run_id = await stage.bench.create(prompt="2", agent="speaker")
                execution = asyncio.create_task(engine.execute(run_id))
                await asyncio.sleep(chance.uniform(0, span))
                try:
                    await stage.bench.runs.cancel(run_id)
                except RunEnded:
                    ends["late"] += 1
                await execution
                chunks = await stage.bench.chunks(run_id)
                status = (await stage.record(run_id)).status
                ends[status] += 1
                assert [chunk.seq for chunk in chunks if chunk.final] == [len(chunks)]
                assert chunks[-1].payload.step_result.reason == ("abort" if status == "cancelled" else "stop")
        assert ends["cancelled"] > 5
        assert ends["completed"] > 5

    async def test_a_run_that_was_claimed_while_its_worker_stops_is_handed_back(self, stage: Stage) -> None:
        run_id = await stage.bench.create(prompt="3000", agent="speaker")
        drains: list[asyncio.Task[None]] = []

        def stop(point: Point) -> None:
            if point is Point.CLAIM_AFTER:
                drains.append(asyncio.get_running_loop().create_task(engine.drain(0)))

        async with stage.engine(stop) as engine:
            async with asyncio.timeout(10):
                outcome = await engine.execute(run_id)
                await drains[0]
        assert outcome is Outcome.HANDED_BACK
        assert (await stage.record(run_id)).status == "queued"
        assert stage.woken == [run_id]

    async def test_a_run_beside_one_that_kills_its_worker_every_time_is_not_given_up(self, stage: Stage) -> None:
        poison = await stage.bench.create(agent="poison")
        harmless = await stage.bench.create(prompt="300", agent="speaker")
        sweeper = Sweeper(stage.bench.store, stage.settings, stage.wake, "me")
        while stage.execute(poison, beside=harmless, max_attempts=2).crashed:
            for run_id in (poison, harmless):
                if (await stage.record(run_id)).status == "running":
                    await stage.expire(run_id)
            await sweeper.sweep()
        end = await stage.record(poison)
        assert (end.status, end.json("error")["code"]) == ("failed", "attempts_exhausted")
        assert len(stage.effects(poison, "die")) == 3, "one that got on by asking the model, and two that did not"
        assert (await stage.record(harmless)).status == "completed"


class TestWithoutRedis:
    """Redis is killed, frozen, or away for longer than a lease."""

    async def test_chunks_survive_a_redis_that_is_killed_again_and_again(self, own_redis: PrivateRedis) -> None:
        chance, total = seeded(3), 150
        async with Workbench(on(own_redis.url, lease_seconds=60)) as bench:
            writers = [await bench.writer() for _ in range(8)]

            async def write(index: int) -> None:
                for number in range(total):
                    writers[index].write(delta(f"{index}.{number}"))
                    await asyncio.sleep(chance.uniform(0, 0.02))
                await writers[index].finish(completed(), finish())

            writing = [asyncio.create_task(write(index)) for index in range(8)]
            for _ in range(8):
                await asyncio.sleep(chance.uniform(0.05, 0.15))
                await asyncio.to_thread(own_redis.kill)
                await asyncio.to_thread(own_redis.start)
            await asyncio.gather(*writing)
            for index, writer in enumerate(writers):
                entries = await bench.log(writer.lease.run_id)
                assert await bench.texts(writer.lease.run_id) == [f"{index}.{number}" for number in range(total)]
                assert entries[-1].last == total + 1, "dense: the last seq is the number of chunks"

    async def test_an_owner_that_cannot_renew_stops_before_its_lease_runs_out(
        self, forks: Forks, own_redis: PrivateRedis
    ) -> None:
        async with Stage(forks, on(own_redis.url, lease_seconds=3, heartbeat_seconds=1)) as stage:
            run_id = await stage.bench.create(prompt="3000", agent="speaker")
            async with stage.engine() as engine:
                execution = asyncio.create_task(engine.execute(run_id))
                await eventually(lambda: _has_begun(stage, run_id), what="the run to begin")
                assert own_redis.pid is not None
                os.kill(own_redis.pid, signal.SIGSTOP)
                [lease] = engine._keeper._leases.values()
                try:
                    assert await asyncio.wait_for(execution, 20) is Outcome.LOST
                    stopped = time.monotonic()
                finally:
                    os.kill(own_redis.pid, signal.SIGCONT)
        assert stopped <= lease.deadline

    async def test_a_run_goes_on_after_redis_was_away_for_longer_than_its_lease(
        self, forks: Forks, own_redis: PrivateRedis
    ) -> None:
        settings = on(own_redis.url, lease_seconds=0.6, heartbeat_seconds=0.2, sweep_seconds=0.1)
        async with Stage(forks, settings) as stage, stage.engine() as engine:
            sweeper = Sweeper(stage.bench.store, settings, stage.wake, "me")
            run_id = await stage.bench.create(prompt="100", agent="speaker")
            execution = asyncio.create_task(engine.execute(run_id))
            await eventually(lambda: _has_begun(stage, run_id), what="the run to begin")
            await asyncio.to_thread(own_redis.kill)
            assert await execution is Outcome.LOST
            await asyncio.to_thread(own_redis.start)
            sweeper.start()
            await eventually(lambda: _is_woken(stage, run_id), what="the sweeper to find the run")
            assert await engine.execute(run_id) is Outcome.COMPLETED
            await sweeper.stop()
            assert (await stage.record(run_id)).json("output") == "".join(f"w{number} " for number in range(100))


async def _has_begun(stage: Stage, run_id: str) -> bool:
    return bool(await stage.bench.texts(run_id))


async def _is_woken(stage: Stage, run_id: str) -> bool:
    return run_id in stage.woken
