"""The worker as Celery runs it: what the messages are, what stops it, what it refuses."""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker

from durable import create_evented_agent
from durable.chunks import from_wire
from durable.dev.stack import Child
from durable.dispatch import EXECUTE, producer
from durable.fold import Folder
from durable.keys import Keys
from durable.settings import Settings
from tests import scripted_agents
from tests.caller import Body, Caller, of_type
from tests.deployment import ROOT, Deployment, stop_child, wait_for
from worker.pool import EXIT_HUNG
from worker.program import EXIT_CONFIG, Program

WORDS = "word " * 40


@pytest.fixture(scope="module")
def site(redis_url: str) -> Iterator[Deployment]:
    """An API that knows the scripted agents, and no worker any more."""
    with Deployment(redis_url, env={"DURABLE_LEASE_SECONDS": "2", "DURABLE_HEARTBEAT_SECONDS": "0.5"}) as found:
        found.start_api()
        stop_child(found.start_worker())
        yield found


@pytest.fixture(scope="module")
def caller(site: Deployment) -> Iterator[Caller]:
    """Calls the API."""
    with Caller(site.url) as found:
        yield found


@pytest.fixture(scope="module")
def celery(redis_url: str) -> Iterator[Celery]:
    """A Celery app that sends messages and commands."""
    with producer(redis_url) as app:
        yield app


