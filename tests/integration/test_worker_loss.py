"""Real workers, killed, frozen, stopped and drained: every run ends, once, and its log is one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from durable.dev.redis_server import PrivateRedis
from durable.dev.stack import Child
from durable.keys import Keys
from tests.caller import Caller, assert_dense, of_type, said
from tests.deployment import Deployment, stop_child, wait_for

LEASE: dict[str, str] = {
    "DURABLE_LEASE_SECONDS": "1",
    "DURABLE_HEARTBEAT_SECONDS": "0.25",
    "DURABLE_SWEEP_SECONDS": "0.2",
    "DURABLE_MAX_ATTEMPTS": "2",
}
AGENTS = "tests.scripted_agents,tests.chaos.agents"


class Site:
    """A deployment of one API and two workers, on a Redis of its own.

    Attributes:
        deployment: Its processes.
        caller: Calls its API.
        redis: Looks into its store.
        keys: Of its store.
    """

    def __init__(self, server: PrivateRedis, deployment: Deployment, caller: Caller) -> None:
        self.server = server
        self.deployment = deployment
        self.caller = caller
        self.redis: Any = redis.Redis.from_url(server.url)
        self.keys = Keys(deployment.prefix)

    def staff(self, count: int = 2) -> list[Child]:
        """The live workers, as many as are asked for; new ones are started for those that are gone."""
        while len(self.live) < count:
            self.deployment.start_worker()
        return self.live

    @property
    def live(self) -> list[Child]:
        return [worker for worker in self.deployment.workers if worker.exit_code is None]

    def owner(self, run_id: str) -> Child:
        """The worker that executes a run."""
        wait_for(lambda: self.redis.hexists(self.keys.run(run_id), "owner"), what=f"somebody to claim {run_id}")
        pid = int(self.redis.hget(self.keys.run(run_id), "owner").split(b":")[1])
        return next(worker for worker in self.live if worker.pid == pid)

    def under_way(self, prompt: str, words: str = "0 ") -> tuple[str, Child]:
        """A run that has begun to speak, and the worker that executes it."""
        run_id = self.caller.submit(prompt)
        self.caller.wait_for_text(run_id, words)
        return run_id, self.owner(run_id)

    def fields(self, run_id: str) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self.redis.hgetall(self.keys.run(run_id))
        return found


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with PrivateRedis() as server, Deployment(server.url, LEASE, AGENTS, "tests.scripted_agents") as deployment:
        deployment.start_api()
        with Caller(deployment.url) as caller:
            yield Site(server, deployment, caller)


def words(count: int) -> str:
    return " ".join(str(number) for number in range(count))


def spoken(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


def test_a_frozen_owner_that_comes_back_changes_nothing(site: Site) -> None:
    site.staff()
    run_id, zombie = site.under_way(f"slowly 50 {words(40)}")
    zombie.send_signal(signal.SIGSTOP)
    try:
        end = site.caller.ended(run_id)
        log = site.caller.log(run_id)
    finally:
        zombie.send_signal(signal.SIGCONT)
    assert (end["status"], end["attempt"], end["output"]) == ("completed", 2, spoken(40))
    for other in site.live:
        if other is not zombie:
            stop_child(other)
    assert site.caller.result("say hi")["status"] == "completed", "it lives, and works"
    assert stop_child(zombie) == 0, "nothing of the lost run holds it up"
    assert site.caller.log(run_id) == log
    assert [chunk["seq"] for chunk in log if chunk.get("final")] == [len(log)]


def test_a_killed_owner_costs_one_attempt_and_no_run(site: Site) -> None:
    site.staff()
    run_id, owner = site.under_way(f"slowly 50 {words(40)}")
    stop_child(owner, signal.SIGKILL)
    end = site.caller.ended(run_id)
    assert (end["status"], end["attempt"], end["output"]) == ("completed", 2, spoken(40))
    torn = [start["void"] for start in of_type(site.caller.log(run_id), "step-start") if "void" in start]
    assert len(torn) == 1


def test_a_worker_that_is_stopped_finishes_within_its_grace_time_although_others_are_idle(site: Site) -> None:
    site.staff(1)
    slow = site.deployment.start_worker(grace_seconds=20)
    for other in site.live:
        if other is not slow:
            stop_child(other)
    run_id, owner = site.under_way(f"slowly 50 {words(40)}")
    assert owner is slow
    site.staff(2)
    assert stop_child(slow) == 0
    end = site.caller.ended(run_id)
    assert (end["status"], end["attempt"], end["output"]) == ("completed", 1, spoken(40))


def test_a_worker_that_is_stopped_hands_over_between_two_steps(site: Site) -> None:
    for other in site.live:
        stop_child(other)
    slow = site.deployment.start_worker(grace_seconds=20)
    other = site.deployment.start_worker(grace_seconds=20)
    run_id = site.caller.submit('call wait {"ms": 2500}')
    wait_for(lambda: bool(of_type(site.caller.log(run_id), "tool-output")), what="the tool to begin")
    owner = site.owner(run_id)
    assert owner in {slow, other}
    assert stop_child(owner) == 0
    end, log = site.caller.ended(run_id), site.caller.log(run_id)
    assert (end["status"], end["attempt"], end["output"]) == ("completed", 2, "The tool said waited 2500 ms ")
    assert len(of_type(log, "response-metadata")) == 2, "no model call was repeated"
    assert len(of_type(log, "tool-output")) == 1, "no tool call was repeated"
    assert not [start for start in of_type(log, "step-start") if "void" in start]


def test_a_run_that_kills_its_worker_every_time_ends_failed_and_others_go_on(site: Site) -> None:
    site.staff(1)
    for other in site.live[1:]:
        stop_child(other)
    others = [site.caller.submit(f"slowly 20 {words(10)}") for _ in range(20)]
    poison = site.caller.submit("die", agent="poison")
    while site.caller.look(poison)["status"] not in {"failed", "completed"}:
        site.staff(1)
    end = site.caller.look(poison)
    assert end["error"]["code"] == "attempts_exhausted"
    assert end["attempt"] == 4, "one that asked the model, two without progress, one that ended it"
    for run_id in others:
        found = site.caller.ended(run_id)
        assert (found["status"], found["output"]) == ("completed", spoken(10))
    log = site.caller.log(poison)
    assert [chunk["seq"] for chunk in log if chunk.get("final")] == [len(log)]


def test_runs_whose_wake_up_was_never_sent_or_was_flushed_are_executed_once(site: Site) -> None:
    workers = site.staff()
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        runs = [site.caller.submit(f"say {words(3)}") for _ in range(12)]
        queue = site.redis.hget(site.keys.run(runs[0]), "queue")
        site.redis.delete(*(key for key in site.redis.scan_iter(queue + b"*") if site.redis.type(key) == b"list"))
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
    for run_id in runs:
        end = site.caller.ended(run_id)
        assert (end["status"], end["attempt"], end["output"]) == ("completed", 1, spoken(3))
        assert len(of_type(site.caller.log(run_id), "start")) == 1


def test_a_run_in_a_killed_api_server_goes_on_in_a_worker(site: Site) -> None:
    site.staff(1)
    second = site.deployment.start_api()
    with Caller(site.deployment.url) as caller:
        run_id = caller.submit(f"slowly 50 {words(40)}", agent="in-process")
        caller.wait_for_text(run_id, "0 ")
    assert int(site.fields(run_id)[b"owner"].split(b":")[1]) == second.pid
    stop_child(second, signal.SIGKILL)
    end = site.caller.ended(run_id)
    assert (end["status"], end["output"]) == ("completed", spoken(40))
    site.deployment.url = str(site.caller.base_url)


def test_a_run_that_is_told_to_end_when_all_workers_are_lost_ends_without_any(redis_url: str) -> None:
    with Deployment(redis_url, {**LEASE, "DURABLE_LEASE_SECONDS": "2"}) as deployment:
        deployment.start_api()  # it hosts no agents
        worker = deployment.start_worker()
        with Caller(deployment.url) as caller:
            run_id = caller.submit(f"slowly 50 {words(400)}")
            caller.wait_for_text(run_id, "0 ")
            stop_child(worker, signal.SIGKILL)
            assert caller.post(f"/v1/runs/{run_id}/cancel", json={"reason": "enough"}).status_code == 202
            end, log = caller.ended(run_id), caller.log(run_id)
    assert (end["status"], end["attempt"]) == ("cancelled", 1)
    assert [chunk["type"] for chunk in log[-2:]] == ["abort", "finish"]
    assert log[-2]["payload"]["reason"] == "enough"
    assert said(log).startswith("0 "), "what was said stays"


def test_waiting_and_running_runs_survive_a_redis_that_is_killed(site: Site) -> None:
    site.staff()
    runs = [site.caller.submit(f"slowly 30 {words(60)}") for _ in range(6)]
    site.caller.wait_for_text(runs[-1], "0 ")
    before = {run_id: site.caller.log(run_id) for run_id in runs}
    site.server.kill()
    site.server.start()
    for run_id in runs:
        end = site.caller.ended(run_id, seconds=30)
        assert (end["status"], end["output"]) == ("completed", spoken(60))
        log = site.caller.log(run_id)
        assert log[: len(before[run_id])] == before[run_id], "no acknowledged chunk is lost"
        assert_dense(log)


def test_after_the_last_fault_fresh_runs_complete_at_once(site: Site) -> None:
    stop_child(site.staff()[0], signal.SIGKILL)
    site.server.kill()
    site.server.start()
    with ThreadPoolExecutor(5) as pool:
        ends = list(pool.map(lambda _: site.caller.result(f"say {words(5)}"), range(5)))
    assert [end["output"] for end in ends] == [spoken(5)] * 5
    assert all(said(site.caller.log(end["runId"])) == spoken(5) for end in ends)
