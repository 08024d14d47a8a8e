"""Why a run waits for its background tasks: which these are, and why each of them waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext

from durable import RunHandle, agent_tool, create_durable_agent, suspend
from durable.announcements import Announcements
from durable.definition import AgentDefinition
from durable.diagnosis import diagnose, examine
from durable.leases import suspend as give_up
from durable.settings import Settings
from durable.store import text
from durable.views import Diagnosis
from tests.conftest import eventually
from tests.integration.test_background import Gate, agent_of, calling, idle, told
from tests.integration.test_background_faults import task_of
from tests.workbench import Workbench


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def why(bench: Workbench, run_id: str) -> Diagnosis:
    announcements = Announcements(bench.store)
    return diagnose(await examine(bench.store, bench.runs, announcements, bench.settings, run_id))


async def tasks(bench: Workbench, handle: RunHandle) -> list[str]:
    """What is said of each task that the run waits for, without its name."""
    found = await why(bench, handle.run_id)
    return [fact.message.split(") ", 1)[1] for fact in found.facts if fact.code == "task"]


async def test_a_run_that_waits_until_all_is_idle_names_its_tasks_and_until_when(
    connected: Any, bench: Workbench
) -> None:
    gate = Gate()
    async with connected(agent_of(gate.work, background=True, max_concurrency=1, calls=3)) as agent:
        handle = await agent.stream("go", until_idle=60)
        await idle(handle)
        queued = "is queued: as many background tasks are executed as may be."

        async def full() -> bool:
            return (await tasks(bench, handle)).count(queued) == 2

        await eventually(full, what="two tasks to wait for a place")
        found = await why(bench, handle.run_id)
        assert (found.reason, found.summary) == ("background", "It waits for 3 background tasks.")
        assert sorted(await tasks(bench, handle)) == ["is being executed (attempt 1).", queued, queued]
        named = [fact.details for fact in found.facts if fact.code == "task" and fact.details]
        assert [each["taskId"] for each in named] == await begun(bench, handle)
        assert sorted(str(each["toolCallId"]) for each in named) == ["c1", "c2", "c3"]
        assert sorted(str(each.get("reason")) for each in named) == ["None", "limit_reached", "limit_reached"]
        assert {(each["toolName"], each["disposition"]) for each in named} == {("work", "deferred")}
        [until] = [fact for fact in found.facts if fact.code == "idle"]
        assert until.message.startswith("If none of them ends until 20"), until
        assert "wakeup" not in {fact.code for fact in found.facts}, "that is no wake-up that may have been lost"
        gate.open.set()
        assert len(await told(handle)) == 6
        assert not await tasks(bench, handle)


async def begun(bench: Workbench, handle: RunHandle) -> list[str]:
    """What the run has started, in order."""
    found = await bench.store.redis.lrange(bench.store.keys.children_order(handle.run_id), 0, -1)
    return [text(child) for child in found]


async def test_a_task_whose_queue_nobody_reads_says_so_of_the_run_that_waits_for_it(bench: Workbench) -> None:
    announcements = Announcements(bench.store)
    await announcements.announce([AgentDefinition("nobody", Agent(calling(), name="nobody"), "evented")])
    await announcements.show("worker", ["nobody"], ["elsewhere"])
    lease = await bench.claim(await bench.create())
    await bench.runs.create(replace(task_of(lease.run_id, lease.token), queue="heavy"))
    assert await give_up(bench.store, lease, 0, {"reason": "background"}) == "suspended"
    found = await why(bench, lease.run_id)
    assert found.summary == "It waits for a background task."
    assert found.facts[0].message.endswith("is queued: no live worker serves the agent 'nobody' and reads 'heavy'.")
    assert found.facts[0].details is not None
    assert found.facts[0].details["reason"] == "no_worker"
    await announcements.show("worker", ["nobody"], ["heavy"])
    [fact, *_] = (await why(bench, lease.run_id)).facts
    assert fact.message.endswith("is queued: it waits for a worker to take it up.")


async def test_a_task_that_is_made_again_says_when_and_that_its_tool_raised(connected: Any, bench: Workbench) -> None:
    async def raises(_: RunContext[Any], n: int) -> str:
        raise RuntimeError(n)

    async with connected(agent_of(raises, background="awaited", retries=50, retry_seconds=30)) as agent:
        handle = await agent.stream("go")
        await idle(handle)

        async def waits() -> bool:
            return [each.split(" at ")[0] for each in await tasks(bench, handle)] == [
                "is queued: its tool raised, and it is tried again"
            ]

        await eventually(waits, what="the task to be tried again")
        [task] = await begun(bench, handle)

        async def itself() -> bool:
            found = await why(bench, task)
            return (found.reason, found.summary) == (
                "retrying",
                "Its tool raised; it waits until it is tried again.",
            )

        await eventually(itself, what="the task to say so, too")
        await handle.cancel()


async def test_a_run_that_waits_for_people_and_for_tasks_tells_both_and_no_task_that_it_does_not_wait_for(
    connected: Any, bench: Workbench
) -> None:
    gate = Gate()

    async def asks(_: RunContext[Any], n: int) -> str:
        raise suspend({"n": n})

    agent: Agent[Any, str] = Agent(
        calling(("later", {"n": 1}), ("now", {"n": 2}), ("people", {"n": 3}), ("ask", {"n": 4})), name="support"
    )
    agent.tool(name="later", metadata={"durable": {"background": True}})(gate.work)
    agent.tool(name="now", metadata={"durable": {"background": "awaited"}})(gate.work)
    agent.tool(name="people", metadata={"durable": {"background": "awaited"}})(asks)
    agent.tool(name="ask")(asks)
    async with connected(agent) as wrapped:
        handle = await wrapped.stream("go")
        await idle(handle, reason="decision")

        async def asked() -> bool:
            return sorted(await tasks(bench, handle)) == [
                "is being executed (attempt 1).",
                "is suspended: it waits for somebody to answer.",
            ]

        await eventually(asked, what="the tasks to have begun")
        found = await why(bench, handle.run_id)
        assert found.summary == "It waits for somebody to answer a tool call, and for 2 background tasks."
        assert [fact.code for fact in found.facts][:3] == ["pending_call", "task", "task"]
        await handle.cancel()


async def test_a_run_that_waits_for_the_agent_it_asked_names_that_run(
    connected: Any, settings: Settings, bench: Workbench
) -> None:
    gate = Gate()
    writer = agent_of(gate.work, background="awaited")
    writer.name = "writer"
    other = create_durable_agent(writer, cache=settings)
    agent: Agent[Any, str] = Agent(calling(("writer", {"prompt": "p"})), name="support", tools=[agent_tool(other)])
    async with connected(agent) as wrapped:
        handle = await wrapped.stream("go")
        await idle(handle)

        async def waits() -> bool:
            return await tasks(bench, handle) == ["is suspended: it waits for tasks of its own."]

        await eventually(waits, what="the other agent to wait for its task")
        gate.open.set()
        assert len(await told(handle)) == 1
        assert (await why(bench, handle.run_id)).summary == "It completed."
