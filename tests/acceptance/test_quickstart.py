"""The quickstart, followed word by word: its agent, its programs and its commands, against a worker and the API."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import ROOT, Deployment

PAGE = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"
# The page says of these that they are refused.
REFUSED = {"durable cancel hello-1": 4}


def commands(program: str) -> list[str]:
    """The commands of the page that begin with a program's name, in their order."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith(f"{program} ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's programs in it."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(code)
    return folder


@pytest.fixture(scope="module")
def served(redis_url: str, folder: Path) -> Iterator[Deployment]:
    """The page's agent, executed by a worker and served by the API."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    with Deployment(redis_url, agents="my_agents", env={"PYTHONPATH": path}) as found:
        found.start_api()
        found.start_worker()
        yield found


def call(argv: list[str], folder: Path, url: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in the folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DURABLE_URL": url}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_the_run_in_one_process(folder: Path) -> None:
    ended = call([sys.executable, "-W", "error", "try_it.py"], folder)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("success (no tool calls)\n")


def test_the_program_with_the_client(folder: Path, served: Deployment) -> None:
    ended = call([sys.executable, "-W", "error", "ask.py"], folder, served.url)

    assert ended.returncode == 0, ended.stderr
    first, streamed, output = ended.stdout.splitlines()
    assert first.startswith("submitted ")
    assert streamed == output == '{"visits":3}'


def test_the_commands(folder: Path, served: Deployment) -> None:
    verbs = [line for line in commands("durable") if not line.startswith(("durable dev", "durable api"))]
    assert len(verbs) >= 8
    for line in verbs:
        argv = [sys.executable, "-m", "durable.cli", *shlex.split(line)[1:]]
        ended = call(argv, folder, served.url)
        assert ended.returncode == REFUSED.get(line, 0), f"{line}\n{ended.stdout}\n{ended.stderr}"


def test_the_requests_with_curl(folder: Path, served: Deployment) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    lines = commands("curl")
    told = [call(shlex.split(line.replace(ADDRESS, served.url)), folder).stdout for line in lines]

    submitted, stream, page, run, cancelled = told
    assert '"runId":"hello-2"' in submitted
    assert stream.rstrip().endswith('"final":true}')
    assert page.startswith('{"runId":"hello-2","chunks":[{"runId":"hello-2","from":"AGENT","seq":5,')
    assert '"status":"completed"' in run
    assert '"code":"run_ended"' in cancelled
