"""The machine of Redis loses power: unless it runs with `appendfsync always`, the last moments of what it acknowledged
are gone.

A power cut is played by cutting off the end of the append-only file: what the disk had not yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable import fold_text
from durable.chunks import from_wire
from durable.dev.redis_server import PrivateRedis
from tests.caller import Caller, assert_dense, assert_problem
from tests.deployment import Deployment, wait_for

WORDS = "word " * 60


class Machine:
    """A Redis whose machine can lose power."""

    def __init__(self, folder: Path) -> None:
        self.redis = PrivateRedis(folder)
        self._folder = folder
        self._on_disk: dict[Path, int] = {}

    def sync(self) -> None:
        """What is written up to now reaches the disk; what comes later does not."""
        self._on_disk = {path: path.stat().st_size for path in self._files()}

    def lose_power(self) -> int:
        """Stop at once, with what the disk has. Returns how many bytes are lost."""
        self.redis.kill()
        lost = 0
        for path in self._files():
            lost += path.stat().st_size - self._on_disk[path]
            os.truncate(path, self._on_disk[path])
        return lost

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.rglob("*") if ".aof" in path.name and path.suffix != ".manifest")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path)
    with found.redis:
        yield found


def test_a_power_cut_costs_the_last_moments_of_a_log_and_no_run_that_was_stored(machine: Machine) -> None:
    env = {"DURABLE_LEASE_SECONDS": "1", "DURABLE_HEARTBEAT_SECONDS": "0.25"}
    with Deployment(machine.redis.url, env=env) as deployment:
        deployment.start_api()
        deployment.start_worker()
        with Caller(deployment.url) as caller:
            ended = caller.result("say before")
            run_id = caller.submit("slowly 50 " + WORDS)
            caller.wait_for_text(run_id, "word word")
            machine.sync()
            seen = caller.look(run_id)["lastSeq"]
            late = caller.submit("say late")
            wait_for(lambda: caller.look(run_id)["lastSeq"] > seen + 5, what="chunks that the disk does not get")
            assert machine.lose_power() > 0
            machine.redis.start()
            run = caller.ended(run_id)
            log = caller.log(run_id)
            assert_problem(caller.get(f"/v1/runs/{late}"), 404, "unknown_run")
            assert caller.look(ended["runId"]) == ended
            assert caller.result("say after")["output"] == "after "
    assert (run["status"], run["output"]) == ("completed", WORDS)
    assert run["attempt"] > 1
    assert_dense(log)
    assert [chunk["seq"] for chunk in log if chunk.get("final")] == [len(log)]
    assert fold_text(from_wire(chunk) for chunk in log) == WORDS
