"""Runs of a chosen shape, written to the log without a model: as the writer of an attempt writes them."""

from __future__ import annotations

from durable.appender import Appender
from durable.chunks import Finish, FinishPayload, PartTextPayload, StepResult, TextDelta, TurnOutput, Usage
from durable.leases import Lease, claim
from durable.runs import NewRun, RunRequest, Runs
from durable.settings import Settings
from durable.store import Store
from durable.writer import Ending, RunWriter

WORD = "word "


async def write_run(store: Store, settings: Settings, chunks: int, *, chunks_an_entry: int) -> str:
    """Write a run of so many deltas and its end; returns its id.

    Args:
        store: Where to.
        settings: Without coalescing (`flush_ms=0`).
        chunks: Deltas of text.
        chunks_an_entry: How many of them are written at once, at most 500.
    """
    runs = Runs(store, settings)
    new = NewRun("written", "evented", "written", RunRequest(prompt="-"), retention=3600)
    record, _ = await runs.create(new)
    lease = await claim(store, settings, record.run_id, "benchmark")
    if not isinstance(lease, Lease):
        raise RuntimeError(f"the run could not be claimed: {lease.reason}")  # noqa: TRY004 - no wrong type of ours
    appender = Appender(store, settings)
    appender.start()
    writer = RunWriter(appender, lease)
    for number in range(1, chunks + 1):
        writer.write(TextDelta(payload=PartTextPayload(id="a1p1", text=WORD)))
        if number % chunks_an_entry == 0:
            await writer.flush()
    output = TurnOutput(text="", usage=Usage(), steps=[])
    finish = Finish(payload=FinishPayload(output=output, step_result=StepResult(reason="stop")), final=True)
    await writer.finish(Ending("completed", b"[]", {}), finish)
    await appender.stop()
    return record.run_id
