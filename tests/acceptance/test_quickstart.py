"""The quickstart, followed word by word: its agent, its programs and its commands, against a worker and the API."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.deployment import ROOT, Deployment
from tests.pages import Page

# The page says of these that they are refused.
REFUSED = {"durable cancel hello-1": 4}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page("quickstart.md", tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def served(redis_url: str, page: Page) -> Iterator[Deployment]:
    """The page's agent, executed by a worker and served by the API."""
    path = os.pathsep.join([str(page.folder), str(ROOT)])
    with Deployment(redis_url, agents="my_agents", env={"PYTHONPATH": path}) as found:
        found.start_api()
        found.start_worker()
        yield found


def test_the_run_in_one_process(page: Page) -> None:
    ended = page.run("try_it")

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("success (no tool calls)\n")


def test_the_program_with_the_client(page: Page, served: Deployment) -> None:
    ended = page.run("ask", served.url)

    assert ended.returncode == 0, ended.stderr
    first, streamed, output = ended.stdout.splitlines()
    assert first.startswith("submitted ")
    assert streamed == output == '{"visits":3}'


@pytest.mark.timeout(150)
def test_the_commands(page: Page, served: Deployment) -> None:
    verbs = [line for line in page.commands("durable") if not line.startswith(("durable dev", "durable api"))]
    assert len(verbs) >= 8
    for line in verbs:
        ended = page.follow(line, served.url)
        assert ended.returncode == REFUSED.get(line, 0), f"{line}\n{ended.stdout}\n{ended.stderr}"


def test_the_requests_with_curl(page: Page, served: Deployment) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    told = [page.follow(line, served.url).stdout for line in page.commands("curl")]

    submitted, stream, part, run, cancelled = told
    assert '"runId":"hello-2"' in submitted
    assert stream.rstrip().endswith('"final":true}')
    assert part.startswith('{"runId":"hello-2","chunks":[{"runId":"hello-2","from":"AGENT","seq":5,')
    assert '"status":"completed"' in run
    assert '"code":"run_ended"' in cancelled
