"""A run whose model's provider fails: who asks again, how often, and what observers see of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from durable.chunks import from_wire
from durable.fold import fold_text
from tests.caller import Body, Caller, of_type, said
from tests.deployment import Deployment, wait_for
from tests.provider_wire import Failure, Hold, ProviderWire, Reply, anthropic, openai_chat, text, tool_call
from tests.provider_wire.models import URL_VARIABLE
from tests.provider_wire.script import refusal


@pytest.fixture(scope="module")
def wire() -> Iterator[ProviderWire]:
    """One provider for the module's worker."""
    with ProviderWire() as found:
        yield found


@pytest.fixture(scope="module")
def provided(redis_url: str, wire: ProviderWire) -> Iterator[Caller]:
    """Calls a deployment whose agents talk to the provider."""
    env = {URL_VARIABLE: wire.base_url, "DURABLE_SWEEP_SECONDS": "0.1"}
    with Deployment(redis_url, env=env, agents="tests.provider_agents") as deployment:
        deployment.start_api()
        deployment.start_worker()
        with Caller(deployment.url) as caller:
            yield caller


@pytest.fixture(autouse=True)
def all_replies_are_asked_for(wire: ProviderWire) -> Iterator[None]:
    """Each test gets a provider without a past, and uses up what it scripted."""
    wire.requests.clear()
    yield
    assert wire.left == 0


def unavailable(path: str = anthropic.PATH, **headers: str) -> Reply:
    """HTTP 503."""
    return refusal(path, 503, {"error": {"type": "api_error", "message": "hunter2"}}, headers)


def folded(log: list[Body]) -> str:
    """The text that counts."""
    return fold_text(from_wire(chunk) for chunk in log)


