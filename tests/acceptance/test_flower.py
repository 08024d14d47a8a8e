"""Flower shows one readable row a run, tells how it ended, and can end it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.caller import Caller, of_type
from tests.deployment import wait_for

Row = dict[str, Any]


def rows(flower: str, run_id: str) -> list[Row]:
    """All rows of a run."""
    tasks: dict[str, Row] = httpx.get(f"{flower}/api/tasks", params={"search": run_id}, trust_env=False).json()
    return [row for uuid, row in tasks.items() if uuid.partition(".")[0] == run_id]


def row_in_state(flower: str, run_id: str, state: str) -> Row:
    """The one row of a run, once it is in this state."""
    wait_for(
        lambda: [row["state"] for row in rows(flower, run_id)] == [state], what=f"Flower to show {run_id} as {state}"
    )
    [row] = rows(flower, run_id)
    return row


def test_a_run_is_one_row_with_its_own_id_and_its_agents_name(flower: str, caller: Caller) -> None:
    run = caller.result('call add {"a": 1, "b": 2}')
    row = row_in_state(flower, run["runId"], "SUCCESS")
    assert (row["uuid"], row["name"]) == (run["runId"], "agent:scripted")
    assert "call add" not in str(row), "the prompt is nobody's business there"


@pytest.mark.parametrize("prompt", ["fail", "call explode"])
def test_a_failed_run_shows_as_a_failure(flower: str, caller: Caller, prompt: str) -> None:
    run = caller.result(prompt)
    row = row_in_state(flower, run["runId"], "FAILURE")
    assert row["name"] == "agent:scripted"
    assert "hunter2" not in str(row)


def test_a_cancelled_run_shows_as_revoked(flower: str, caller: Caller) -> None:
    run_id = caller.submit("slowly 50 " + "word " * 400)
    caller.wait_for_text(run_id, "word")
    row_in_state(flower, run_id, "STARTED")
    caller.post(f"/v1/runs/{run_id}/cancel")
    assert caller.ended(run_id)["status"] == "cancelled"
    row_in_state(flower, run_id, "REVOKED")


def test_revoking_a_task_in_flower_cancels_its_run_and_no_other(flower: str, caller: Caller) -> None:
    revoked, other = (caller.submit("slowly 30 " + "word " * 60) for _ in range(2))
    for run_id in (revoked, other):
        caller.wait_for_text(run_id, "word")
        row_in_state(flower, run_id, "STARTED")
    answer = httpx.post(f"{flower}/api/task/revoke/{revoked}", params={"terminate": "true"}, trust_env=False)
    assert answer.status_code == 200
    assert caller.ended(revoked)["status"] == "cancelled"
    assert len(of_type(caller.log(revoked), "abort")) == 1
    row_in_state(flower, revoked, "REVOKED")
    assert caller.ended(other)["status"] == "completed"
    row_in_state(flower, other, "SUCCESS")
