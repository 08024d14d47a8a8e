"""Budgets and time limits from outside: over HTTP, by the client, and on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from durable import Client
from durable.chunks import BudgetReached
from durable.errors import BudgetNotReached, InvalidRequest
from tests.acceptance.test_cli_end_to_end import durable
from tests.caller import Caller, assert_problem, of_type
from tests.deployment import wait_for

ADD = 'call add {"a": 1, "b": 2}'
SAID = "The tool said 3 "


def reached(caller: Caller, **fields: Any) -> str:
    """A run that has used up its tokens after its first step; its id."""
    run_id = caller.submit(ADD, maxTokens=1, **fields)
    wait_for(lambda: caller.look(run_id).get("reason") == "budget_reached", seconds=20, what="the budget to be used up")
    return run_id


def test_a_run_that_waits_is_raised_over_http(caller: Caller) -> None:
    run_id = reached(caller)
    view = caller.look(run_id)
    used = view["usage"]["totalTokens"]
    assert (view["status"], view["budget"]) == ("suspended", {"maxTokens": 1, "reached": "max_tokens"})
    assert of_type(caller.log(run_id), "budget-reached") == [{"budget": "max_tokens", "limit": 1, "used": used}]
    answer = caller.post(view["links"]["resume"], json={"maxTokens": used + 1000, "actor": "ada"})
    assert answer.status_code == 200
    assert answer.json()["budget"] == {"maxTokens": used + 1000}
    assert caller.ended(run_id)["output"] == SAID
    assert of_type(caller.log(run_id), "budget-raised") == [{"maxTokens": used + 1000, "actor": "ada"}]
    assert caller.post(view["links"]["resume"], json={"maxTokens": used + 1000}).status_code == 200
    assert_problem(caller.post(view["links"]["resume"], json={"maxTokens": used + 1}), 409, "run_ended")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"maxTokens": 1}', b'{"maxTokens": "many"}', b'{"maxSeconds": 5}', b'{"tokens": 5}']
)
def test_what_raises_nothing_is_refused_and_the_run_still_waits(caller: Caller, body: bytes) -> None:
    run_id = reached(caller)
    headers = {"content-type": "application/json"}
    assert_problem(caller.post(f"/v1/runs/{run_id}/resume", content=body, headers=headers), 400, "invalid_request")
    assert caller.look(run_id)["status"] == "suspended"
    assert caller.post(f"/v1/runs/{run_id}/cancel").status_code == 202
    assert caller.look(run_id)["status"] == "cancelled"


def test_only_a_run_that_waits_for_it_is_raised(caller: Caller) -> None:
    run_id = caller.submit("slowly 200 " + "word " * 50, maxTokens=10_000)
    assert_problem(caller.post(f"/v1/runs/{run_id}/resume", json={"maxTokens": 20_000}), 409, "budget_not_reached")
    caller.post(f"/v1/runs/{run_id}/cancel")
    assert_problem(caller.post("/v1/runs/nobody/resume", json={"maxTokens": 20_000}), 404, "unknown_run")


@pytest.mark.parametrize(
    "fields",
    [
        {"maxTokens": 0},
        {"maxTokens": 1.5},
        {"maxSeconds": 0},
        {"maxSeconds": "NaN"},
        {"onBudget": "explode"},
        {"stepSeconds": -1},
    ],
)
def test_a_limit_that_is_none_is_refused(caller: Caller, fields: dict[str, Any]) -> None:
    answer = caller.post("/v1/agents/scripted/runs", json={"prompt": "say hello", **fields})
    assert_problem(answer, 400, "invalid_request")


def test_a_run_may_end_when_its_budget_is_used_up(caller: Caller) -> None:
    run = caller.result(ADD, maxTokens=1, onBudget="end")
    assert (run["status"], run["reason"]) == ("completed", "budget_reached")
    [finish] = of_type(caller.log(run["runId"]), "finish")
    assert finish["budgetReached"] == "max_tokens"


def test_a_step_that_takes_too_long_fails_its_run(caller: Caller) -> None:
    run = caller.result('call wait {"ms": 60000}', stepSeconds=0.5)
    assert (run["status"], run["error"]["code"]) == ("failed", "step_timeout")


async def test_the_client_raises_a_budget_while_it_follows_the_run(caller: Caller) -> None:
    async with Client(str(caller.base_url)) as client:
        run = await client.submit("scripted", ADD, max_tokens=1)
        async for chunk in client.observe(run.run_id):
            if isinstance(chunk, BudgetReached):
                used = int(chunk.payload.used)
                with pytest.raises(InvalidRequest):
                    await client.raise_budget(run.run_id, max_tokens=used)
                await client.raise_budget(run.run_id, max_tokens=used + 1000, actor="ada")
        assert await client.result(run.run_id) == SAID
        other = await client.submit("scripted", "slowly 200 " + "word " * 50)
        with pytest.raises(BudgetNotReached):
            await client.raise_budget(other.run_id, max_seconds=5)
        await client.cancel(other.run_id)


def test_the_command_line_raises_a_budget_and_says_why_a_run_waits(caller: Caller) -> None:
    submitted = durable(caller, "run", "scripted", ADD, "--max-tokens", "1", "--max-seconds", "60", "--detach")
    run_id = submitted.stdout.strip()
    wait_for(lambda: caller.look(run_id).get("reason") == "budget_reached", seconds=20, what="the budget to be used up")
    why = durable(caller, "why", run_id)
    assert "It has used up its budget of 1 tokens, and waits until that is raised." in why.stdout
    refused = durable(caller, "raise", run_id, "--max-tokens", "1")
    assert refused.returncode == 4
    raised = durable(caller, "raise", run_id, "--max-tokens", "10000")
    assert (raised.returncode, raised.stdout) == (0, f"run {run_id} goes on\n")
    assert caller.ended(run_id)["output"] == SAID
    ended = durable(caller, "run", "scripted", ADD, "--max-tokens", "1", "--end-on-budget")
    assert ended.returncode == 0
