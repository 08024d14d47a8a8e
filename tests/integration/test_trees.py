"""Readers of a run with all that it has started: each log whole, once and in order, whatever is begun when."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import emit
from durable.chunks import BackgroundTaskStarted, TaskPayload
from durable.errors import InvalidRequest, UnknownRun
from durable.observer import Hub
from durable.runs.record import Parent
from durable.store import Store
from durable.trees import observer as trees
from durable.trees.observer import Sighting
from durable.writer import Ending, RunWriter
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, on


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url)) as bench:
        yield bench


async def child_of(bench: Workbench, parent: RunWriter, call: str, *, told: bool = True) -> str:
    """A run that another one has started; its id."""
    lease = parent.lease
    run_id = await bench.create(parent=Parent(lease.run_id, lease.token, 1, 0, call, "work", "deferred"))
    if told:
        payload = TaskPayload(task_id=run_id, tool_name="work", tool_call_id=call)
        parent.write(BackgroundTaskStarted(payload=payload))
        await parent.flush()
    return run_id


async def say(writer: RunWriter, *words: str) -> None:
    for word in words:
        writer.write(delta(word))
        await writer.flush()


async def end(writer: RunWriter) -> None:
    assert await writer.finish(completed(), finish())


async def see(bench: Workbench, run_id: str, after: str = "0", *, most: int | None = None) -> list[Sighting]:
    """What a reader sees to the end, or so many chunks of it."""
    seen: list[Sighting] = []
    async with asyncio.timeout(30), aclosing(bench.trees.pages(run_id, after)) as pages:
        async for page in pages:
            seen += page
            if most is not None and len(seen) >= most:
                return seen[:most]
    return seen


def by_run(seen: Sequence[Sighting]) -> dict[str, list[bytes]]:
    """The chunks of each run, in the order in which they were seen."""
    found: dict[str, list[bytes]] = defaultdict(list)
    for sighting in seen:
        found[json.loads(sighting.wire)["runId"]].append(sighting.wire)
    return dict(found)


async def logs(bench: Workbench, *run_ids: str) -> dict[str, list[bytes]]:
    return {run_id: await bench.wire(run_id) for run_id in run_ids}


async def family(bench: Workbench) -> tuple[str, list[str]]:
    """A run that has ended, with two children and a grandchild; their ids."""
    root = await bench.writer()
    first, second = await child_of(bench, root, "c1"), await child_of(bench, root, "c2")
    one, two = await bench.writer(first), await bench.writer(second)
    grandchild = await child_of(bench, one, "c1")
    three = await bench.writer(grandchild)
    for writer in (two, three, one, root):
        await say(writer, "a", "b")
        await end(writer)
    return root.lease.run_id, [root.lease.run_id, first, second, grandchild]


async def test_every_log_is_seen_once_and_in_order_and_the_roots_end_is_the_last(bench: Workbench) -> None:
    root, members = await family(bench)

    seen = await see(bench, root)

    assert by_run(seen) == await logs(bench, *members)
    assert seen[-1].wire == (await bench.wire(root))[-1]


async def test_each_run_is_asked_once_what_it_has_started_and_the_root_once_more_at_the_start(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, members = await family(bench)
    asked: list[str] = []

    async def children(store: Store, run_id: str, first: int = 0) -> list[str]:
        asked.append(run_id)
        return await look(store, run_id, first)

    look = trees._children
    monkeypatch.setattr(trees, "_children", children)
    assert by_run(await see(bench, root)) == await logs(bench, *members)
    assert sorted(asked) == sorted([root, *members])


async def test_a_reader_may_go_on_from_the_cursor_of_any_chunk(bench: Workbench) -> None:
    root, members = await family(bench)
    whole = await logs(bench, *members)
    seen = await see(bench, root)
    for count, sighting in enumerate(seen, 1):
        rest = await see(bench, root, sighting.cursor)
        assert by_run([*seen[:count], *rest]) == whole
    assert await see(bench, root, str(len(whole[root]))) == []


@pytest.mark.parametrize("seed", range(5))
async def test_a_reader_who_leaves_at_any_time_misses_nothing_while_children_come_and_go(
    bench: Workbench, seed: int
) -> None:
    chance, root = random.Random(seed), await bench.writer()
    members = [root.lease.run_id]

    async def write() -> None:
        writers = [root]
        for number in range(12):
            parent = chance.choice(writers)
            members.append(await child_of(bench, parent, f"c{number}", told=chance.random() < 0.8))
            writers.append(await bench.writer(members[-1]))
            for _ in range(chance.randrange(6)):
                await say(chance.choice(writers), "x")
            if len(writers) > 4:
                await end(writers.pop(chance.randrange(1, len(writers))))
        for writer in reversed(writers):
            await end(writer)

    writing, seen, cursor = asyncio.ensure_future(write()), list[Sighting](), "0"
    while not (seen and b'"final":true' in seen[-1].wire and json.loads(seen[-1].wire)["runId"] == members[0]):
        seen += await see(bench, members[0], cursor, most=chance.randrange(1, 9))
        cursor = seen[-1].cursor
    await writing
    assert by_run(seen) == await logs(bench, *members)


async def test_a_child_that_appears_later_is_joined_from_its_first_chunk(bench: Workbench) -> None:
    root = await bench.writer()
    reader = asyncio.ensure_future(see(bench, root.lease.run_id))
    await say(root, "before")

    async def joined() -> bool:
        ears = bench.hub._followers.get(bench.store.keys.channel(root.lease.run_id), set())
        return [cast("Any", ear).place.seq for ear in ears] == [1]

    await eventually(joined, what="the reader to have what there is")
    child = await child_of(bench, root, "c1", told=False)  # so nothing in the log tells of it until the end
    writer = await bench.writer(child)
    await say(writer, "hello")
    await end(writer)
    await end(root)

    assert by_run(await reader) == await logs(bench, root.lease.run_id, child)


async def test_a_child_is_seen_while_it_runs(bench: Workbench) -> None:
    root = await bench.writer()
    child = await child_of(bench, root, "c1")
    writer = await bench.writer(child)
    async with asyncio.timeout(15), aclosing(bench.trees.pages(root.lease.run_id)) as pages:
        await anext(pages)
        await say(writer, "hello")
        page = await anext(pages)
    assert [sighting.chunk().run_id for sighting in page] == [child]


async def test_what_goes_on_without_the_run_is_not_waited_for(bench: Workbench) -> None:
    root = await bench.writer()
    slow, quick = await child_of(bench, root, "c1"), await child_of(bench, root, "c2")
    going, done = await bench.writer(slow), await bench.writer(quick)
    await say(going, "so far")
    await say(done, "all")
    await end(done)
    await end(root)

    seen = by_run(await see(bench, root.lease.run_id))

    assert seen.pop(slow, []) in (await bench.wire(slow), [])
    assert seen == await logs(bench, root.lease.run_id, quick)
    await end(going)


class Deaf(Hub):
    """Hears nothing that is announced."""

    def _deliver(self, channel: str, data: bytes) -> None:
        pass


async def test_what_was_not_heard_of_a_child_that_has_ended_is_told_before_the_roots_end(redis_url: str) -> None:
    async with Workbench(on(redis_url), hub=Deaf) as bench:
        root = await bench.writer()
        child = await child_of(bench, root, "c1")
        writer = await bench.writer(child)
        async with asyncio.timeout(15), aclosing(bench.trees.pages(root.lease.run_id)) as pages:
            seen = await anext(pages)
            await end(writer)
            await end(root)
            for ear in bench.hub._followers[bench.store.keys.channel(root.lease.run_id)]:
                ear.stir()  # only the root's log is worth a look
            async for page in pages:
                seen += page
        assert by_run(seen) == await logs(bench, root.lease.run_id, child)


async def test_the_order_of_children_is_kept_as_long_as_their_run(bench: Workbench) -> None:
    root = await bench.writer()
    await child_of(bench, root, "c1")
    await end(root)
    keys = bench.store.keys
    kept = await bench.store.redis.ttl(keys.run(root.lease.run_id))
    assert 0 < await bench.store.redis.ttl(keys.children_order(root.lease.run_id)) <= kept


async def test_tasks_that_go_on_for_a_retry_are_seen_with_it(bench: Workbench) -> None:
    root = await bench.writer()
    child = await child_of(bench, root, "c1")
    assert await root.finish(Ending("failed", b"", {}), finish())
    again, _ = await bench.runs.retry(root.lease.run_id)
    new, writer = await bench.writer(again.run_id), await bench.writer(child)
    await say(writer, "hello")
    await end(writer)
    await end(new)

    assert by_run(await see(bench, again.run_id)) == await logs(bench, again.run_id, child)


async def test_a_child_whose_log_has_expired_is_passed_over(bench: Workbench) -> None:
    root = await bench.writer()
    child = await child_of(bench, root, "c1")
    writer = await bench.writer(child)
    await end(writer)
    await bench.store.redis.delete(bench.store.keys.run(child), bench.store.keys.log(child))
    await end(root)

    assert by_run(await see(bench, root.lease.run_id)) == await logs(bench, root.lease.run_id)


async def test_more_children_than_a_cursor_may_name_are_told_one_after_the_other(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "MOST_BEGUN", 2)
    root = await bench.writer()
    members = [await child_of(bench, root, f"c{number}") for number in range(7)]
    writers = [await bench.writer(member) for member in members]
    grandchild = await child_of(bench, writers[0], "c1")
    for writer in [*writers, await bench.writer(grandchild)]:
        await say(writer, "hello")
    reader = asyncio.ensure_future(see(bench, root.lease.run_id))

    async def begun() -> bool:
        return len(bench.hub._followers) == 9

    await eventually(begun, what="all to be followed")
    for writer in writers:
        await end(writer)
    ended = await bench.writer(await child_of(bench, root, "late"))
    await end(ended)
    await end(root)
    seen = await reader

    told = by_run(seen)
    assert told.pop(grandchild, []) in (await bench.wire(grandchild), [])
    assert told == await logs(bench, root.lease.run_id, ended.lease.run_id, *members)
    at_once = [sighting.cursor.count(":") for sighting in seen if json.loads(sighting.wire)["runId"] in members]
    assert max(at_once[: len(at_once) // 2]) <= 3


async def test_what_has_ended_below_a_run_for_which_there_was_no_place_is_told_before_the_roots_end(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "MOST_BEGUN", 1)
    root = await bench.writer()
    child = await bench.writer(await child_of(bench, root, "c1"))
    crowded = await bench.writer(await child_of(bench, child, "c1"))
    below = await bench.writer(await child_of(bench, crowded, "c1"))
    await say(below, "hello")
    await end(below)
    await end(root)

    told = by_run(await see(bench, root.lease.run_id))

    members = [root.lease.run_id, child.lease.run_id, below.lease.run_id]
    assert {name: told.get(name) for name in members} == await logs(bench, *members)


async def test_a_thousand_children_share_one_connection_and_a_short_cursor(own_redis: Any) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        root = await bench.writer()
        members = [await child_of(bench, root, f"c{number}") for number in range(1000)]
        reader = asyncio.ensure_future(see(bench, root.lease.run_id))

        async def joined() -> bool:
            return len(bench.hub._followers) == 1001

        await eventually(joined, what="all children to be followed")
        assert len(await bench.store.redis.client_list(_type="pubsub")) == 1
        for member in members:
            writer = await bench.writer(member)
            await say(writer, "hello")
            await end(writer)
        await end(root)
        seen = await reader

        assert len(by_run(seen)) == 1001
        assert len(seen) == 1000 * 3 + 1
        assert max(len(sighting.cursor) for sighting in seen) < 4096
        assert bench.hub._followers == {}


@pytest.mark.parametrize("cursor", ["x", "999", "1(0:9)", "1(5:1)", "1.7", "1(0:1(0:1))", "-1"])
async def test_a_cursor_of_something_else_is_refused_at_once(bench: Workbench, cursor: str) -> None:
    root = await bench.writer()
    child = await bench.writer(await child_of(bench, root, "c1"))
    await say(child, "hello")
    with pytest.raises(InvalidRequest):
        await see(bench, root.lease.run_id, cursor)
    assert bench.hub._followers == {}


async def test_a_run_that_is_not_there_has_no_tree(bench: Workbench) -> None:
    with pytest.raises(UnknownRun):
        await see(bench, "nobody")


async def test_readers_are_dismissed_with_their_hub(bench: Workbench) -> None:
    root = await bench.writer()
    await child_of(bench, root, "c1")
    reader = asyncio.ensure_future(see(bench, root.lease.run_id))

    async def joined() -> bool:
        return len(bench.hub._followers) == 2

    await eventually(joined, what="the tree to be followed")
    bench.hub.dismiss()
    assert len(await reader) <= 1
    assert bench.hub._followers == {}


async def test_silence_is_told_to_those_who_ask(bench: Workbench) -> None:
    root = await bench.writer()
    async with asyncio.timeout(15), aclosing(bench.trees.pages(root.lease.run_id, silence=0.01)) as pages:
        assert await anext(pages) == []


async def test_a_handle_shows_its_run_with_the_tasks_that_it_starts(connected: Any) -> None:
    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if any(isinstance(message, ModelResponse) for message in messages):
            yield "done"
        else:
            yield {i: DeltaToolCall(name="work", json_args=f'{{"n": {i}}}', tool_call_id=f"c{i}") for i in (1, 2, 3)}

    agent = Agent(FunctionModel(stream_function=respond), name="support")

    @agent.tool(metadata={"durable": {"background": True}})
    async def work(ctx: RunContext[Any], n: int) -> str:
        await emit(ctx, n)
        return f"done {n}"

    async with connected(agent) as durable:
        handle = await durable.stream("go", until_idle=True)
        chunks = [chunk async for chunk in handle.observe(tree=True)]
        first = chunks[len(chunks) // 2]
        rest = [chunk async for chunk in durable.observe(handle.run_id, offset=first.cursor, tree=True)]
        alone = [chunk async for chunk in handle.observe()]

    assert len({chunk.run_id for chunk in chunks}) == 4
    assert [chunk.to_wire() for chunk in chunks if chunk.run_id == handle.run_id] == [c.to_wire() for c in alone]
    said = [chunk.payload.output for chunk in chunks if chunk.type == "tool-output"]
    assert sorted(said) == [1, 2, 3]
    assert (chunks[-1].run_id, chunks[-1].final) == (handle.run_id, True)
    seen = {(chunk.run_id, chunk.seq) for chunk in chunks[: len(chunks) // 2 + 1]}
    assert {(chunk.run_id, chunk.seq) for chunk in [*chunks]} - seen == {(chunk.run_id, chunk.seq) for chunk in rest}
