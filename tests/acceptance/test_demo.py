"""`make demo` shows what it promises, fails with a reason when it can't, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
import redis

from tests.deployment import ROOT, wait_for

MARK = "DEMO_TEST_MARK"


@dataclass
class Run:
    """A demo under way. Its processes, and theirs, carry a mark in their environment."""

    process: subprocess.Popen[str]
    mark: str
    output: list[str] = field(default_factory=list)

    def end(self) -> int:
        """Wait for its end; the exit code."""
        self.output.append(self.process.communicate(timeout=50)[0])
        return self.process.returncode

    @property
    def text(self) -> str:
        return "".join(self.output)

    def processes(self) -> list[str]:
        """The ids of all processes that carry the mark."""
        return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal() and self._marked(entry)]

    def _marked(self, entry: Path) -> bool:
        try:
            return f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
        except OSError:  # gone since, or not ours
            return False


class Start(Protocol):
    """Starts a demo, with these variables."""

    def __call__(self, **env: str) -> Run: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a demo, with these variables."""
    runs: list[Run] = []

    def begin(**env: str) -> Run:
        mark = secrets.token_hex(8)
        none = dict.fromkeys(("EXAMPLE_MODEL", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"), "")
        process = subprocess.Popen(
            [sys.executable, "examples/demo.py"],
            cwd=ROOT,
            env={**os.environ, **none, **env, MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        runs.append(Run(process, mark))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def test_the_demo_shows_that_a_cut_connection_loses_nothing(start: Start) -> None:
    demo = start()

    assert demo.end() == 0, demo.text
    (cut,) = map(int, re.findall(r"aborted after chunk (\d+); the run is running", demo.text))
    (last,) = map(int, re.findall(r"^2, goes on +\d+ +\d+ to (\d+)", demo.text, re.MULTILINE))
    assert 0 < cut < last
    rows = re.findall(
        r"^(1 and 2 together|3, from the start) +(\d+) +1 to (\d+) +([0-9a-f]{16})", demo.text, re.MULTILINE
    )
    assert len(rows) == 2
    assert {row[1:] for row in rows} == {(str(last), str(last), rows[0][3])}
    assert re.search(r"^Run [\w-]+, submitted in [\d.]+ ms$", demo.text, re.MULTILINE)
    assert "\x1b" not in demo.text
    assert demo.processes() == []


def test_the_demo_says_why_it_can_not_run(start: Start) -> None:
    demo = start(EXAMPLE_MODEL="no-such-provider:model")

    assert demo.end() == 1
    assert "The demo failed: worker ended with code" in demo.text
    assert "no-such-provider" in demo.text
    assert demo.processes() == []


def test_the_demo_says_that_redis_is_not_there(start: Start) -> None:
    demo = start(DURABLE_REDIS_URL="redis://127.0.0.1:1/0")

    assert demo.end() == 1
    assert "The demo failed: Error 111 connecting to 127.0.0.1:1" in demo.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(start: Start, redis_url: str, number: signal.Signals) -> None:
    given = {"DURABLE_REDIS_URL": redis_url} if number == signal.SIGINT else {}
    demo = start(**given)
    assert demo.process.stdout is not None
    for line in demo.process.stdout:
        demo.output.append(line)
        if "┌ step 3" in line:
            break
    demo.process.send_signal(number)

    assert demo.end() == 1
    assert "Interrupted. Everything is stopped." in demo.text
    assert "Traceback" not in demo.text
    wait_for(lambda: demo.processes() == [], what="every process to be gone")
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("*durable-demo-*")) == []
