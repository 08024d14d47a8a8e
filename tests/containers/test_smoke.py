"""The image and the parts of the compose file, as real containers: they come up, do one run and stop in good order."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest
from pytest_celery import CeleryTestWorker, CeleryWorkerCluster

from tests.containers.conftest import ApiContainer, WorkerContainer

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]  # the first one builds the image

DEADLINE = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def status_of(address: str, run_id: str) -> str:
    return str(httpx.get(f"{address}/v1/runs/{run_id}").raise_for_status().json()["status"])


def submit(address: str) -> str:
    agents = httpx.get(f"{address}/v1/agents").raise_for_status().json()["agents"]
    answer = httpx.post(f"{address}/v1/agents/{agents[0]['name']}/runs", json={"prompt": "Hello"})
    assert answer.status_code == 202
    return str(answer.json()["runId"])


def test_a_worker_becomes_healthy_and_stops_in_good_order(
    celery_worker_cluster: CeleryWorkerCluster, default_worker_container: WorkerContainer
) -> None:
    worker: CeleryTestWorker = celery_worker_cluster[0]
    wait_until(default_worker_container.is_healthy, "a healthy worker")
    worker.kill("SIGTERM", reload_container=False)
    assert default_worker_container.wait(timeout=DEADLINE)["StatusCode"] == 0


def test_the_programs_do_not_run_as_root(default_worker_container: WorkerContainer) -> None:
    assert default_worker_container.exec_run(["id", "-u"]).output.strip() == b"10001"


def test_a_run_submitted_to_the_api_is_executed_by_the_worker(
    api_container: ApiContainer, api_address: str, default_worker_container: WorkerContainer
) -> None:
    wait_until(api_container.is_healthy, "a healthy API")
    wait_until(default_worker_container.is_healthy, "a healthy worker")
    run_id = submit(api_address)
    wait_until(lambda: status_of(api_address, run_id) == "completed", "the end of the run")


def test_a_run_survives_the_restart_of_its_worker(
    api_container: ApiContainer, api_address: str, default_worker_container: WorkerContainer
) -> None:
    wait_until(api_container.is_healthy, "a healthy API")
    wait_until(default_worker_container.is_healthy, "a healthy worker")
    default_worker_container.stop()
    run_id = submit(api_address)
    assert status_of(api_address, run_id) == "queued"
    default_worker_container.start()
    wait_until(lambda: status_of(api_address, run_id) == "completed", "the end of the run")
