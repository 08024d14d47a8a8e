"""The list of the calls that wait: a page goes on where the one before ended, and what is gone leaves it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest

from durable.background.descent import Descent
from durable.decisions import Answer, Decisions, Question
from durable.errors import AlreadyDecided, InvalidRequest, RequestTooLarge
from durable.runs import Parent
from durable.settings import Settings
from durable.store import text
from durable.trees.places import DEEPEST
from durable.writer import Note, Waiting
from tests.workbench import Workbench, delta


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


@pytest.fixture
def decisions(bench: Workbench) -> Decisions:
    return Decisions(bench.store, bench.runs)


async def waiting(
    bench: Workbench, *calls: str, agent: str = "nobody", parent: Parent | None = None, **asked: object
) -> str:
    """A run with calls that wait; its id."""
    run_id = await bench.create(agent=agent, parent=parent)
    writer = await bench.writer(run_id)
    question = Question(**{"tool_name": "refund", "kind": "approval", "agent": agent, **asked}).to_json()
    for call in calls:
        writer.write(delta(call), Note(field=f"1:{call}", value=b"{}", waiting=Waiting(call, 1, 0, question, None)))
    await writer.flush()
    return run_id


async def pages(decisions: Decisions, limit: int, agent: str = "") -> list[str]:
    """The calls of all pages, in their order."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = await decisions.page(limit=limit, cursor=cursor, agent=agent)
        assert len(page) <= limit
        found += [call.tool_call_id for call in page]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_calls_of_one_ms_are_paged_as_all_others(bench: Workbench, decisions: Decisions, limit: int) -> None:
    names = ["a/b", "a:b", "a b", "é", "c%2F", "c\n", *(f"c{i}" for i in range(10))]
    await waiting(bench, *names)
    members = [text(member) for member in await bench.store.redis.zrange(bench.store.keys.pending, 0, -1)]
    await bench.store.redis.zadd(bench.store.keys.pending, dict.fromkeys(members, 5))
    assert sorted(await pages(decisions, limit)) == sorted(names)


async def test_a_cursor_holds_when_what_was_seen_has_gone(bench: Workbench, decisions: Decisions) -> None:
    run_id = await waiting(bench, "c1", "c2", "c3")
    [first], cursor = await decisions.page(limit=1)
    await decisions.decide(run_id, first.tool_call_id, Answer(kind="approve"))
    await waiting(bench, "c4")
    rest, following = await decisions.page(cursor=cursor)
    assert [call.tool_call_id for call in rest] == ["c2", "c3", "c4"]
    assert following is None


async def test_the_calls_of_an_agent_are_found_among_all_others(bench: Workbench, decisions: Decisions) -> None:
    for i in range(4):
        await waiting(bench, f"a{i}", agent="one")
        await waiting(bench, f"b{i}", agent="two")
    for limit in (1, 3, 50):
        assert await pages(decisions, limit, agent="two") == ["b0", "b1", "b2", "b3"]
    assert await pages(decisions, 5, agent="three") == []


async def test_calls_whose_run_is_gone_leave_the_list(bench: Workbench, decisions: Decisions) -> None:
    gone, stays = await waiting(bench, "c1", "c2"), await waiting(bench, "c3")
    await bench.store.redis.delete(bench.store.keys.run(gone), bench.store.keys.calls(gone))
    assert await pages(decisions, 1) == ["c3"]
    members = await bench.store.redis.zrange(bench.store.keys.pending, 0, -1)
    assert [text(member) for member in members] == [f"{stays}:c3"]


@pytest.mark.parametrize(
    "cursor", ["", "x", "1", "-1.a:b", "1.a", "1.:b", "1.a b:c", "1e3.a:b", "\u0661.a:b", "1.a/b:c"]
)
async def test_a_cursor_that_is_none_of_ours_is_refused(decisions: Decisions, cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        await decisions.page(cursor=cursor)


async def test_nobody_passes_for_a_deadline(bench: Workbench, decisions: Decisions) -> None:
    run_id = await waiting(bench, "c1", args_schema={"type": "object", "required": ["amount"]})
    for answer in (Answer(kind="approve", args={}, actor="deadline"), Answer(kind="fail"), Answer(kind="resume")):
        with pytest.raises(InvalidRequest):
            await decisions.decide(run_id, "c1", answer)
    assert await pages(decisions, 50) == ["c1"]


async def test_what_is_said_of_an_answer_has_a_length_whoever_says_it(bench: Workbench, decisions: Decisions) -> None:
    run_id = await waiting(bench, "c1")
    for answer in (Answer(kind="decline", reason="x" * 1001), Answer(kind="approve", actor="x" * 201)):
        with pytest.raises(InvalidRequest):
            await decisions.decide(run_id, "c1", answer)
    with pytest.raises(RequestTooLarge):
        await decisions.decide(run_id, "c1", Answer(kind="approve", args={"x": "x" * 262_144}))
    await decisions.decide(run_id, "c1", Answer(kind="decline", reason="x" * 1000, actor="x" * 200))
    with pytest.raises(AlreadyDecided):
        await decisions.decide(run_id, "c1", Answer(kind="decline", reason="y"))


async def test_what_is_stored_is_what_has_to_fit(bench: Workbench, decisions: Decisions) -> None:
    schema = {"type": "object", "properties": {"amount": {"type": "number"}}}
    run_id = await waiting(bench, "c1", args_schema=schema)
    with pytest.raises(InvalidRequest):
        await decisions.decide(run_id, "c1", Answer(kind="approve", args={"amount": float("nan")}))
    await decisions.decide(run_id, "c1", Answer(kind="approve", args={"amount": 1.5}))
    stored = await bench.store.redis.hget(bench.store.keys.calls(run_id), "d:c1")
    assert stored is not None
    assert orjson.loads(stored)["args"] == {"amount": 1.5}


async def test_a_call_is_found_as_deep_below_a_run_as_its_readers_see(bench: Workbench, decisions: Decisions) -> None:
    lease = await bench.claim(await bench.create())
    root = lease.run_id
    for _ in range(DEEPEST - 1):
        parent = Parent(lease.run_id, lease.token, 1, 0, "c1", "work", "deferred")
        lease = await bench.claim(await bench.create(parent=parent))
    run_id = await waiting(bench, "c1", parent=Parent(lease.run_id, lease.token, 1, 0, "c1", "work", "deferred"))
    descent = Descent(bench.store, decisions)
    [found] = await descent.waiting([root])
    assert [(below, call.tool_call_id) for below, call in found] == [(run_id, "c1")]
    assert await descent.place(root, "c1", None) == run_id
