"""The page on people in the loop, followed word by word: its agents, its programs and its commands."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest

from tests.caller import Caller
from tests.deployment import ROOT, Deployment, wait_for
from tests.pages import Page

AGENTS = "desk,seats,editor,offers,careful,mail"
ANSWER = re.compile(r"durable (?:approve|decline|resume) (\S+) (\S+)|/runs/([^/ ]+)/tool-calls/([^/ ]+)/")
# The page says of these that they are refused.
REFUSED = {"durable approve refund-3 pyd_ai_tool_call_id__refund": 4}
OUTPUTS = {
    "bank-1": '{"pay":"paid 0"}',
    "bank-2": '{"pay":"paid 0"}',
    "bank-3": '{"pay":"paid 0"}',
    "refund-1": '{"refund":"refunded 120 for order 4711"}',
    "refund-2": '{"refund":"refunded 100 for order 4711"}',
    "refund-3": '{"refund":"Only up to 100."}',
    "seat-1": '{"book":"booked 12A"}',
    "file-1": '{"open_file":{"content":"hello"}}',
    "mail-1": '{"send_inside":"sent","send_outside":"sent"}',
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page("approvals.md", tmp_path_factory.mktemp("approvals"))


@pytest.fixture(scope="module")
def served(redis_url: str, page: Page) -> Iterator[Caller]:
    """The page's agents, executed by a worker and served by the API."""
    env = {"PYTHONPATH": os.pathsep.join([str(page.folder), str(ROOT)])}
    with Deployment(redis_url, agents=AGENTS, env=env) as found:
        found.start_api()
        found.start_worker()
        with Caller(found.url) as caller:
            yield caller


def wait_for_call(caller: Caller, run_id: str, call: str) -> None:
    """Wait until a call waits, or has been answered: a person reads a while before answering."""

    def known() -> bool:
        run = caller.look(run_id)
        return call in {found["toolCallId"] for found in [*run.get("pending", []), *run.get("decisions", [])]}

    wait_for(known, what=f"{call} of {run_id} to wait")


def test_the_run_in_one_process(page: Page) -> None:
    ended = page.run("approve_here")

    assert ended.returncode == 0, ended.stderr
    asked, output = ended.stdout.splitlines()
    assert asked == "waits for approval of refund {'order': 'a', 'amount': 0}"
    assert output == '{"refund":"refunded 120 for order 4711"}'


def test_the_commands_and_what_they_come_to(page: Page, served: Caller) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = str(served.base_url).rstrip("/")
    lines = page.commands("durable", "curl")
    assert len(lines) >= 20
    for line in lines:
        for run_id, call in (filter(None, found) for found in ANSWER.findall(line)):
            wait_for_call(served, run_id, call)
        ended = page.follow(line, url)
        assert ended.returncode == REFUSED.get(line, 0), f"{line}\n{ended.stdout}\n{ended.stderr}"
        assert '"error"' not in ended.stdout, f"{line}\n{ended.stdout}"

    assert {run_id: served.ended(run_id)["output"] for run_id in OUTPUTS} == OUTPUTS
    [offer] = served.get("/v1/runs", params={"agent": "offers"}).json()["runs"]
    [decision] = offer["decisions"]
    assert (offer["status"], decision["decision"], decision["actor"]) == ("completed", "approve", "deadline")
    assert [decision["toolName"] for decision in served.look("mail-1")["decisions"]] == ["send_outside"]


def test_which_question(page: Page, served: Caller) -> None:
    ended = page.run("which", str(served.base_url).rstrip("/"))

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == """['1.0', '1.1'] {"book":"booked 14C"}\n"""


def test_the_inbox(page: Page, served: Caller) -> None:
    ended = page.run("inbox", str(served.base_url).rstrip("/"))

    assert ended.returncode == 0, ended.stderr
    *listed, output = ended.stdout.splitlines()
    assert any("refund {'order': 'a', 'amount': 0}" in line for line in listed)
    assert output == '{"refund":"Not today."}'
