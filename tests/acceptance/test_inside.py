"""What is inside of a run, as a caller sees it: its conversation, why it stands where it stands, and its retry."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse
from typer.testing import CliRunner, Result

from durable import Client
from durable.cli import app
from durable.errors import RunConflict
from tests.caller import Caller, assert_problem, of_type, said
from tests.deployment import Deployment, stop_child, wait_for

RUNS = "/v1/agents/scripted/runs"
HELD = 'call wait {"ms": 60000}'


def durable(caller: Caller, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["--url", str(caller.base_url).rstrip("/"), *arguments])


def messages(caller: Caller, run_id: str) -> list[dict[str, Any]]:
    answer = caller.get(f"/v1/runs/{run_id}/messages")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["messages"]
    return found


def diagnosis(caller: Caller, run_id: str) -> dict[str, Any]:
    answer = caller.get(f"/v1/runs/{run_id}/diagnosis")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return {**found, "facts": {fact["code"]: fact for fact in found["facts"]}}


def held(caller: Caller) -> str:
    """A run whose tool takes long; its response is completed."""
    run_id = caller.submit(HELD)
    wait_for(lambda: bool(of_type(caller.log(run_id), "tool-output")), what="the tool to begin")
    return run_id


class TestRetry:
    """POST /v1/runs/{id}/retry."""

    def test_a_failed_run_goes_on_in_a_new_one_from_its_last_response(self, caller: Caller) -> None:
        old = caller.result('calls add {"a": 1, "b": 2}; explode', metadata={"order": 7})
        assert old["error"]["code"] == "tool_failed"
        answer = caller.post(old["links"]["retry"])
        assert answer.status_code == 202
        new = answer.json()
        assert answer.headers["location"] == new["links"]["self"] == f"/v1/runs/{new['runId']}"
        assert (new["retryOf"], new["agent"], new["metadata"]) == (old["runId"], "scripted", {"order": 7})
        assert new["runId"] != old["runId"]
        ended = caller.ended(new["runId"])
        assert ended["error"]["code"] == "tool_failed"
        log = caller.log(new["runId"])
        assert of_type(log, "step-start") == [], "the model is not asked again"
        assert [(found["toolName"], found["result"]) for found in of_type(log, "tool-result")] == [("add", 3)]
        assert caller.look(old["runId"]) == old, "the old run stays as it is"

    def test_a_cancelled_run_can_be_retried_and_one_that_completed_or_goes_on_can_not(self, caller: Caller) -> None:
        running = held(caller)
        assert "retry" not in caller.look(running)["links"]
        assert_problem(caller.post(f"/v1/runs/{running}/retry"), 409, "run_conflict")
        caller.post(f"/v1/runs/{running}/cancel")
        assert caller.ended(running)["status"] == "cancelled"
        new = caller.post(f"/v1/runs/{running}/retry").json()["runId"]
        wait_for(lambda: bool(of_type(caller.log(new), "tool-output")), what="the tool to begin again")
        caller.post(f"/v1/runs/{new}/cancel")
        completed = caller.result("say x")
        assert "retry" not in completed["links"]
        assert_problem(caller.post(f"/v1/runs/{completed['runId']}/retry"), 409, "run_conflict")
        caller.ended(new)

    def test_one_key_gives_one_retry(self, caller: Caller) -> None:
        old, other = caller.result("fail")["runId"], caller.result("fail")["runId"]

        def retry(run_id: str, key: str) -> tuple[int, str]:
            answer = caller.post(f"/v1/runs/{run_id}/retry", headers={"Idempotency-Key": key})
            return answer.status_code, answer.json()["runId"]

        first, again = retry(old, "k"), retry(old, "k")
        assert (first[0], again) == (202, (200, first[1]))
        assert retry(old, "l")[1] != first[1] != retry(other, "k")[1]

    def test_what_is_no_run_can_not_be_retried(self, caller: Caller) -> None:
        for what in ("retry", "messages", "diagnosis"):
            method = "POST" if what == "retry" else "GET"
            assert_problem(caller.request(method, f"/v1/runs/nothing/{what}"), 404, "unknown_run")

    async def test_the_client_retries(self, caller: Caller) -> None:
        old = caller.result("fail")
        async with Client(str(caller.base_url)) as client:
            new = await client.retry(old["runId"])
            assert new.retry_of == old["runId"]
            assert (await client.wait(new.run_id, 20)).status == "failed"
            completed = caller.result("say x")["runId"]
            with pytest.raises(RunConflict):
                await client.retry(completed)

    def test_the_command_line_prints_the_new_run_or_follows_it(self, caller: Caller) -> None:
        old = caller.result("fail")["runId"]
        result = durable(caller, "retry", old, "--detach")
        assert result.exit_code == 0
        new = result.stdout.strip()
        assert caller.ended(new)["retryOf"] == old
        result = durable(caller, "retry", old)
        assert result.exit_code == 1
        assert "model_error" in result.stdout
        assert durable(caller, "retry", caller.result("say x")["runId"]).exit_code == 4


class TestMessages:
    """GET /v1/runs/{id}/messages."""

    def test_a_conversation_is_told_by_roles(self, caller: Caller) -> None:
        run = caller.result('calls add {"a": 1, "b": 2}; add {"a": "x", "b": 4}')
        user, asked, returned, *rest = messages(caller, run["runId"])
        assert user == {"role": "user", "content": 'calls add {"a": 1, "b": 2}; add {"a": "x", "b": 4}'}
        assert (asked["role"], asked["content"]) == ("assistant", "")
        assert [(call["toolCallId"], call["toolName"], call["args"]) for call in asked["toolCalls"]] == [
            ("call-0", "add", {"a": 1, "b": 2}),
            ("call-1", "add", {"a": "x", "b": 4}),
        ]
        good, bad = returned["toolResults"]
        assert returned["role"] == "tool"
        assert (good["toolCallId"], good["result"]) == ("call-0", 3)
        assert (bad["toolCallId"], bad["error"]["code"]) == ("call-1", "tool_retry")
        [answer] = rest
        assert answer["role"] == "assistant"
        assert answer["content"].startswith("The tool said 3 ")

    def test_pydantic_ai_reads_its_own_form(self, caller: Caller) -> None:
        run = caller.result("say hello there")
        body = caller.get(f"/v1/runs/{run['runId']}/messages", params={"format": "pydantic-ai"}).json()
        found = ModelMessagesTypeAdapter.validate_python(body["messages"])
        assert [message.kind for message in found] == ["request", "response"]
        assert isinstance(found[1], ModelResponse)
        assert found[1].text == "hello there "
        again = caller.post(RUNS, json={"messages": [*body["messages"], body["messages"][0]]})
        assert caller.ended(again.json()["runId"])["output"] == "hello there "

    def test_what_is_under_way_is_not_part_of_it_until_a_cancel_cuts_it_off(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 50 " + "word " * 100)
        caller.wait_for_text(run_id, "word word")
        assert [message["role"] for message in messages(caller, run_id)] == ["user"]
        caller.post(f"/v1/runs/{run_id}/cancel")
        caller.ended(run_id)
        user, cut = messages(caller, run_id)
        assert (user["role"], cut["role"]) == ("user", "assistant")
        assert said(caller.log(run_id)).startswith(cut["content"]), "a cancel keeps what was said, once"

    def test_a_completed_response_is_there_while_its_tools_run(self, caller: Caller) -> None:
        run_id = held(caller)
        assert [message["role"] for message in messages(caller, run_id)] == ["user", "assistant"]
        caller.post(f"/v1/runs/{run_id}/cancel")

    def test_the_history_that_was_given_comes_first(self, caller: Caller) -> None:
        given = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "say no"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "say yes"},
        ]
        run_id = caller.post(RUNS, json={"messages": given}).json()["runId"]
        caller.ended(run_id)
        assert messages(caller, run_id) == [*given, {"role": "assistant", "content": "yes "}]

    def test_another_format_is_refused(self, caller: Caller) -> None:
        run_id = caller.result("say x")["runId"]
        assert_problem(caller.get(f"/v1/runs/{run_id}/messages?format=xml"), 400, "invalid_request")

    async def test_the_client_reads_both_forms(self, caller: Caller) -> None:
        run_id = caller.result("say hello")["runId"]
        async with Client(str(caller.base_url)) as client:
            assert [(each.role, each.content) for each in await client.messages(run_id)] == [
                ("user", "say hello"),
                ("assistant", "hello "),
            ]
            native = await client.model_messages(run_id)
        assert [message["kind"] for message in native] == ["request", "response"]
        assert TypeAdapter(list[dict[str, Any]]).validate_python(native)


class TestDiagnosis:
    """GET /v1/runs/{id}/diagnosis, and `durable why`."""

    def test_a_run_that_is_executed_says_by_whom_and_until_when(self, caller: Caller) -> None:
        run_id = held(caller)
        found = diagnosis(caller, run_id)
        assert (found["status"], found["reason"]) == ("running", "executing")
        assert found["facts"]["lease"]["details"]["owner"].count(":") == 2
        assert found["facts"]["lease"]["details"]["until"].endswith("Z")
        assert found["facts"]["workers"]["details"]["count"] >= 1
        attempts = found["facts"]["attempts"]["details"]
        assert (attempts["attempt"], attempts["maxAttempts"]) == (caller.look(run_id)["attempt"], 5)
        assert found["facts"]["progress"]["details"]["checkpointSeq"] > 0
        caller.post(f"/v1/runs/{run_id}/cancel", json={"reason": "enough"})
        caller.ended(run_id)
        assert diagnosis(caller, run_id)["facts"]["cancel"]["details"] == {"reason": "enough"}

    @pytest.mark.parametrize(
        ("prompt", "reason", "words"),
        [("say x", "completed", "It completed."), ("fail", "failed", "It failed: model_error.")],
    )
    def test_an_ended_run_says_how(self, caller: Caller, prompt: str, reason: str, words: str) -> None:
        found = diagnosis(caller, caller.result(prompt)["runId"])
        assert (found["reason"], found["summary"]) == (reason, words)
        assert "ended" in found["facts"]

    def test_the_command_line_explains_in_words(self, caller: Caller) -> None:
        run_id = caller.result("fail")["runId"]
        result = durable(caller, "why", run_id)
        assert result.exit_code == 0
        assert f"run {run_id} of scripted: failed" in result.stdout
        assert "It failed: model_error." in result.stdout
        assert "A retry starts a new run" in result.stdout
        told = json.loads(durable(caller, "why", run_id, "--json").stdout)
        assert (told["runId"], told["reason"]) == (run_id, "failed")
        assert durable(caller, "why", "nothing").exit_code == 4


def test_a_run_without_a_worker_says_so_and_is_executed_once_there_is_one(redis_url: str) -> None:
    with Deployment(redis_url) as deployment:
        deployment.start_api()
        worker = deployment.start_worker()
        with Caller(deployment.url) as caller:
            stop_child(worker)
            run_id = caller.submit("say hello")
            assert (caller.look(run_id)["status"], caller.look(run_id)["reason"]) == ("queued", "no_worker")
            [listed] = caller.get("/v1/runs").json()["runs"]
            assert listed["reason"] == "no_worker"
            found = diagnosis(caller, run_id)
            assert (found["reason"], found["summary"]) == (
                "no_worker",
                "It waits: no live worker serves the agent 'scripted'.",
            )
            assert found["facts"]["workers"]["details"] == {"count": 0}
            assert {"queued", "wakeup", "unswept"} <= set(found["facts"])
            behind = diagnosis(caller, caller.submit("say later"))
            assert behind["facts"]["ahead"]["details"] == {"count": 1}
            deployment.start_worker()
            ended = caller.ended(run_id)
            assert ended["output"] == "hello "
            assert "reason" not in ended
