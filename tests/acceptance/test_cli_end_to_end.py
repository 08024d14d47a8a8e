"""The command line against real servers, as somebody types it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from durable.dev.ports import free_port
from durable.dev.services import api_service
from tests.caller import Caller, chunks_of
from tests.deployment import ROOT, Deployment, wait_for

DURABLE = str(Path(sys.executable).with_name("durable"))
WORDS = "word " * 40


def environment(caller: Caller) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DURABLE_URL": str(caller.base_url).rstrip("/")}


def durable(caller: Caller, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [DURABLE, *arguments],
        env=environment(caller),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextmanager
def started(caller: Caller, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is still at work."""
    process = subprocess.Popen(
        [DURABLE, *arguments],
        env={**environment(caller), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Standard output up to these words; the test's own timeout is the deadline."""
    assert process.stdout is not None
    text = ""
    while words not in text:
        piece = process.stdout.read(1)
        assert piece, f"it ended without {words!r}: {text!r}"
        text += piece
    return text


def run_id_of(output: str) -> str:
    found = re.search(r"^run ([A-Za-z0-9_-]+)$", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_a_run_flows_as_text_and_can_be_observed_and_listed_later(caller: Caller) -> None:
    ran = durable(caller, "run", "scripted", "say hello world", "--metadata", "team=blue")
    assert ran.returncode == 0, ran.stderr
    assert "hello world" in ran.stdout
    assert "✓ completed" in ran.stdout
    run_id = run_id_of(ran.stdout)
    assert caller.look(run_id)["metadata"] == {"team": "blue"}

    observed = durable(caller, "observe", run_id)
    assert observed.returncode == 0
    assert "hello world" in observed.stdout

    printed = durable(caller, "observe", run_id, "--json")
    assert [json.loads(line) for line in printed.stdout.splitlines()] == chunks_of(caller.frames(run_id))

    listed = durable(caller, "runs", "--agent", "scripted", "--limit", "1", "--json")
    assert [json.loads(line)["runId"] for line in listed.stdout.splitlines()] == [run_id]
    table = durable(caller, "runs", "--limit", "1")
    assert run_id in table.stdout


def test_a_failed_run_and_a_refusal_have_exit_codes_of_their_own(caller: Caller) -> None:
    failed = durable(caller, "run", "scripted", "call explode")
    assert failed.returncode == 1
    assert "tool_failed" in failed.stdout
    refused = durable(caller, "run", "nobody", "say x")
    assert refused.returncode == 4
    assert "Traceback" not in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_run_is_cancelled_from_another_terminal(caller: Caller) -> None:
    with started(caller, "run", "scripted", "slowly 50 " + "word " * 400) as following:
        run_id = run_id_of(read_until(following, "word word"))
        cancelled = durable(caller, "cancel", run_id)
        assert cancelled.returncode == 0, cancelled.stderr
        assert following.wait(20) == 3
    assert caller.look(run_id)["status"] == "cancelled"


def test_ctrl_c_leaves_the_run_going_and_says_how_to_come_back(caller: Caller) -> None:
    with started(caller, "run", "scripted", "slowly 60 " + WORDS) as following:
        head = read_until(following, "word word word")
        following.send_signal(signal.SIGINT)
        rest, errors = following.communicate(timeout=20)
        assert (following.returncode, errors) == (0, "")
    run_id = run_id_of(head)
    assert "Detached. The run goes on." in rest
    back = re.search(r"durable (observe \S+ --after [0-9]+)", rest)
    assert back, rest
    assert caller.look(run_id)["status"] == "running"
    again = durable(caller, *shlex.split(back[1]))
    assert again.returncode == 0
    assert "✓ completed" in again.stdout
    assert (head + rest + again.stdout).count("word") == WORDS.count("word")
    assert caller.look(run_id)["output"] == WORDS


def test_a_run_whose_id_looks_like_an_option_can_be_come_back_to(caller: Caller) -> None:
    detached = durable(caller, "run", "scripted", "say found", "--run-id=--help", "--detach")
    assert (detached.returncode, detached.stdout) == (0, "--help\n")
    back = re.search(r"durable (observe .*)", detached.stderr)
    assert back, detached.stderr
    again = durable(caller, *shlex.split(back[1]))
    assert again.returncode == 0, again.stderr
    assert "found" in again.stdout


def test_our_worker_and_api_start_where_the_user_has_packages_of_these_names(redis_url: str, tmp_path: Path) -> None:
    for name in ("worker", "api"):
        package = tmp_path / name
        package.mkdir()
        for module in ("__init__", "app", "server"):
            (package / f"{module}.py").write_text('raise RuntimeError("this is the package of the user")\n')
    (tmp_path / "shop.py").write_text(
        "from pydantic_ai import Agent\n"
        "from pydantic_ai.models.test import TestModel\n"
        "from durable import create_evented_agent\n"
        "shop = create_evented_agent(Agent(TestModel(custom_output_text='sold'), name='shop'))\n"
    )
    with Deployment(redis_url, agents="shop") as own:
        port = free_port()
        api = api_service(redis_url, port=port, env=own.environment)
        own.start(replace(api, argv=(DURABLE, "api"), cwd=tmp_path))
        own.start(replace(own.worker_service(), argv=(DURABLE, "worker"), cwd=tmp_path))
        with Caller(f"http://127.0.0.1:{port}") as caller:
            wait_for(lambda: caller.get("/v1/agents").json()["agents"] != [], what="the agent to be announced")
            assert caller.result("one", agent="shop")["output"] == "sold"
            assert durable(caller, "run", "shop", "another").returncode == 0