def diagnosis(caller: Caller, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = caller.get(f"/v1/runs/{run_id}/diagnosis").json()
    return {**found, "facts": {fact["code"]: fact for fact in found["facts"]}}


def test_without_retries_the_client_of_the_provider_asks_again_and_the_run_does_not(
    wire: ProviderWire, provided: Caller
) -> None:
    wire.script(*(unavailable(**{"retry-after-ms": "1"}) for _ in range(3)))
    run = provided.result("go", "anthropic")
    assert (run["status"], run["error"]["code"], run["attempt"]) == ("failed", "model_error", 1)
    assert len(wire.requests) == 3


def test_with_retries_the_run_asks_once_an_attempt_and_goes_on_until_it_is_answered(
    wire: ProviderWire, provided: Caller
) -> None:
    wire.script(unavailable(), anthropic.rate_limited(), anthropic.reply(text("at last")))
    run = provided.result("go", "anthropic", retries=2)
    assert (run["status"], run["output"], run["attempt"]) == ("completed", "at last", 3)
    assert len(wire.requests) == 3
    log = provided.log(run["runId"])
    assert [chunk for chunk in log if chunk.get("final")] == [log[-1]]
    assert of_type(log, "error") == []


def test_a_run_fails_once_its_retries_are_used_up(wire: ProviderWire, provided: Caller) -> None:
    wire.script(unavailable(), unavailable())
    run = provided.result("go", "anthropic", retries=1)
    assert (run["status"], run["error"]["code"], run["attempt"]) == ("failed", "model_error", 2)
    assert len(wire.requests) == 2
    assert "hunter2" not in json.dumps([run, provided.log(run["runId"])])


def test_what_waiting_does_not_help_is_not_tried_again(wire: ProviderWire, provided: Caller) -> None:
    wire.script(refusal(anthropic.PATH, 401, {"error": {"type": "authentication_error", "message": "no"}}, {}))
    run = provided.result("go", "anthropic", retries=5)
    assert (run["status"], run["attempt"]) == ("failed", 1)
    assert len(wire.requests) == 1


def test_text_that_was_cut_off_is_void_and_never_shown_twice(wire: ProviderWire, provided: Caller) -> None:
    wire.script(
        anthropic.reply(text("so ", "far"), failure=Failure("hunter2")), anthropic.reply(text("so ", "far, so good"))
    )
    run = provided.result("go", "anthropic", retries=1)
    assert run["output"] == "so far, so good"
    log = provided.log(run["runId"])
    assert said(log) == "so farso far, so good"
    assert folded(log) == "so far, so good"
    first, second = of_type(log, "step-start")
    assert first["stepId"] == second["stepId"]
    assert second["void"]["from"] == 2
    answer = provided.get(f"/v1/runs/{run['runId']}/messages").json()["messages"]
    assert [message["content"] for message in answer] == ["go", "so far, so good"]


def test_a_second_model_takes_over_from_one_that_failed_in_mid_stream(wire: ProviderWire, provided: Caller) -> None:
    wire.script(
        anthropic.reply(text("the ", "first"), failure=Failure()),
        unavailable(),
        openai_chat.reply(text("the ", "second")),
    )
    run = provided.result("go", "either", retries=1)
    assert (run["output"], run["attempt"]) == ("the second", 2)
    assert folded(provided.log(run["runId"])) == "the second"
    assert [request.path for request in wire.requests] == [anthropic.PATH, anthropic.PATH, openai_chat.PATH]


def test_a_second_model_that_answers_at_once_leaves_nothing_void(wire: ProviderWire, provided: Caller) -> None:
    wire.script(*(unavailable(**{"retry-after-ms": "1"}) for _ in range(3)), openai_chat.reply(text("the second")))
    run = provided.result("go", "either")
    assert (run["output"], run["attempt"]) == ("the second", 1)
    log = provided.log(run["runId"])
    assert said(log) == "the second"
    assert all("void" not in step for step in of_type(log, "step-start"))


def test_progress_makes_the_retries_whole_and_completed_tools_run_once(wire: ProviderWire, provided: Caller) -> None:
    call = tool_call("c1", "shout", word="ja")
    wire.script(unavailable(), anthropic.reply(call), unavailable(), anthropic.reply(text("done")))
    run = provided.result("go", "anthropic", retries=1)
    assert (run["status"], run["output"], run["attempt"]) == ("completed", "done", 3)
    assert len(of_type(provided.log(run["runId"]), "tool-result")) == 1
    assert len(wire.requests) == 4


def test_a_run_waits_as_long_as_the_provider_asks_and_says_so_and_can_be_cancelled(
    wire: ProviderWire, provided: Caller
) -> None:
    wire.script(unavailable(**{"retry-after": "600"}))
    run_id = provided.submit("go", "anthropic", retries=3)
    wait_for(lambda: provided.look(run_id).get("reason") == "retrying", what="the run to be put off")
    assert provided.look(run_id)["status"] == "queued"
    [listed] = [run for run in provided.get("/v1/runs").json()["runs"] if run["runId"] == run_id]
    assert listed["reason"] == "retrying"
    found = diagnosis(provided, run_id)
    assert found["reason"] == "retrying"
    assert found["facts"]["retrying"]["details"]["retry"] == 1
    assert found["facts"]["last_error"]["details"] == {"errorCode": "model_error"}
    assert found["facts"]["attempts"]["details"]["withoutProgress"] == 0
    assert provided.post(f"/v1/runs/{run_id}/cancel").status_code == 202
    assert provided.look(run_id)["status"] == "cancelled"


def test_a_wish_of_more_than_an_hour_is_not_waited_for(wire: ProviderWire, provided: Caller) -> None:
    wire.script(unavailable(**{"retry-after": "7200"}))
    assert provided.result("go", "anthropic", retries=3)["status"] == "failed"


def test_a_cancelled_run_is_retried_without_asking_for_what_is_completed(wire: ProviderWire, provided: Caller) -> None:
    hold = Hold()
    call = tool_call("c1", "shout", word="ja")
    wire.script(anthropic.reply(call), anthropic.reply(text("cut ", hold, "off")), anthropic.reply(text("whole")))
    run_id = provided.submit("go", "anthropic")
    provided.wait_for_text(run_id, "cut ")
    provided.post(f"/v1/runs/{run_id}/cancel")
    provided.ended(run_id)
    hold.release()
    new = provided.ended(provided.post(f"/v1/runs/{run_id}/retry").json()["runId"])
    assert (new["status"], new["output"]) == ("completed", "whole")
    assert len(wire.requests) == 3
    answer = provided.get(f"/v1/runs/{new['runId']}/messages").json()["messages"]
    assert [message["role"] for message in answer] == ["user", "assistant", "tool", "assistant"]
    assert "cut" not in json.dumps(answer)
    assert "JA!" in json.dumps(wire.requests[2].body)
