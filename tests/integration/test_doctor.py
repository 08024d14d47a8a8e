"""The doctor on real Redis: sound runs are sound, and each rule that is broken is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from typer.testing import CliRunner

from durable import Client, create_durable_agent, ledger
from durable.chunks import ToolCallApproval, ToolCallApprovalPayload, ToolResult, ToolResultPayload
from durable.cli import app
from durable.decisions import Answer, Decisions, Question
from durable.doctor import Doctor, Finding
from durable.leases import release, suspend
from durable.settings import Settings
from durable.suspension import Suspension
from durable.writer import Note, Waiting
from tests.conftest import eventually
from tests.deployment import Deployment
from tests.workbench import Workbench, completed, delta, finish, step_start


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def found(bench: Workbench) -> list[Finding]:
    return [finding async for finding in Doctor(bench.store).findings()]


def result(call: str) -> ToolResult:
    return ToolResult(payload=ToolResultPayload(tool_call_id=call, tool_name="add", result=3))


async def running(bench: Workbench, *, tool: bool = True) -> str:
    """A run in the middle of its second step, with a checkpoint and a recorded tool call."""
    writer = await bench.writer()
    writer.write(step_start(1))
    writer.write(delta("hello"), Note(checkpoint=b'{"keep":0,"messages":[]}'))
    if tool:
        writer.note(Note(field=ledger.key(1, "c1"), value=ledger.STARTED, progress=False))
        await writer.flush()
        writer.write(result("c1"), Note(field=ledger.key(1, "c1"), value=ledger.encode(ledger.Outcome(value=3))))
    writer.write(step_start(2))
    await writer.flush()
    return writer.lease.run_id


async def waiting(bench: Workbench) -> str:
    """A suspended run: one of its calls waits, with a deadline; another one did, and was declined."""
    writer = await bench.writer()
    writer.write(step_start(1), Note(checkpoint=b'{"keep":0,"messages":[]}'))
    for call in ("c1", "c2"):
        question = Question(tool_name="pay", kind="approval")
        entry = ledger.encode(ledger.Outcome(suspended=Suspension(kind="approval")))
        asked = Waiting(call, 1, 0, question.to_json(), expires_in=3600)
        payload = ToolCallApprovalPayload(tool_call_id=call, tool_name="pay", resume_schema="{}")
        writer.write(ToolCallApproval(payload=payload), Note(field=ledger.key(1, call), value=entry, waiting=asked))
    await writer.flush()
    run_id, decisions = writer.lease.run_id, Decisions(bench.store, bench.runs)
    await decisions.decide(run_id, "c2", Answer(kind="decline"))
    assert await suspend(bench.store, writer.lease, 1, {"reason": "decision"}) == "suspended"
    return run_id


async def ended(bench: Workbench) -> str:
    writer = await bench.writer()
    writer.write(step_start(1))
    await writer.finish(completed(), finish())
    return writer.lease.run_id


async def test_runs_in_every_state_are_sound(bench: Workbench) -> None:
    await bench.create()
    await running(bench)
    await waiting(bench)
    await bench.runs.cancel(await waiting(bench))
    await ended(bench)
    lost = await bench.create()
    writer = await bench.writer(lost)
    assert await release(bench.store, writer.lease, wake_after=60)
    cancelled = await bench.create()
    await bench.runs.cancel(cancelled)
    retried, _ = await bench.runs.retry(cancelled)
    doctor = Doctor(bench.store)
    assert [finding async for finding in doctor.findings()] == []
    assert doctor.examined == 8
    assert retried.run_id


async def test_whole_runs_of_an_agent_are_sound(settings: Settings, bench: Workbench) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    agent = create_durable_agent(Agent(TestModel(), name="whole", tools=[add], output_type=list[int]), cache=settings)
    for _ in range(3):
        assert (await agent.generate("go")).output is not None
    await agent.aclose()
    assert await found(bench) == []


async def test_results_of_the_callers_tools_are_answers(settings: Settings, bench: Workbench) -> None:
    calls = [{"look": {}}, "done"]

    async def model(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        said = calls.pop(0)
        yield said if isinstance(said, str) else {0: DeltaToolCall(name="look", json_args="{}", tool_call_id="c1")}

    agent = Agent(FunctionModel(stream_function=model), name="looking")
    async with create_durable_agent(agent, cache=settings) as wrapped:
        handle = await wrapped.stream("hi", client_tools=[{"name": "look", "parameters": {"type": "object"}}])

        async def waits() -> bool:
            return (await handle.status()).status == "suspended"

        await eventually(waits, what="the run to wait")
        assert await found(bench) == []
        await handle.resume("c1", "seen")
        assert (await handle.result()).output == "done"
        assert await found(bench) == []


async def test_an_expired_run_is_no_finding(bench: Workbench) -> None:
    run_id = await ended(bench)
    redis, keys = bench.store.redis, bench.store.keys
    for key in (keys.run(run_id), keys.log(run_id), keys.request(run_id)):
        await redis.delete(key)
    assert await found(bench) == []


Break = Callable[[Workbench, str], Awaitable[Any]]
ALIVE: dict[str, tuple[str, Break]] = {
    "a running run without a lease": ("state", lambda b, r: b.store.redis.zrem(b.store.keys.leases, f"{r}:1")),
    "a running run with a wake-up": ("state", lambda b, r: b.store.redis.zadd(b.store.keys.wakeups, {r: 1})),
    "a running run without an owner": ("state", lambda b, r: b.store.redis.hdel(b.store.keys.run(r), "owner")),
    "a lease of an attempt before": ("state", lambda b, r: b.store.redis.zadd(b.store.keys.leases, {f"{r}:0": 1})),
    "a wrong index": ("index", lambda b, r: b.store.redis.zadd(b.store.keys.runs(status="queued"), {r: 1})),
    "no index": ("index", lambda b, r: b.store.redis.zrem(b.store.keys.runs(status="running"), r)),
    "not in the list": ("index", lambda b, r: b.store.redis.zrem(b.store.keys.runs(), r)),
    "not in the agent's list": ("index", lambda b, r: b.store.redis.zrem(b.store.keys.runs(agent="nobody"), r)),
    "no record": ("index", lambda b, r: b.store.redis.delete(b.store.keys.run(r))),
    "half a record": ("record", lambda b, r: b.store.redis.hdel(b.store.keys.run(r), "lastSeq")),
    "a status that there is not": ("record", lambda b, r: b.store.redis.hset(b.store.keys.run(r), "status", "done")),
    "no request": ("request", lambda b, r: b.store.redis.delete(b.store.keys.request(r))),
    "a log that expires": ("retention", lambda b, r: b.store.redis.expire(b.store.keys.log(r), 100)),
    "a gap": ("log", lambda b, r: b.store.redis.xdel(b.store.keys.log(r), "0-3")),
    "a lost end": ("log", lambda b, r: b.store.redis.hincrby(b.store.keys.run(r), "lastSeq", 1)),
    "a broken chunk": ("log", lambda b, r: _append(b, r, b"{")),
    "a final chunk of a run that goes on": ("final", lambda b, r: _append(b, r, b'{"type":"finish","final":true}')),
    "a checkpoint ahead of the log": (
        "checkpoint",
        lambda b, r: b.store.redis.hset(b.store.keys.run(r), "checkpointSeq", "99"),
    ),
    "a lost checkpoint": ("checkpoint", lambda b, r: b.store.redis.delete(b.store.keys.checkpoints(r))),
    "an outcome without its chunk": (
        "ledger",
        lambda b, r: b.store.redis.hset(b.store.keys.ledger(r), "2:c9", ledger.encode(ledger.Outcome(value=1))),
    ),
    "a chunk without its outcome": (
        "ledger",
        lambda b, r: b.store.redis.hset(b.store.keys.ledger(r), "1:c1", ledger.STARTED),
    ),
    "an outcome that can't be read": ("ledger", lambda b, r: b.store.redis.hset(b.store.keys.ledger(r), "1:c1", b"?")),
    "two outcomes of a call": (
        "outcome",
        lambda b, r: _append(
            b,
            r,
            b'{"type":"tool-result","payload":{"toolCallId":"c2"}}\n{"type":"tool-error","payload":{"toolCallId":"c2"}}',
        ),
    ),
}
WAITING: dict[str, tuple[str, Break]] = {
    "a lease": ("state", lambda b, r: b.store.redis.zadd(b.store.keys.leases, {f"{r}:1": 1})),
    "a wake-up": ("state", lambda b, r: b.store.redis.zadd(b.store.keys.wakeups, {r: 1})),
    "no reason": ("state", lambda b, r: b.store.redis.hdel(b.store.keys.run(r), "reason")),
    "no call that waits": ("calls", lambda b, r: b.store.redis.delete(b.store.keys.calls(r))),
    "not in the inbox": ("calls", lambda b, r: b.store.redis.zrem(b.store.keys.pending, f"{r}:c1")),
    "in the inbox after it was answered": (
        "calls",
        lambda b, r: b.store.redis.zadd(b.store.keys.pending, {f"{r}:c2": 1}),
    ),
    "in the inbox and nowhere else": ("calls", lambda b, r: b.store.redis.zadd(b.store.keys.pending, {f"{r}:c9": 1})),
    "no deadline": ("calls", lambda b, r: b.store.redis.zrem(b.store.keys.deadlines, f"{r}:c1")),
    "another deadline": ("calls", lambda b, r: b.store.redis.zadd(b.store.keys.deadlines, {f"{r}:c1": 1})),
    "a deadline of nothing": ("calls", lambda b, r: b.store.redis.zadd(b.store.keys.deadlines, {f"{r}:c9": 1})),
    "an answer that is not counted": ("calls", lambda b, r: b.store.redis.hdel(b.store.keys.run(r), "decisions")),
    "a record that tells of no calls": ("calls", lambda b, r: b.store.redis.hdel(b.store.keys.run(r), "asked")),
    "calls that expire": ("retention", lambda b, r: b.store.redis.expire(b.store.keys.calls(r), 100)),
    "no entry of the call": ("ledger", lambda b, r: b.store.redis.hdel(b.store.keys.ledger(r), "1:c1")),
    "no entry of the answer": ("ledger", lambda b, r: b.store.redis.hdel(b.store.keys.ledger(r), "1!0:c2")),
    "an answer that the log lacks": (
        "ledger",
        lambda b, r: b.store.redis.hset(b.store.keys.ledger(r), "1!0:c1", '{"kind":"approve"}'),
    ),
    "asked twice": (
        "ledger",
        lambda b, r: _append(b, r, b'{"type":"tool-call-approval","payload":{"toolCallId":"c1"}}'),
    ),
    "a result of a declined call": (
        "outcome",
        lambda b, r: _append(b, r, b'{"type":"tool-result","payload":{"toolCallId":"c2"}}'),
    ),
    "a result of a later round without its chunk": (
        "ledger",
        lambda b, r: b.store.redis.hset(b.store.keys.ledger(r), "1+1:c1", ledger.encode(ledger.Outcome(value=1))),
    ),
}
ENDED: dict[str, tuple[str, Break]] = {
    "no final chunk": ("final", lambda b, r: _replace_last(b, r, b'{"type":"finish"}')),
    "two final chunks": ("final", lambda b, r: _append(b, r, b'{"type":"finish","final":true}')),
    "it never expires": ("retention", lambda b, r: b.store.redis.persist(b.store.keys.run(r))),
    "a log that never expires": ("retention", lambda b, r: b.store.redis.persist(b.store.keys.log(r))),
    "no tombstone": ("retention", lambda b, r: b.store.redis.delete(b.store.keys.tombstone(r))),
    "a lease": ("state", lambda b, r: b.store.redis.zadd(b.store.keys.leases, {f"{r}:1": 1})),
    "a wake-up": ("state", lambda b, r: b.store.redis.zadd(b.store.keys.wakeups, {r: 1})),
    "no moment of its end": ("state", lambda b, r: b.store.redis.hdel(b.store.keys.run(r), "finishedAt")),
    "an error of a completed run": ("state", lambda b, r: b.store.redis.hset(b.store.keys.run(r), "error", "{}")),
}


async def _append(bench: Workbench, run_id: str, bodies: bytes) -> None:
    """Write to a log past the scripts."""
    run = bench.store.keys.run(run_id)
    last = await bench.store.redis.hincrby(run, "lastSeq", bodies.count(b"\n") + 1)
    await bench.store.redis.xadd(bench.store.keys.log(run_id), {"c": b"1 " + bodies}, id=f"0-{last}")


async def _replace_last(bench: Workbench, run_id: str, body: bytes) -> None:
    redis, log = bench.store.redis, bench.store.keys.log(run_id)
    entries: Any = await redis.xrange(log)
    await redis.delete(log)
    for entry_id, fields in entries[:-1]:
        await redis.xadd(log, fields, id=entry_id)
    await redis.xadd(log, {"c": b"1 " + body}, id=entries[-1][0])
    await redis.expire(log, 50)


@pytest.mark.parametrize("what", ALIVE)
async def test_what_must_not_be_of_a_running_run_is_told(bench: Workbench, what: str) -> None:
    run_id = await running(bench)
    assert await found(bench) == []
    check, break_it = ALIVE[what]
    await break_it(bench, run_id)
    findings = await found(bench)
    assert check in {finding.check for finding in findings}
    assert {finding.run_id for finding in findings} == {run_id}


@pytest.mark.parametrize("what", WAITING)
async def test_what_must_not_be_of_a_suspended_run_is_told(bench: Workbench, what: str) -> None:
    run_id = await waiting(bench)
    assert await found(bench) == []
    check, break_it = WAITING[what]
    await break_it(bench, run_id)
    findings = await found(bench)
    assert check in {finding.check for finding in findings}
    assert {finding.run_id for finding in findings} == {run_id}


async def test_a_call_of_an_ended_run_in_the_inbox_is_told(bench: Workbench) -> None:
    run_id = await waiting(bench)
    await bench.runs.cancel(run_id)
    assert await found(bench) == []
    await bench.store.redis.zadd(bench.store.keys.pending, {f"{run_id}:c1": 1})
    assert {finding.check for finding in await found(bench)} == {"calls"}


@pytest.mark.parametrize("what", ENDED)
async def test_what_must_not_be_of_an_ended_run_is_told(bench: Workbench, what: str) -> None:
    run_id = await ended(bench)
    assert await found(bench) == []
    check, break_it = ENDED[what]
    await break_it(bench, run_id)
    assert check in {finding.check for finding in await found(bench)}


async def test_a_queued_run_without_a_wake_up_is_told(bench: Workbench) -> None:
    run_id = await bench.create()
    await bench.store.redis.zrem(bench.store.keys.wakeups, run_id)
    assert [(finding.run_id, finding.check) for finding in await found(bench)] == [(run_id, "state")]


async def test_a_retry_has_outcomes_whose_chunks_its_log_lacks(bench: Workbench) -> None:
    run_id = await running(bench)
    # It ends as a lost one does: cancelled while nobody holds it.
    await bench.store.redis.zadd(bench.store.keys.leases, {f"{run_id}:1": 1})
    await bench.runs.cancel(run_id)
    retried, _ = await bench.runs.retry(run_id)
    assert await bench.runs.ledger(retried.run_id) != {}
    assert await found(bench) == []


async def test_what_changes_while_it_is_looked_at_is_no_finding(bench: Workbench) -> None:
    writer = await bench.writer()
    writer.write(step_start(1))
    looking = Doctor(bench.store)
    for number in range(30):
        call = f"c{number}"
        writer.write(result(call), Note(field=ledger.key(1, call), value=ledger.encode(ledger.Outcome(value=3))))
        assert await looking._confirmed(writer.lease.run_id) == []


async def test_the_command_finds_nothing_wrong_with_a_deployment_at_work(
    deployment: Deployment, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_REDIS_URL", redis_url)
    monkeypatch.setenv("DURABLE_PREFIX", deployment.prefix)
    async with Client(deployment.url) as client:
        for prompt in ('calls add {"a": 1, "b": 2}; add {"a": "x", "b": 1}', "fail", "call explode"):
            assert (await client.wait((await client.submit("scripted", prompt)).run_id, 20)).ended
    outcome = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "--json"])
    *findings, total = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert findings == []
    assert total["findings"] == 0
    assert total["runs"] >= 3
    assert outcome.exit_code == 0


async def test_the_command_lists_what_it_finds_and_says_so_by_its_exit_code(
    bench: Workbench, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await running(bench)
    await bench.store.redis.xdel(bench.store.keys.log(run_id), "0-2")
    monkeypatch.setenv("DURABLE_REDIS_URL", redis_url)
    monkeypatch.setenv("DURABLE_PREFIX", bench.settings.prefix)
    outcome = await asyncio.to_thread(CliRunner().invoke, app, ["doctor"])
    assert outcome.exit_code == 6
    assert f"✗ {run_id}  log: After chunk 1 comes chunk 3." in outcome.stdout
    assert "1 runs examined, 1 findings" in outcome.stdout
