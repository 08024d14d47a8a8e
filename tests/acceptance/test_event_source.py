"""The browser's own `EventSource` (as the npm package has it) reads a run over a network that breaks."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.faulty_proxy import FaultyProxy, cut_after
from tests.acceptance.node_project import with_packages
from tests.caller import Caller, said

FOLDER: Final = Path(__file__).parent / "event_source"


@pytest.fixture(scope="session")
def node() -> str:
    """The program `node`, with the packages of the reader installed."""
    return with_packages(FOLDER)


def read(node: str, url: str) -> list[dict[str, Any]]:
    """All that an `EventSource` reports until it gives up; a reader that would come back for ever fails the test."""
    done = subprocess.run([node, "reader.mjs", url], cwd=FOLDER, capture_output=True, text=True, timeout=30, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def cursor_of(request: bytes) -> int | None:
    """The `Last-Event-ID` that a request came with."""
    found = re.search(rb"\r\nlast-event-id: *([0-9]+)\r\n", request, re.IGNORECASE)
    return int(found[1]) if found else None


def test_a_connection_that_breaks_three_times_costs_no_chunk_and_doubles_none(caller: Caller, node: str) -> None:
    port = caller.base_url.port
    assert port is not None
    run_id = caller.submit("slowly 25 " + "word " * 60)
    with FaultyProxy(port, *[cut_after(4, inside=20)] * 3) as proxy:
        events = read(node, f"{proxy.url}/v1/runs/{run_id}/chunks")
    run = caller.look(run_id)
    messages = [event for event in events if event["event"] == "message"]
    assert [int(message["id"]) for message in messages] == list(range(1, run["lastSeq"] + 1))
    chunks = [json.loads(message["data"]) for message in messages]
    assert chunks == caller.log(run_id)
    assert said(chunks) == "word " * 60

    first, *later = [cursor_of(request) for request in proxy.requests]
    assert first is None
    assert len(later) == 4, "three times after a cut, and once to hear that nothing is left"
    assert later == sorted({cursor for cursor in later if cursor})
    assert later[2] < run["lastSeq"], "cut in the middle of the run"
    assert later[3] == run["lastSeq"]


def test_no_content_stops_a_reader_from_coming_back(caller: Caller, node: str) -> None:
    run = caller.result("say x")
    events = read(node, f"{caller.base_url}/v1/runs/{run['runId']}/chunks")
    assert [event["event"] for event in events[:-2]] == ["open", *["message"] * run["lastSeq"]]
    ended, refused = events[-2:]
    assert (ended["event"], ended["closed"]) == ("error", False)
    assert refused == {"event": "error", "code": 204, "closed": True}
