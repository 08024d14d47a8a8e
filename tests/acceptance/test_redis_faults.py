"""Redis goes away and comes back: nothing is half-made, nothing is lost, and nobody has to be restarted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from durable.dev.redis_server import PrivateRedis
from tests.caller import STREAM, Caller, Frame, assert_problem, chunks_of, frames, of_type, said
from tests.deployment import Deployment, wait_for

WORDS = "word " * 50
RUNS = "/v1/agents/scripted/runs"


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateRedis]:
    """A Redis that these tests kill."""
    with PrivateRedis() as found:
        yield found


@pytest.fixture(scope="module")
def tough(server: PrivateRedis) -> Iterator[Deployment]:
    """A deployment on it. Its processes have to live through all tests."""
    with Deployment(server.url) as found:
        api = found.start_api()
        worker = found.start_worker()
        yield found
        assert (api.exit_code, worker.exit_code) == (None, None)
        assert "Traceback" not in "".join(line for line in found.log.text.splitlines() if " api |" in line)


@pytest.fixture
def caller(tough: Deployment) -> Iterator[Caller]:
    """Calls its API."""
    with Caller(tough.url) as found:
        yield found


def follow(caller: Caller, run_id: str) -> list[Frame]:
    """Read a run to its final chunk, coming back from the cursor as often as it takes."""
    found: list[Frame] = []
    while not found or b'"final":true' not in found[-1][1]:
        cursor = found[-1][0] if found else 0
        with caller.open_stream(run_id, cursor) as response:
            if response.status_code == 503:
                assert response.headers["retry-after"]
                time.sleep(0.1)
                continue
            assert response.status_code == 200
            found += frames(response)
    return found


def test_a_submit_without_redis_is_refused_and_leaves_nothing(
    server: PrivateRedis, tough: Deployment, caller: Caller
) -> None:
    known = caller.result("say x")["runId"]
    before = caller.get("/v1/runs").json()
    headers = {"Idempotency-Key": "once"}
    server.kill()
    for answer in (
        caller.post(RUNS, json={"prompt": "say y"}, headers=headers),
        caller.post(RUNS, json={"prompt": "say z", "runId": "half-made"}),
        caller.get("/v1/runs"),
        caller.get("/v1/agents"),
        caller.get(f"/v1/runs/{known}"),
        caller.get(f"/v1/runs/{known}/chunks"),
        caller.get(f"/v1/runs/{known}/chunks", headers=STREAM),
        caller.post(f"/v1/runs/{known}/cancel"),
        caller.get("/readyz"),
    ):
        assert_problem(answer, 503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert caller.get("/healthz").status_code == 200
    server.start()
    assert caller.get("/v1/runs").json() == before
    assert_problem(caller.get("/v1/runs/half-made"), 404, "unknown_run")
    wait_for(lambda: caller.get("/readyz").json().get("workers") == 1, what="the worker to show itself")
    again = caller.post(RUNS, json={"prompt": "say y"}, headers=headers)
    assert again.status_code == 202
    assert caller.ended(again.json()["runId"])["output"] == "y "


def test_a_run_outlives_a_crash_of_redis_without_a_lost_or_doubled_chunk(
    server: PrivateRedis, tough: Deployment, caller: Caller
) -> None:
    run_id = caller.submit("slowly 50 " + WORDS)
    caller.wait_for_text(run_id, "word")
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow, caller, run_id)
        server.kill()
        assert caller.get("/readyz").status_code == 503
        time.sleep(1.5)  # how long it is away: less than a lease
        server.start()
        run = caller.ended(run_id)
        followed = chunks_of(follower.result())
    assert (run["status"], run["attempt"], run["output"]) == ("completed", 1, WORDS)
    assert followed == caller.log(run_id)
    assert said(followed) == WORDS
    assert not any("void" in step for step in of_type(followed, "step-start"))
    assert caller.get("/readyz").json() == {"status": "ok", "workers": 1}
    assert caller.result("say back")["output"] == "back "


def test_a_run_and_its_reader_outlive_a_redis_that_stands_still(
    server: PrivateRedis, tough: Deployment, caller: Caller
) -> None:
    run_id = caller.submit("slowly 30 " + WORDS)
    caller.wait_for_text(run_id, "word")
    assert server.pid is not None
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow, caller, run_id)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            time.sleep(1)  # how long it stands still
        finally:
            os.kill(server.pid, signal.SIGCONT)
        run = caller.ended(run_id)
        followed = chunks_of(follower.result())
    assert (run["status"], run["attempt"], run["output"]) == ("completed", 1, WORDS)
    assert followed == caller.log(run_id)
    assert said(followed) == WORDS


def test_a_cancel_is_heard_after_redis_was_away(server: PrivateRedis, tough: Deployment, caller: Caller) -> None:
    run_id = caller.submit("slowly 50 " + "word " * 400)
    caller.wait_for_text(run_id, "word")
    server.kill()
    server.start()
    wait_for(
        lambda: caller.post(f"/v1/runs/{run_id}/cancel").status_code in {200, 202}, what="the cancel to be accepted"
    )
    assert caller.ended(run_id)["status"] == "cancelled"
