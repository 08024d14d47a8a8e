"""Messages to a run that is under way, as a caller of the API sends them."""

from __future__ import annotations

from durable import Client
from tests.caller import Caller, assert_problem, of_type
from tests.deployment import Deployment


def test_a_message_is_accepted_once_and_told(caller: Caller) -> None:
    run_id = caller.submit("slowly 100 a b c d e")
    caller.wait_for_text(run_id, "a")
    path = f"/v1/runs/{run_id}/messages"
    body = {"content": "say more", "messageId": "m-7", "actor": "ada"}
    answers = [caller.post(path, json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 200]
    assert answers[0].json()["runId"] == run_id
    assert_problem(caller.post(path, json={**body, "content": "say less"}), 409, "run_conflict")
    assert caller.ended(run_id)["output"] == "more "
    told = of_type(caller.log(run_id), "user-message")
    assert told == [{"messageId": "m-7", "content": "say more", "actor": "ada"}]
    assert caller.post(path, json=body).status_code == 200, "it was told"
    assert_problem(caller.post(path, json={"content": "say more"}), 409, "run_ended")


def test_what_is_no_message_is_refused(caller: Caller) -> None:
    run_id = caller.submit("slowly 100 a b c d e")
    path = f"/v1/runs/{run_id}/messages"
    for wrong in ({}, {"content": ""}, {"content": 1}, {"content": "a", "messageId": "a b"}, {"content": "a", "x": 1}):
        assert_problem(caller.post(path, json=wrong), 400, "invalid_request")
    assert_problem(caller.post("/v1/runs/nobody/messages", json={"content": "a"}), 404, "unknown_run")
    assert_problem(caller.post(path, json={"content": "a" * 300_000}), 413, "request_too_large")
    caller.ended(run_id)


async def test_the_client_sends_one_and_has_its_run(deployment: Deployment) -> None:
    async with Client(deployment.url) as client:
        run = await client.submit("scripted", "slowly 100 a b c d e")
        assert (await client.send(run.run_id, "say more", actor="ada")).run_id == run.run_id
        assert await client.result(run.run_id) == "more "
