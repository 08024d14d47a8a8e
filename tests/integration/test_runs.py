"""Runs on a real Redis: created once, listed whole, claimed by one, cancelled or finished but never both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from durable.chunks import parse
from durable.errors import InvalidRequest, LeaseLost, RunConflict, RunEnded, RunExpired, UnknownRun
from durable.leases import Lease, LeaseKeeper, Refusal, claim, release
from durable.runs import NewRun, RunRecord
from durable.scripts import CLAIM
from durable.store import text
from durable.writer import RunWriter
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, new_run, on


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url)) as bench:
        yield bench


@pytest.fixture
async def hasty(redis_url: str) -> AsyncIterator[Workbench]:
    """Leases run out quickly."""
    async with Workbench(on(redis_url, lease_seconds=0.6, heartbeat_seconds=0.1)) as bench:
        yield bench


# Creating


async def test_a_run_id_makes_creating_safe_to_repeat(bench: Workbench) -> None:
    first, created = await bench.runs.create(new_run(run_id="mine", metadata={"a": 1, "b": 2}))
    again, created_again = await bench.runs.create(new_run(run_id="mine", metadata={"b": 2, "a": 1}))

    assert (created, created_again) == (True, False)
    assert (first.run_id, first.status) == ("mine", "queued")
    assert again.fields == first.fields


async def test_an_idempotency_key_makes_creating_safe_to_repeat(bench: Workbench) -> None:
    first, created = await bench.runs.create(new_run(idempotency_key="k"))
    again, created_again = await bench.runs.create(new_run(idempotency_key="k"))
    other, created_other = await bench.runs.create(new_run(idempotency_key="l"))
    elsewhere, created_elsewhere = await bench.runs.create(new_run(idempotency_key="k", agent="another"))

    assert (created, created_again, created_other, created_elsewhere) == (True, False, True, True)
    assert again.run_id == first.run_id
    assert len({first.run_id, other.run_id, elsewhere.run_id}) == 3


def _named(name: str, **fields: Any) -> NewRun:
    return new_run(**{name: "same", **fields})


@pytest.mark.parametrize("name", ["run_id", "idempotency_key"])
@pytest.mark.parametrize("other", [{"prompt": "another"}, {"metadata": {"a": 1}}])
async def test_another_request_under_the_same_name_conflicts(
    bench: Workbench, name: str, other: dict[str, Any]
) -> None:
    first, _ = await bench.runs.create(_named(name))
    with pytest.raises(RunConflict):
        await bench.runs.create(_named(name, **other))
    assert (await bench.runs.get(first.run_id)).fields == first.fields
    assert len((await bench.runs.page())[0]) == 1


async def test_a_run_id_of_another_agent_conflicts(bench: Workbench) -> None:
    await bench.runs.create(new_run(run_id="same"))
    with pytest.raises(RunConflict):
        await bench.runs.create(new_run(run_id="same", agent="another"))


@pytest.mark.parametrize("name", ["run_id", "idempotency_key"])
async def test_fifty_creates_at_once_make_one_run(bench: Workbench, name: str) -> None:
    made = await asyncio.gather(*(bench.runs.create(_named(name)) for _ in range(50)))

    assert sum(created for _, created in made) == 1
    assert len({record.run_id for record, _ in made}) == 1
    assert len((await bench.runs.page())[0]) == 1


async def test_of_fifty_different_requests_under_one_name_one_wins(bench: Workbench) -> None:
    made = await asyncio.gather(
        *(bench.runs.create(new_run(f"prompt {number}", run_id="same")) for number in range(50)),
        return_exceptions=True,
    )
    won = [number for number, item in enumerate(made) if not isinstance(item, BaseException)]

    assert len(won) == 1
    assert sum(isinstance(item, RunConflict) for item in made) == 49
    assert (await bench.runs.request("same")).prompt == f"prompt {won[0]}"


async def test_the_id_of_an_expired_run_is_not_given_again(bench: Workbench) -> None:
    run_id = await bench.create(run_id="once", retention=1)
    await bench.runs.cancel(run_id)
    await eventually(lambda: _expired(bench, run_id), what="the retention to pass")

    with pytest.raises(RunExpired):
        await bench.runs.create(new_run(run_id=run_id, retention=1))
    with pytest.raises(RunExpired):
        await bench.runs.get(run_id)
    with pytest.raises(RunExpired):
        await bench.runs.cancel(run_id)


async def _expired(bench: Workbench, run_id: str) -> bool:
    return not await bench.store.redis.exists(bench.store.keys.run(run_id))


@pytest.mark.parametrize("run_id", ["a/b", "a b", "ä", "x" * 129, "a\n", "a\0", "{a}"])
async def test_what_is_no_run_id_is_refused(bench: Workbench, run_id: str) -> None:
    with pytest.raises(InvalidRequest):
        await bench.create(run_id=run_id)
    with pytest.raises(UnknownRun):
        await bench.runs.get(run_id)


# Listing


async def listed(bench: Workbench, *, limit: int, **filters: str) -> list[RunRecord]:
    """All runs, page by page."""
    found, cursor = [], None
    while True:
        page, cursor = await bench.runs.page(limit=limit, cursor=cursor, **filters)
        found += page
        assert len(page) <= limit
        if cursor is None:
            return found


async def same_moment(bench: Workbench, *run_ids: str) -> None:
    """Let runs have been created in the same ms, as a busy server does."""
    keys = bench.store.keys
    for run_id in run_ids:
        await bench.store.redis.hset(keys.run(run_id), "createdAt", "1700000000000")
        for index in (keys.runs(), keys.runs(status="queued"), keys.runs(agent="nobody")):
            await bench.store.redis.zadd(index, {run_id: 1_700_000_000_000}, xx=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 25, 50])
async def test_pages_leave_no_gap_and_repeat_nothing(bench: Workbench, limit: int) -> None:
    run_ids = [await bench.create() for _ in range(25)]
    await same_moment(bench, *run_ids[5:16])
    found = await listed(bench, limit=limit)

    moments = [record.view().created_at for record in found]
    assert sorted(record.run_id for record in found) == sorted(run_ids)
    assert moments == sorted(moments, reverse=True)


async def test_runs_that_come_while_a_list_is_read_shift_nothing(bench: Workbench) -> None:
    run_ids = {await bench.create() for _ in range(10)}
    page, cursor = await bench.runs.page(limit=4)
    for _ in range(5):
        await bench.create()
    seen = [record.run_id for record in page]
    while cursor is not None:
        page, cursor = await bench.runs.page(limit=4, cursor=cursor)
        seen += [record.run_id for record in page]

    assert len(seen) == len(set(seen))
    assert set(seen) == run_ids


async def test_runs_of_one_moment_that_leave_a_list_while_it_is_read_hide_no_others(bench: Workbench) -> None:
    run_ids = [await bench.create() for _ in range(9)]
    await same_moment(bench, *run_ids)
    page, cursor = await bench.runs.page(status="queued", limit=3)
    seen = [record.run_id for record in page]
    for run_id in seen:
        await bench.runs.cancel(run_id)
    while cursor is not None:
        page, cursor = await bench.runs.page(status="queued", limit=3, cursor=cursor)
        seen += [record.run_id for record in page]

    assert sorted(seen) == sorted(run_ids)


async def test_expired_runs_leave_the_lists_and_hide_no_others(bench: Workbench) -> None:
    run_ids = [await bench.create() for _ in range(12)]
    await same_moment(bench, *run_ids)
    kept = sorted(run_ids)[::2]
    for run_id in set(run_ids) - set(kept):
        await bench.store.redis.delete(bench.store.keys.run(run_id))  # as its retention does

    for filters in ({}, {"status": "queued"}, {"agent": "nobody"}):
        assert sorted(record.run_id for record in await listed(bench, limit=2, **filters)) == kept
        assert len(await listed(bench, limit=50, **filters)) == len(kept)


async def test_many_runs_of_one_moment_are_listed_in_small_pages(bench: Workbench) -> None:
    run_ids = [await bench.create() for _ in range(60)]
    await same_moment(bench, *run_ids)
    assert sorted(record.run_id for record in await listed(bench, limit=4)) == sorted(run_ids)


async def test_lists_are_narrowed_by_status_and_agent(bench: Workbench) -> None:
    expected: dict[tuple[str, str], set[str]] = {}
    for agent in ("one", "two"):
        for status in ("queued", "running", "completed", "cancelled"):
            expected[agent, status] = {await _in_state(bench, agent, status) for _ in range(3)}

    async def ids(**filters: str) -> set[str]:
        found = [record.run_id for record in await listed(bench, limit=2, **filters)]
        assert len(found) == len(set(found))
        return set(found)

    assert await ids() == set().union(*expected.values())
    for (agent, status), run_ids in expected.items():
        assert await ids(agent=agent, status=status) == run_ids
        assert await ids(agent=agent) == set().union(*(v for (a, _), v in expected.items() if a == agent))
        assert await ids(status=status) == set().union(*(v for (_, s), v in expected.items() if s == status))
    assert await ids(status="failed") == set()
    assert await ids(agent="three") == set()


async def _in_state(bench: Workbench, agent: str, status: str) -> str:
    run_id = await bench.create(agent=agent)
    if status in {"running", "completed"}:
        writer = await bench.writer(run_id)
        if status == "completed":
            await writer.finish(completed(), finish())
    if status == "cancelled":
        await bench.runs.cancel(run_id)
    return run_id


@pytest.mark.parametrize("cursor", ["", "x", "1", "-1.a", "1.5.2", "1.x/y", "1e3.a", "\u0661.a", "1." + "x" * 129])
async def test_a_cursor_that_is_none_of_ours_is_refused(bench: Workbench, cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        await bench.runs.page(cursor=cursor)


# Cancelling


async def test_a_queued_run_is_cancelled_at_once_and_its_log_says_so(bench: Workbench) -> None:
    run_id = await bench.create()
    assert await bench.runs.cancel(run_id, reason="not needed", actor="ann") is True

    abort, end = await bench.chunks(run_id)
    record = await bench.runs.get(run_id)
    assert (abort.type, abort.payload.reason, abort.payload.actor) == ("abort", "not needed", "ann")
    assert (end.type, end.payload.step_result.reason, end.final) == ("finish", "abort", True)
    assert [abort.seq, end.seq, record.last_seq] == [1, 2, 2]
    assert record.status == "cancelled"
    assert record.view().finished_at is not None
    assert await claim(bench.store, bench.settings, run_id, "late") == Refusal("ended")
    assert await bench.store.redis.zscore(bench.store.keys.wakeups, run_id) is None


async def test_cancelling_twice_changes_nothing(bench: Workbench) -> None:
    run_id = await bench.create()
    assert await bench.runs.cancel(run_id, reason="first") is True
    before = await bench.wire(run_id)

    assert await bench.runs.cancel(run_id, reason="second") is False
    assert await bench.wire(run_id) == before


async def test_a_run_that_is_executed_is_asked_to_end_and_the_first_reason_stands(bench: Workbench) -> None:
    writer = await bench.writer()
    run_id = writer.lease.run_id
    for reason in ("first", "second"):
        assert await bench.runs.cancel(run_id, reason=reason) is True

    record = await bench.runs.get(run_id)
    assert (record.status, record.json("cancelRequested")) == ("running", {"reason": "first"})
    assert await bench.log(run_id) == []
    assert await writer.finish(completed(), finish()) == "cancel"
    assert await bench.log(run_id) == []


async def test_a_run_whose_worker_is_gone_is_cancelled_at_once(hasty: Workbench) -> None:
    writer = await hasty.writer()
    run_id = writer.lease.run_id
    writer.write(delta("a"))
    await writer.flush()
    await eventually(lambda: _lease_is_out(hasty, run_id), what="the lease to run out")
    assert await hasty.runs.cancel(run_id) is True

    assert [chunk.type for chunk in await hasty.chunks(run_id)] == ["text-delta", "abort", "finish"]
    writer.write(delta("zombie"))
    with pytest.raises(LeaseLost):
        await writer.flush()
    assert (await hasty.runs.get(run_id)).status == "cancelled"
    assert len(await hasty.chunks(run_id)) == 3


async def test_a_run_that_has_ended_is_not_cancelled(bench: Workbench) -> None:
    writer = await bench.writer()
    await writer.finish(completed(), finish())
    before = await bench.wire(writer.lease.run_id)

    with pytest.raises(RunEnded):
        await bench.runs.cancel(writer.lease.run_id)
    assert await bench.wire(writer.lease.run_id) == before
    assert (await bench.runs.get(writer.lease.run_id)).status == "completed"


async def test_an_unknown_run_is_not_cancelled(bench: Workbench) -> None:
    with pytest.raises(UnknownRun):
        await bench.runs.cancel("nobody-knows-it")


async def test_cancelling_and_finishing_at_once_end_a_run_exactly_once(bench: Workbench) -> None:
    outcomes = [await _race(bench, turn) for turn in range(200)]
    assert set(outcomes) == {"completed", "cancelled"}


async def _race(bench: Workbench, turn: int) -> str:
    """Finish and cancel a run at the same time, and look at what came of it; how the run ended."""
    writer = await bench.writer()
    run_id = writer.lease.run_id
    writer.write(delta("a"))

    async def finishing() -> bool:
        for _ in range(turn % 20):
            await asyncio.sleep(0)
        if await writer.finish(completed(), finish()) != "cancel":
            return True
        # As an attempt does that finds the run cancelled.
        ending = completed()
        assert await writer.finish(type(ending)("cancelled", ending.checkpoint, ending.fields), finish())
        return False

    async def cancelling() -> bool:
        for _ in range(turn // 10):
            await asyncio.sleep(0)
        try:
            return await bench.runs.cancel(run_id)
        except RunEnded:
            return False

    finished, cancelled = await asyncio.gather(finishing(), cancelling())
    chunks = [parse(data) for data in await bench.wire(run_id)]
    record = await bench.runs.get(run_id)
    assert finished != cancelled
    assert [chunk.final for chunk in chunks] == [None] * (len(chunks) - 1) + [True]
    assert [chunk.seq for chunk in chunks] == list(range(1, record.last_seq + 1))
    assert record.status == ("completed" if finished else "cancelled")
    return str(record.status)


# Claiming


async def test_of_fifty_claims_at_once_one_holds(bench: Workbench) -> None:
    run_id = await bench.create()
    claims = await asyncio.gather(
        *(claim(bench.store, bench.settings, run_id, f"owner {number}") for number in range(50))
    )
    held = [item for item in claims if isinstance(item, Lease)]

    assert [lease.token for lease in held] == [1]
    assert claims.count(Refusal("held")) == 49
    record = await bench.runs.get(run_id)
    assert (record.status, record.token, record.view().attempt) == ("running", 1, 1)


async def test_a_claim_that_is_sent_again_finds_itself_done(bench: Workbench) -> None:
    run_id, keys = await bench.create(), bench.store.keys
    names = [keys.run(run_id), keys.leases, keys.wakeups]
    answers = []
    for nonce in ("n1", "n1", "n2"):
        reply = await bench.store.run(CLAIM, names, [run_id, "owner", nonce, 5000, keys.status_indexes])
        answers.append([text(item) for item in reply])

    assert answers[0] == answers[1] == ["claimed", "1", "0", "1"]
    assert answers[2][0] == "held"
    assert (await bench.runs.get(run_id)).token == 1


@pytest.mark.parametrize(("state", "reason"), [("unknown", "unknown"), ("cancelled", "ended"), ("completed", "ended")])
async def test_what_can_not_be_executed_is_not_claimed(bench: Workbench, state: str, reason: str) -> None:
    run_id = "nobody-knows-it" if state == "unknown" else await _in_state(bench, "nobody", state)
    assert await claim(bench.store, bench.settings, run_id, "owner") == Refusal(reason)


async def test_a_lease_that_ran_out_is_taken_over_with_a_higher_token(hasty: Workbench) -> None:
    first = await hasty.claim(await hasty.create())
    assert await claim(hasty.store, hasty.settings, first.run_id, "eager") == Refusal("held")
    await eventually(lambda: _lease_is_out(hasty, first.run_id), what="the lease to run out")

    claims = await asyncio.gather(*(claim(hasty.store, hasty.settings, first.run_id, f"o{n}") for n in range(20)))
    assert [item.token for item in claims if isinstance(item, Lease)] == [2]


async def test_a_run_that_is_released_is_queued_again(bench: Workbench) -> None:
    lease = await bench.claim(await bench.create())
    assert await release(bench.store, lease, wake_after=5) is True

    record = await bench.runs.get(lease.run_id)
    assert record.status == "queued"
    assert [item.run_id for item in await listed(bench, limit=5, status="queued")] == [lease.run_id]
    assert await listed(bench, limit=5, status="running") == []
    assert await bench.store.redis.zscore(bench.store.keys.wakeups, lease.run_id) is not None
    assert (await bench.claim(lease.run_id)).token == lease.token + 1


async def test_a_lease_that_was_lost_releases_nothing(bench: Workbench) -> None:
    first = await bench.claim(await bench.create())
    await release(bench.store, first, wake_after=5)
    second = await bench.claim(first.run_id)

    assert await release(bench.store, first, wake_after=5) is False
    record = await bench.runs.get(first.run_id)
    assert (record.status, record.token) == ("running", second.token)


# Keeping


async def test_a_kept_lease_holds_longer_than_it_was_given_for(hasty: Workbench) -> None:
    lease = await hasty.claim(await hasty.create())
    given = lease.deadline
    keeper = LeaseKeeper(hasty.store, hasty.settings)
    keeper.start()
    keeper.add(lease)
    try:
        await eventually(lambda: _is(asyncio.get_running_loop().time() > given + 0.3), what="the first term to pass")
        assert await claim(hasty.store, hasty.settings, lease.run_id, "eager") == Refusal("held")
        assert lease.deadline > given
        assert not lease.lost
        keeper.remove(lease)
        await eventually(lambda: _claimed(hasty, lease.run_id), what="the lease to run out once it is not kept")
    finally:
        await keeper.stop()


async def test_a_keeper_tells_the_owner_of_a_lease_that_somebody_took(hasty: Workbench) -> None:
    lost = asyncio.Event()
    lease, other = await hasty.claim(await hasty.create()), await hasty.claim(await hasty.create())
    lease.on_lost = lost.set
    keeper = LeaseKeeper(hasty.store, hasty.settings)
    keeper.start()
    keeper.add(lease)
    keeper.add(other)
    try:
        await hasty.store.redis.zadd(hasty.store.keys.leases, {lease.member: 1}, xx=True)  # as if it had run out
        new: Lease | Refusal = Refusal("held")
        while isinstance(new, Refusal):  # a renewal may come between
            new = await claim(hasty.store, hasty.settings, lease.run_id, "thief")
            if isinstance(new, Refusal):
                await hasty.store.redis.zadd(hasty.store.keys.leases, {lease.member: 1}, xx=True)
        await asyncio.wait_for(lost.wait(), 10)

        assert lease.lost
        assert not other.lost
        assert await hasty.store.redis.zscore(hasty.store.keys.leases, lease.member) is None
        assert new.token == lease.token + 1
    finally:
        await keeper.stop()


class _Late:
    """Takes the answers to batches only when it may.

    Attributes:
        written: Whether Redis has taken a batch.
        may: When answers are taken.
    """

    def __init__(self, bench: Workbench) -> None:
        self.store, self.settings = bench.store, bench.settings
        self.written = False
        self.may = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def enqueue(self, writer: RunWriter) -> None:
        self._task = asyncio.get_running_loop().create_task(self._send(writer))

    async def _send(self, writer: RunWriter) -> None:
        script, keys, args = writer.call()
        reply = await self.store.run(script, keys, args)
        self.written = True
        await self.may.wait()
        writer.acknowledge(reply)


async def test_a_lease_that_goes_with_its_run_is_not_taken_for_lost(redis_url: str) -> None:
    async with Workbench(on(redis_url, lease_seconds=30, heartbeat_seconds=0.1)) as bench:
        lease, late = await bench.claim(await bench.create()), _Late(bench)
        writer = RunWriter(late, lease)
        lease.on_lost = lambda: writer.fail(LeaseLost())
        keeper, answers = LeaseKeeper(bench.store, bench.settings), list[Any]()
        call = keeper._call

        def renew(*args: Any) -> Any:
            after = late.written  # then the run had ended before it was asked
            replies = call(*args)
            answers.extend(replies if after else [])
            return replies

        keeper._call = renew  # type: ignore[assignment, method-assign]  # tells what Redis has answered
        keeper.start()
        keeper.add(lease)
        try:
            ending = asyncio.create_task(writer.finish(completed(), finish()))
            await eventually(lambda: _is(len(answers) > 1), what="renewals that come after the run's end")
            assert set(answers) == {0}
            late.may.set()
            assert await ending == "written"
            assert not lease.lost
        finally:
            await keeper.stop()


@pytest.mark.parametrize("ending", [False, True])
async def test_a_keeper_gives_up_a_lease_that_it_can_not_renew_in_time(hasty: Workbench, *, ending: bool) -> None:
    lost = asyncio.Event()
    lease = await hasty.claim(await hasty.create())
    lease.on_lost, lease.ending = lost.set, ending
    keeper = LeaseKeeper(hasty.store, hasty.settings)
    keeper._call = _away  # type: ignore[assignment, method-assign]  # a store that does not answer
    keeper.start()
    keeper.add(lease)
    try:
        await asyncio.wait_for(lost.wait(), 10)
        assert lease.lost
    finally:
        await keeper.stop()


def _away(*_: Any) -> Any:
    raise ConnectionError


async def test_an_owner_that_lost_its_lease_writes_nothing_more(hasty: Workbench) -> None:
    lease = await hasty.claim(await hasty.create())
    writer = RunWriter(hasty.appender, lease)
    lease.on_lost = lambda: writer.fail(LeaseLost())
    keeper = LeaseKeeper(hasty.store, hasty.settings)
    keeper.start()
    keeper.add(lease)
    try:
        await hasty.store.redis.zrem(hasty.store.keys.leases, lease.member)
        await eventually(lambda: _is(lease.lost), what="the loss to be noticed")
        writer.write(delta("late"))
        with pytest.raises(LeaseLost):
            await writer.flush()
        assert await hasty.log(lease.run_id) == []
    finally:
        await keeper.stop()


async def _is(value: bool) -> bool:
    return value


async def _claimed(bench: Workbench, run_id: str) -> bool:
    return isinstance(await claim(bench.store, bench.settings, run_id, "next"), Lease)


async def _lease_is_out(bench: Workbench, run_id: str) -> bool:
    """Whether no lease of the run holds, by the store's clock."""
    seconds, micros = await bench.store.redis.time()
    now = int(seconds) * 1000 + int(micros) / 1000
    leases: Any = await bench.store.redis.zrange(bench.store.keys.leases, 0, -1, withscores=True)
    return all(expiry < now for member, expiry in leases if text(member).startswith(run_id))


async def test_an_idempotency_key_is_remembered_as_long_as_its_run(bench: Workbench) -> None:
    key = {"idempotency_key": "once", "retention": 1}
    first = await bench.create(**key)
    stored = [name async for name in bench.store.redis.scan_iter(f"{bench.store.keys.prefix}:idempotency:*")]
    assert [await bench.store.redis.ttl(name) for name in stored] == [-1]
    assert await bench.create(**key) == first
    await bench.runs.cancel(first)
    assert 0 <= await bench.store.redis.ttl(stored[0]) <= 1
