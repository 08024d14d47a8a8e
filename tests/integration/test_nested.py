"""What a sub-agent writes, in the log of the run that asks: whole, in order and once, whoever executes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from durable.chunks import Chunk, StepOutput, ToolOutput
from durable.execution.mirror import Mirror
from durable.leases import release
from durable.runs.record import Parent
from durable.runs.reports import Report
from durable.writer import Ending, RunWriter
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, on, step_start


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url)) as bench:
        yield bench


async def child_of(bench: Workbench, parent: RunWriter) -> str:
    """A nested run that another one has started; its id."""
    lease = parent.lease
    return await bench.create(
        parent=Parent(lease.run_id, lease.token, 1, 0, 'call "1"', "ask", "deferred"), nested=True
    )


async def mirror_of(bench: Workbench, writer: RunWriter) -> Mirror:
    """Tells the parent of a run."""
    record = await bench.runs.get(writer.lease.run_id)
    assert record.nested
    return Mirror(bench.store, writer.lease, Report(record), nested=True)


async def write(writer: RunWriter, *chunks: Chunk) -> None:
    for chunk in chunks:
        writer.write(chunk)
    await writer.flush()


async def nested(bench: Workbench, parent: RunWriter) -> list[dict[str, Any]]:
    """What the log of a run has of another one."""
    found = [chunk for chunk in await bench.chunks(parent.lease.run_id) if isinstance(chunk, ToolOutput | StepOutput)]
    assert {(chunk.payload.tool_call_id, chunk.payload.tool_name) for chunk in found} <= {('call "1"', "ask")}
    return [chunk.payload.output for chunk in found]


async def log(bench: Workbench, run_id: str) -> list[dict[str, Any]]:
    return [chunk.to_wire() for chunk in await bench.chunks(run_id)]


def reported(mirror: Mirror) -> Ending:
    """The end of a run that reports to its parent."""
    return Ending("completed", b"", dict(mirror.report.cancelled()))


async def test_each_chunk_is_told_whole_and_in_order_and_the_rest_of_them_with_the_end(bench: Workbench) -> None:
    parent = await bench.writer()
    child = await child_of(bench, parent)
    writer = await bench.writer(child)
    mirror = await mirror_of(bench, writer)
    await write(writer, step_start(), delta("one\n"), delta("zwei \u2028 ü", "p2"))
    await mirror.tell()
    assert await nested(bench, parent) == await log(bench, child)

    await write(writer, delta("three"))
    await mirror.tell()
    await mirror.tell()
    writer.write(delta("four"))
    await writer.finish(reported(mirror), finish())

    told = await log(bench, child)
    assert [chunk["seq"] for chunk in told] == list(range(1, 7))
    assert await nested(bench, parent) == told
    assert (await bench.chunks(parent.lease.run_id))[-1].type == "background-task-cancelled"


async def test_what_is_stored_is_told_without_being_asked_for(bench: Workbench) -> None:
    parent = await bench.writer()
    child = await child_of(bench, parent)
    writer = await bench.writer(child)
    mirror = await mirror_of(bench, writer)
    writer.on_stored = mirror.stored
    for word in ("one", "two"):
        await write(writer, delta(word))

        async def there() -> bool:
            return await nested(bench, parent) == await log(bench, child)

        await eventually(there, what="the parent to be told")
    mirror.end()


async def test_after_a_takeover_nothing_is_told_twice_or_left_out_and_a_worker_that_was_lost_tells_nothing(
    bench: Workbench,
) -> None:
    parent = await bench.writer()
    child = await child_of(bench, parent)
    first = await bench.writer(child)
    lost = await mirror_of(bench, first)
    await write(first, step_start(), delta("told"))
    await lost.tell()
    await write(first, delta("not told"))
    await release(bench.store, first.lease, wake_after=0)
    await lost.tell()
    assert len(await nested(bench, parent)) == 2

    second = await bench.writer(child)
    mirror = await mirror_of(bench, second)
    await write(second, step_start(), delta("again"))
    await lost.tell()
    assert len(await nested(bench, parent)) == 2
    await mirror.tell()
    assert await nested(bench, parent) == await log(bench, child)
    await second.finish(reported(mirror), finish())
    told = await nested(bench, parent)
    assert told == await log(bench, child)
    assert [chunk["attempt"] for chunk in told] == [1, 1, 1, 2, 2, 2]


async def test_a_sub_agent_of_a_sub_agent_is_told_also_while_the_one_between_waits(bench: Workbench) -> None:
    root = await bench.writer()
    between = await bench.writer(await child_of(bench, root))
    leaf = await bench.writer(await child_of(bench, between))
    await write(leaf, delta("deep"))
    await (await mirror_of(bench, leaf)).tell()

    (outer,) = await nested(bench, root)
    assert outer == (await log(bench, between.lease.run_id))[0]
    assert outer["payload"]["output"] == (await log(bench, leaf.lease.run_id))[0]


async def test_a_run_that_has_ended_is_told_nothing(bench: Workbench) -> None:
    parent = await bench.writer()
    writer = await bench.writer(await child_of(bench, parent))
    await parent.finish(completed(), finish())
    await write(writer, delta("late"))
    mirror = await mirror_of(bench, writer)
    await mirror.tell()
    await writer.finish(reported(mirror), finish())
    assert await nested(bench, parent) == []
    assert (await bench.chunks(parent.lease.run_id))[-1].final