@pytest.fixture(scope="module")
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """Redis as it is."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


def waiting(raw: redis.Redis, site: Deployment) -> list[dict[str, Any]]:
    """The messages that wait in the queue of the scripted agent, whatever their priority."""
    keys: list[Any] = list(raw.scan_iter(f"{site.prefix}.scripted*", _type="list"))
    bodies: list[Any] = [body for key in keys for body in raw.lrange(key, 0, -1)]
    return [json.loads(body) for body in bodies]


def send(celery: Celery, site: Deployment, run_id: str, **options: Any) -> None:
    """Send a message for a run, as the API does."""
    celery.send_task(EXECUTE, args=[run_id], queue=f"{site.prefix}.scripted", ignore_result=True, **options)


def owner(raw: redis.Redis, site: Deployment, run_id: str) -> int:
    """The process that executes a run."""
    value: Any = raw.hget(Keys(site.prefix).run(run_id), "owner")
    return int(value.split(b":")[1])


def folded(chunks: list[Body]) -> str:
    """The text of a log without what was declared void."""
    folder = Folder()
    for chunk in chunks:
        folder.add(from_wire(chunk))
    return folder.text


def test_a_run_has_one_name_in_all_events_whoever_sends_them(celery: Celery) -> None:
    message: Any = celery.amqp.as_task_v2("id", EXECUTE, shadow="agent:scripted", create_sent_event=True)
    assert message.sent_event["name"] == message.headers["shadow"] == "agent:scripted"


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@dataclass
class Waiting:
    """Runs that were submitted while no worker lived, and the one worker that lives since."""

    message: dict[str, Any]
    plain: str
    cancelled: str
    repeated: str
    worker: Child


@pytest.fixture(scope="module")
def waited(site: Deployment, caller: Caller, celery: Celery, raw: redis.Redis) -> Iterator[Waiting]:
    """Submit runs, do to them what the tests tell of, and start a worker."""
    plain = caller.submit("say hunter2", metadata={"customer": "hunter2"})
    [message] = waiting(raw, site)
    assert caller.look(plain)["status"] == "queued"
    cancelled = caller.submit("say x")
    answer = caller.post(f"/v1/runs/{cancelled}/cancel", json={"reason": "too late"})
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    repeated = caller.submit("slowly 20 a b c d e")
    for number in range(9):
        send(celery, site, repeated, task_id=f"{repeated}.{number}")
    assert len(waiting(raw, site)) == 12
    worker = site.start_worker()
    yield Waiting(message, plain, cancelled, repeated, worker)
    stop_child(worker)


class TestMessages:
    """A message is a hint."""

    def test_a_message_carries_the_run_id_and_nothing_of_the_run(self, waited: Waiting, caller: Caller) -> None:
        message, run_id = waited.message, waited.plain
        args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        assert (args, kwargs) == ([run_id], {})
        assert (message["content-type"], message["headers"]["task"]) == ("application/json", EXECUTE)
        assert (message["headers"]["id"], message["headers"]["shadow"]) == (run_id, "agent:scripted")
        assert "hunter2" not in str(message) + base64.b64decode(message["body"]).decode()
        assert caller.ended(run_id)["output"] == "hunter2 "

    def test_the_message_of_a_run_that_was_cancelled_while_it_waited_does_nothing(
        self, waited: Waiting, site: Deployment, caller: Caller, raw: redis.Redis
    ) -> None:
        wait_for(lambda: not waiting(raw, site), what="all messages to be taken")
        caller.result("say y")
        assert [chunk["type"] for chunk in caller.log(waited.cancelled)] == ["abort", "finish"]

    def test_the_same_message_ten_times_executes_a_run_once(
        self, waited: Waiting, site: Deployment, caller: Caller, raw: redis.Redis
    ) -> None:
        run = caller.ended(waited.repeated)
        wait_for(lambda: not waiting(raw, site), what="the other messages to be taken")
        caller.result("say x")
        chunks = caller.log(waited.repeated)
        assert (run["attempt"], len(of_type(chunks, "start")), folded(chunks)) == (1, 1, "a b c d e ")
        assert caller.look(waited.repeated) == run

    def test_messages_for_what_is_not_to_be_executed_do_nothing(
        self, waited: Waiting, site: Deployment, caller: Caller, celery: Celery, raw: redis.Redis
    ) -> None:
        ended = caller.result("say x")
        for run_id in (ended["runId"], "unknown", "", "a/b", "{x}", "x" * 10_000):
            send(celery, site, run_id)
        celery.send_task(EXECUTE, args=[], queue=f"{site.prefix}.scripted", ignore_result=True)
        celery.send_task("unknown.task", args=[], queue=f"{site.prefix}.scripted", ignore_result=True)
        assert caller.result("say y")["status"] == "completed"
        wait_for(lambda: not waiting(raw, site), what="all messages to be taken")
        assert caller.look(ended["runId"]) == ended
        assert waited.worker.exit_code is None

    def test_a_pickle_is_never_opened(
        self, waited: Waiting, site: Deployment, caller: Caller, celery: Celery, raw: redis.Redis, tmp_path: Path
    ) -> None:
        opened = tmp_path / "opened"
        celery.send_task(
            EXECUTE, args=[Touch(str(opened))], queue=f"{site.prefix}.scripted", serializer="pickle", ignore_result=True
        )
        wait_for(lambda: not waiting(raw, site), what="the pickle to be taken")
        assert caller.result("say x")["status"] == "completed"
        assert waited.worker.exit_code is None
        assert not opened.exists()
        pickle.loads(pickle.dumps(Touch(str(opened))))  # noqa: S301 - it is ours: this proves that it bites
        assert opened.exists()

    def test_revoking_a_task_cancels_its_run_and_no_other(
        self, waited: Waiting, caller: Caller, celery: Celery
    ) -> None:
        revoked, other = (caller.submit("slowly 30 " + WORDS) for _ in range(2))
        for run_id in (revoked, other):
            caller.wait_for_text(run_id, "word")
        celery.control.revoke(revoked, terminate=True)
        assert caller.ended(revoked)["status"] == "cancelled"
        assert caller.ended(other)["output"] == WORDS
        assert waited.worker.exit_code is None


class TestStopping:
    """Signals, and what becomes of the runs. No other worker lives here, but those that a test starts."""

    @pytest.fixture
    def workers(self, redis_url: str) -> Iterator[Deployment]:
        """A deployment without a worker."""
        env = {"DURABLE_LEASE_SECONDS": "2", "DURABLE_HEARTBEAT_SECONDS": "0.5"}
        with Deployment(redis_url, env=env) as found:
            found.start_api()
            yield found

    def test_a_run_that_ends_in_time_is_finished_first(self, workers: Deployment) -> None:
        child = workers.start_worker(grace_seconds=15)
        with Caller(workers.url) as caller:
            run_id = caller.submit("slowly 25 " + WORDS)
            caller.wait_for_text(run_id, "word")
            assert stop_child(child) == 0
            run = caller.look(run_id)
            assert (run["status"], run["attempt"], run["output"]) == ("completed", 1, WORDS)

    def test_runs_that_take_longer_are_handed_to_another_worker(self, workers: Deployment, raw: redis.Redis) -> None:
        children = {child.pid: child for child in (workers.start_worker(), workers.start_worker())}
        with Caller(workers.url) as caller:
            run_ids = [caller.submit("slowly 50 " + WORDS) for _ in range(4)]
            for run_id in run_ids:
                caller.wait_for_text(run_id, "word")
            owners = {run_id: owner(raw, workers, run_id) for run_id in run_ids}
            stopped = owners[run_ids[0]]
            stop_child(children[stopped], signal.SIGTERM)
            for run_id in run_ids:
                run = caller.ended(run_id)
                attempts = 2 if owners[run_id] == stopped else 1
                assert (run["status"], run["attempt"], run["output"]) == ("completed", attempts, WORDS)
                assert folded(caller.log(run_id)) == WORDS

    def test_a_quick_stop_hands_runs_back_to_the_queue_where_they_wait_for_a_worker(self, workers: Deployment) -> None:
        child = workers.start_worker(grace_seconds=30)
        with Caller(workers.url) as caller:
            run_id = caller.submit("slowly 50 " + WORDS)
            caller.wait_for_text(run_id, "word")
            stop_child(child, signal.SIGQUIT)
            assert caller.look(run_id)["status"] == "queued"
            assert caller.get("/readyz").json() == {"status": "ok", "workers": 0}
            workers.start_worker()
            run = caller.ended(run_id)
            assert (run["attempt"], run["output"], folded(caller.log(run_id))) == (2, WORDS, WORDS)


class TestSetUp:
    """What a worker is told, and how it says that something is missing."""

    @pytest.mark.parametrize(
        ("program", "agents", "words"),
        [
            ("durable", "tests.integration.twin_agents", "Two agents are named 'twin'"),
            ("celery", "tests.integration.twin_agents", "Two agents are named 'twin'"),
            ("durable", "tests.integration.nothing", "there is no module"),
            ("durable", "tests.deployment", "no wrapped agent"),
            ("celery", "", "set DURABLE_AGENTS"),
        ],
    )
    def test_agents_that_can_not_be_served_end_it_with_one_line(
        self, redis_url: str, program: str, agents: str, words: str
    ) -> None:
        ended = run_worker(program, DURABLE_REDIS_URL=redis_url, DURABLE_AGENTS=agents)
        assert ended.returncode == EXIT_CONFIG
        assert_one_line(ended, words)

    @pytest.mark.parametrize("program", ["durable", "celery"])
    def test_a_missing_redis_url_ends_it_with_one_line(self, program: str) -> None:
        ended = run_worker(program, DURABLE_AGENTS="tests.scripted_agents")
        assert ended.returncode == EXIT_CONFIG
        assert_one_line(ended, "set DURABLE_REDIS_URL")

    def test_celerys_own_command_starts_it_and_its_options_win(self, redis_url: str, celery: Celery) -> None:
        name = f"x{secrets.token_hex(3)}@h"
        with Deployment(redis_url) as own:
            own.start_api()
            argv = (sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-c", "2", "-n", name)
            child = own.start(replace(own.worker_service(), argv=argv))
            with Caller(own.url) as caller:
                wait_for(lambda: bool(caller.get("/v1/agents").json()["agents"]), what="the agents to be announced")
                run_ids = [caller.submit("slowly 100 a b c d e f") for _ in range(3)]
                wait_for(lambda: [caller.look(r)["status"] for r in run_ids].count("running") == 2, what="two runs")
                assert caller.look(run_ids[2])["status"] == "queued"
                stats: Any = celery.control.inspect(destination=[name], timeout=5, limit=1).stats()
                assert stats[name]["pool"]["max-concurrency"] == 2
                for run_id in run_ids:
                    assert caller.ended(run_id)["output"] == "a b c d e f "
            assert stop_child(child) == 0


def run_worker(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A worker that is expected to end by itself."""
    commands = {
        "durable": (sys.executable, "-m", "durable.cli", "worker"),
        "celery": (sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
    }
    return subprocess.run(
        commands[program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def assert_one_line(ended: subprocess.CompletedProcess[str], words: str) -> None:
    """It said what is wrong in one line, and nothing else."""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert words in lines[0]
    assert "Traceback" not in ended.stdout


async def test_the_worker_runs_inside_of_another_process_as_celerys_test_tools_start_it(settings: Settings) -> None:
    program = Program(settings.model_copy(update={"agents": "tests.scripted_agents"}))
    # Celery's own worker command sends this signal; its test worker does not.
    signals.celeryd_init.send(sender="test", instance=SimpleNamespace(app=program.app), conf=program.app.conf)
    agent = create_evented_agent(scripted_agents.agent, cache=settings)
    pool = program.app.conf.worker_pool
    with start_worker(program.app, pool=pool, concurrency=4, perform_ping_check=False, shutdown_timeout=20):
        try:
            results = [await (await agent.stream(f"say {number}")).result() for number in range(5)]
        finally:
            await agent.aclose()
    assert [result.output for result in results] == [f"{number} " for number in range(5)]


class TestToolsThatHang:
    """A synchronous tool that never returns keeps its thread, whatever becomes of its run."""

    @pytest.fixture
    def workers(self, redis_url: str) -> Iterator[Deployment]:
        env = {"DURABLE_LEASE_SECONDS": "2", "DURABLE_HEARTBEAT_SECONDS": "0.5", "DURABLE_TOOL_THREADS": "3"}
        with Deployment(redis_url, env=env) as found:
            found.start_api()
            yield found

    @staticmethod
    def hang(caller: Caller, count: int) -> None:
        """Cancel runs in the middle of a tool that never returns."""
        runs = [caller.submit("call block") for _ in range(count)]
        wait_for(lambda: all(of_type(caller.log(run_id), "tool-output") for run_id in runs), what="the calls")
        for run_id in runs:
            caller.post(f"/v1/runs/{run_id}/cancel", json={})
            assert caller.ended(run_id)["status"] == "cancelled"

    def test_a_worker_most_of_whose_threads_hang_hands_back_and_ends(self, workers: Deployment) -> None:
        worker = workers.start_worker()
        with Caller(workers.url) as caller:
            under_way = caller.submit('call wait {"ms": 60000}')
            wait_for(lambda: bool(of_type(caller.log(under_way), "tool-output")), what="the tool to begin")
            self.hang(caller, 2)
            wait_for(lambda: worker.exit_code is not None, what="the worker to end")
            assert worker.exit_code == EXIT_HUNG
            assert "2 of 3 tool threads" in workers.log.text
            found = caller.look(under_way)
            assert (found["status"], found["attempt"]) == ("queued", 1)

    def test_a_worker_that_is_stopped_does_not_wait_for_them(self, workers: Deployment) -> None:
        worker = workers.start_worker()
        with Caller(workers.url) as caller:
            self.hang(caller, 1)
            assert caller.result("say hi")["status"] == "completed"
        assert stop_child(worker) == 0
