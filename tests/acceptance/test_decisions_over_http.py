"""People in the loop over plain HTTP: the inbox, the answers, and what is wrong with some of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from httpx import Response
from typer.testing import CliRunner

from durable.cli import app
from durable.client import Client
from durable.errors import AlreadyDecided, UnknownCall
from tests.caller import Body, Caller, assert_problem, of_type
from tests.deployment import wait_for

JSON = {"Content-Type": "application/json"}
# The model is free in this: path, query, fragment, escape, control and other characters.
STRANGE = "a/b:c d?e#f%2Fg&h\n\"'é…/approve"


def answer(caller: Caller, run_id: str, call: str, verb: str, body: Body | None = None) -> Response:
    """Answer a call."""
    return caller.post(f"/v1/runs/{run_id}/tool-calls/{quote(call, safe='')}/{verb}", json=body)


def waiting(caller: Caller, prompt: str, *calls: str, **fields: Any) -> str:
    """A run that waits for answers to these calls; its id."""
    run_id = caller.submit(prompt, "gated", **fields)

    def waits() -> bool:
        run = caller.look(run_id)
        return run["status"] == "suspended" and {call["toolCallId"] for call in run["pending"]} == set(calls)

    wait_for(waits, what=f"{run_id} to wait")
    return run_id


def output(caller: Caller, run_id: str) -> Any:
    """What became of a run."""
    return caller.ended(run_id)["output"].strip()


def inbox(caller: Caller, **params: Any) -> Body:
    """A page of all calls that wait."""
    found = caller.get("/v1/pending", params={"agent": "gated", **params})
    assert found.status_code == 200, found.text
    page: Body = found.json()
    return page


def test_an_approved_call_is_made_and_the_run_tells_who_said_so(caller: Caller) -> None:
    run_id = waiting(caller, 'call refund {"amount": 500}', "call-0")
    run = caller.look(run_id)
    assert run["reason"] == "decision"
    [call] = run["pending"]
    assert (call["toolName"], call["kind"], call["args"]) == ("refund", "approval", {"amount": 500})
    assert set(call["links"]) == {"approve", "decline"}

    answered = caller.post(call["links"]["approve"], json={"actor": "ada"})
    assert answered.status_code == 200
    assert answered.json()["runId"] == run_id
    [decision] = answered.json()["decisions"]
    assert (decision["decision"], decision["actor"], decision["toolName"]) == ("approve", "ada", "refund")
    assert output(caller, run_id) == "The tool said refunded 500"
    [decided] = of_type(caller.log(run_id), "tool-call-decided")
    assert (decided["decision"], decided["actor"]) == ("approve", "ada")


def test_the_same_answer_again_is_fine_for_ever_and_another_is_told_what_was_decided(caller: Caller) -> None:
    run_id = waiting(caller, 'call refund {"amount": 1}', "call-0")
    assert answer(caller, run_id, "call-0", "approve", {"args": {"amount": 2}, "actor": "ada"}).status_code == 200
    for _ in range(2):
        assert answer(caller, run_id, "call-0", "approve", {"args": {"amount": 2}}).status_code == 200
        for verb, body in (("approve", None), ("approve", {"args": {"amount": 3}}), ("decline", {"actor": "bob"})):
            details = assert_problem(answer(caller, run_id, "call-0", verb, body), 409, "already_decided")
            assert (details["decision"]["decision"], details["decision"]["actor"]) == ("approve", "ada")
            assert details["decision"]["at"].endswith("Z")
        assert output(caller, run_id) == "The tool said refunded 2"
    assert len(of_type(caller.log(run_id), "tool-call-decided")) == 1


def test_of_many_who_answer_at_once_one_decides(caller: Caller) -> None:
    run_id = waiting(caller, 'call refund {"amount": 1}', "call-0")
    with ThreadPoolExecutor(10) as pool:
        verbs = ["approve", "decline"] * 10
        statuses = list(pool.map(lambda verb: answer(caller, run_id, "call-0", verb).status_code, verbs))
    assert sorted(statuses) == [200] * 10 + [409] * 10
    caller.ended(run_id)
    chunks = caller.log(run_id)
    assert len(of_type(chunks, "tool-call-decided")) + len(of_type(chunks, "tool-output-denied")) == 1


def test_a_declined_call_is_not_made(caller: Caller) -> None:
    run_id = waiting(caller, 'call refund {"amount": 1}', "call-0")
    assert answer(caller, run_id, "call-0", "decline", {"reason": "too much", "actor": "ada"}).status_code == 200
    assert output(caller, run_id) == "The tool said too much"
    [denied] = of_type(caller.log(run_id), "tool-output-denied")
    assert denied["approval"] == {"id": "call-0", "approved": False, "reason": "too much", "actor": "ada"}


def test_a_suspended_tool_and_one_outside_are_resumed_in_any_order(caller: Caller) -> None:
    run_id = waiting(caller, 'calls paint; outside {"x": 1}; outside', "call-0", "call-1", "call-2")
    links = [set(call["links"]) for call in caller.look(run_id)["pending"]]
    assert links == [{"resume", "decline"}] * 3
    assert answer(caller, run_id, "call-2", "resume", {"data": None}).status_code == 200
    assert answer(caller, run_id, "call-1", "resume", {"data": ["done"]}).status_code == 200
    assert answer(caller, run_id, "call-0", "resume", {"data": {"colour": "blue"}}).status_code == 200
    assert output(caller, run_id) == 'The tool said painted blue and ["done"] and'


def test_a_run_may_ask_for_more_approvals_than_its_agent(caller: Caller) -> None:
    both = 'calls add {"a": 1, "b": 2}; add {"a": 200, "b": 2}'
    run_id = waiting(caller, both, "call-1", requireToolApproval="large")
    answer(caller, run_id, "call-1", "approve")
    assert output(caller, run_id) == "The tool said 3 and 202"
    waiting(caller, both, "call-0", "call-1", requireToolApproval=True)
    run = caller.result(both, "gated", requireToolApproval=False)
    assert run["status"] == "completed"
    for wrong in ("unheard-of", "", 7, ["large"]):
        refused = caller.post("/v1/agents/gated/runs", json={"prompt": "say x", "requireToolApproval": wrong})
        assert_problem(refused, 400, "invalid_request")


def test_an_id_of_whatever_characters_is_answered(caller: Caller) -> None:
    run_id = waiting(caller, f'as {json.dumps(STRANGE)} refund {{"amount": 1}}', STRANGE)
    [call] = [call for call in inbox(caller, limit=200)["pending"] if call["runId"] == run_id]
    assert call["toolCallId"] == STRANGE
    assert caller.get(call["links"]["run"]).json()["runId"] == run_id
    assert caller.post(call["links"]["approve"]).status_code == 200
    assert output(caller, run_id) == "The tool said refunded 1"


def test_a_slash_in_an_id_need_not_be_encoded(caller: Caller) -> None:
    run_id = waiting(caller, 'as "a/b" refund {"amount": 1}', "a/b")
    assert caller.post(f"/v1/runs/{run_id}/tool-calls/a/b/approve").status_code == 200
    caller.ended(run_id)


def asked(caller: Caller, run_id: str, question: str) -> Body:
    """The call that waits, once it is asked this."""

    def waits() -> bool:
        return [call["questionId"] for call in caller.look(run_id).get("pending", [])] == [question]

    wait_for(waits, what=f"the question {question} of {run_id}")
    [call] = caller.look(run_id)["pending"]
    found: Body = call
    return found


TARTAN: Body = {"data": {"colour": "tartan"}, "actor": "ada"}


class TestQuestions:
    """A call that is asked about again."""

    @pytest.fixture
    def again(self, caller: Caller) -> str:
        """A run whose call was asked twice, and answered once."""
        run_id = waiting(caller, "call paint", "call-0")
        first = asked(caller, run_id, "1.0")
        assert caller.post(first["links"]["resume"], json=TARTAN).status_code == 200
        asked(caller, run_id, "1.1")
        return run_id

    def test_the_link_of_a_question_answers_no_later_one(self, caller: Caller, again: str) -> None:
        path = f"/v1/runs/{again}/tool-calls/call-0"
        stale = f"{path}/resume?questionId=1.0"
        assert caller.post(stale, json=TARTAN).status_code == 200
        for verb, other in (("resume", {"data": {"colour": "red"}}), ("decline", None)):
            details = assert_problem(caller.post(f"{path}/{verb}?questionId=1.0", json=other), 409, "already_decided")
            decision = details["decision"]
            assert decision.pop("at").endswith("Z")
            assert decision == {
                "toolCallId": "call-0",
                "questionId": "1.0",
                "toolName": "paint",
                "decision": "resume",
                "actor": "ada",
            }
        now = asked(caller, again, "1.1")
        assert now["links"] == {verb: f"{path}/{verb}?questionId=1.1" for verb in ("resume", "decline")}
        [listed] = [call for call in inbox(caller, limit=200)["pending"] if call["runId"] == again]
        assert listed["questionId"] == "1.1"
        assert {name: link for name, link in listed["links"].items() if name != "run"} == now["links"]
        body: Body = {"data": {"colour": "blue"}, "actor": "bob", "questionId": "1.1"}
        assert answer(caller, again, "call-0", "resume", body).status_code == 200
        assert output(caller, again) == "The tool said painted blue"
        for _ in range(2):
            assert caller.post(stale, json=TARTAN).status_code == 200
            assert answer(caller, again, "call-0", "resume", TARTAN | {"questionId": "1.0"}).status_code == 200
            assert answer(caller, again, "call-0", "resume", body).status_code == 200
        decided = [(found["questionId"], found["actor"]) for found in caller.look(again)["decisions"]]
        assert decided == [("1.0", "ada"), ("1.1", "bob")]
        chunks = caller.log(again)
        assert [found["questionId"] for found in of_type(chunks, "tool-call-suspended")] == ["1.0", "1.1"]
        assert [found["questionId"] for found in of_type(chunks, "tool-call-decided")] == ["1.0", "1.1"]

    def test_what_names_no_question_of_the_call_changes_nothing(self, caller: Caller, again: str) -> None:
        path = f"/v1/runs/{again}/tool-calls/call-0/resume"
        for question in ("1.2", "2.0"):
            assert_problem(caller.post(path, json=TARTAN | {"questionId": question}), 404, "unknown_call")
            assert_problem(caller.post(path, json=TARTAN, params={"questionId": question}), 404, "unknown_call")
        for wrong in ("", "zq9", "1.0zq9", "zq9" * 1000, 1.1, ["1.1"]):
            refused = caller.post(path, json={**TARTAN, "questionId": wrong})
            assert_problem(refused, 400, "invalid_request")
            assert "zq9" not in refused.text
        both = caller.post(path, json=TARTAN | {"questionId": "1.1"}, params={"questionId": "1.0"})
        assert_problem(both, 400, "invalid_request")
        asked(caller, again, "1.1")
        agreed = caller.post(path, json=TARTAN | {"questionId": "1.1"}, params={"questionId": "1.1"})
        assert agreed.status_code == 200
        asked(caller, again, "1.2")
        assert caller.post(f"/v1/runs/{again}/cancel").status_code == 202
        assert caller.post(path, json=TARTAN, params={"questionId": "1.0"}).status_code == 200
        assert_problem(caller.post(path, json=TARTAN, params={"questionId": "1.2"}), 409, "run_ended")

    def test_of_many_who_answer_two_questions_each_has_one_answer(self, caller: Caller, again: str) -> None:
        def attempt(i: int) -> int:
            body = {"data": {"colour": f"c{i}"}, "questionId": f"1.{i % 2}"}
            return answer(caller, again, "call-0", "resume", body).status_code

        with ThreadPoolExecutor(10) as pool:
            statuses = list(pool.map(attempt, range(20)))
        assert set(statuses[::2]) == {409}, "what is asked now is not answered by what was said before"
        assert sorted(statuses[1::2]) == [200] + [409] * 9
        assert output(caller, again) == f"The tool said painted c{statuses.index(200)}"

    async def test_the_client_answers_the_question_that_it_has_read(self, caller: Caller, again: str) -> None:
        async with Client(str(caller.base_url)) as client:
            view = await client.resume(again, "call-0", TARTAN["data"], question="1.0")
            [call] = view.pending or []
            assert call.question_id == "1.1"
            with pytest.raises(AlreadyDecided) as refused:
                await client.decline(again, "call-0", question="1.0")
            assert refused.value.details["decision"]["toolName"] == "paint"
            with pytest.raises(UnknownCall):
                await client.approve(again, "call-0", question="7.0")
            await client.decline(again, "call-0", reason="no", question=call.question_id)
            assert await client.result(again) == "The tool said no "

    def test_the_command_line_answers_what_it_is_told_or_what_is_asked_now(self, caller: Caller, again: str) -> None:
        def resume(colour: str, *options: str) -> tuple[int, str]:
            data = json.dumps({"colour": colour})
            arguments = ["--url", str(caller.base_url), "resume", again, "call-0", "--data", data, *options]
            found = CliRunner().invoke(app, arguments)
            return found.exit_code, found.stdout or found.stderr

        assert resume("tartan", "--question", "1.0")[0] == 0
        assert resume("blue", "--question", "1.0")[0] == 4
        asked(caller, again, "1.1")
        code, said = resume("blue", "--actor", "grace")
        assert (code, said.splitlines()[0].partition(";")[0]) == (0, "call call-0 is resumed by grace")
        assert output(caller, again) == "The tool said painted blue"
        assert resume("blue")[0] == 0
        assert resume("red")[0] == 4


class TestInbox:
    """GET /v1/pending."""

    def test_it_has_the_calls_of_all_runs_that_wait_and_no_others(self, caller: Caller) -> None:
        runs = [waiting(caller, 'calls refund {"amount": 1}; paint', "call-0", "call-1") for _ in range(2)]
        answer(caller, runs[0], "call-1", "decline")
        mine = [call for call in inbox(caller, limit=200)["pending"] if call["runId"] in runs]
        assert [(call["runId"], call["toolCallId"]) for call in mine] == [
            (runs[0], "call-0"), (runs[1], "call-0"), (runs[1], "call-1"),
        ]  # fmt: skip
        assert {call["agent"] for call in mine} == {"gated"}
        assert sorted(mine, key=lambda call: str(call["since"])) == mine
        assert inbox(caller, agent="scripted") == {"pending": [], "next": None}
        wait_for(lambda: caller.look(runs[0])["status"] == "suspended", what="the first run to wait again")
        listed = caller.get("/v1/runs", params={"status": "suspended", "agent": "gated", "limit": 200}).json()["runs"]
        assert [len(run["pending"]) for run in listed if run["runId"] in runs] == [2, 1]
        for run_id in runs:
            assert caller.post(f"/v1/runs/{run_id}/cancel").status_code == 202
        assert not [call for call in inbox(caller, limit=200)["pending"] if call["runId"] in runs]

    def test_a_cursor_holds_while_calls_come_and_go(self, caller: Caller) -> None:
        calls = "; ".join(['refund {"amount": 1}'] * 6)
        run_id = waiting(caller, f"calls {calls}", *(f"call-{i}" for i in range(6)))
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = inbox(caller, limit=1, **cursor)
            for call in page["pending"]:
                if call["runId"] == run_id:
                    # What was seen goes: a count of calls would now skip the next one.
                    answer(caller, run_id, call["toolCallId"], "decline")
                    seen.append(call["toolCallId"])
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert seen == [f"call-{i}" for i in range(6)]
        caller.ended(run_id)

    @pytest.mark.parametrize(
        "params",
        [{"cursor": "zq9"}, {"cursor": "5"}, {"cursor": "1.a"}, {"limit": 0}, {"limit": 201}, {"limit": "zq9"}],
        ids=str,
    )
    def test_what_it_does_not_understand_is_refused(self, caller: Caller, params: dict[str, Any]) -> None:
        refused = caller.get("/v1/pending", params=params)
        assert_problem(refused, 400, "invalid_request")
        assert "zq9" not in refused.text


@pytest.fixture(scope="module")
def run_id(caller: Caller) -> str:
    """A run that waits for two answers that it is never given."""
    return waiting(caller, 'calls refund {"amount": 1}; paint', "call-0", "call-1")


class TestBadInput:
    """What leaves a call as it was."""

    @pytest.fixture(autouse=True)
    def unchanged(self, caller: Caller, run_id: str) -> Any:
        """Whatever is tried, both calls still wait."""
        before = caller.look(run_id)
        yield
        assert caller.look(run_id) == before

    @pytest.mark.parametrize("verb", ["approve", "decline", "resume"])
    @pytest.mark.parametrize("call", ["call-9", "", "a/b", "%00", "x" * 10_000, "call-0:", "1+0:call-0"])
    def test_a_call_that_the_run_does_not_have_is_unknown(
        self, caller: Caller, run_id: str, verb: str, call: str
    ) -> None:
        assert_problem(answer(caller, run_id, call, verb, {"data": 1} if verb == "resume" else {}), 404, "unknown_call")

    def test_a_call_of_another_run_is_unknown(self, caller: Caller, run_id: str) -> None:
        other = waiting(caller, 'as "call-of-other" refund {"amount": 1}', "call-of-other")
        assert_problem(answer(caller, run_id, "call-of-other", "approve"), 404, "unknown_call")
        assert len(caller.look(other)["pending"]) == 1

    def test_a_call_that_never_waited_is_unknown(self, caller: Caller) -> None:
        run = caller.result('call add {"a": 1, "b": 2}', "gated")
        assert_problem(answer(caller, run["runId"], "call-0", "approve"), 404, "unknown_call")

    @pytest.mark.parametrize("run", ["nope", "%00", "*", "x" * 1000])
    def test_there_is_no_such_run(self, caller: Caller, run: str) -> None:
        assert_problem(caller.post(f"/v1/runs/{run}/tool-calls/call-0/approve"), 404, "unknown_run")

    @pytest.mark.parametrize(
        ("call", "verb", "body"),
        [
            ("call-0", "resume", {"data": 1}),
            ("call-1", "approve", {}),
            ("call-0", "approve", {"args": {}}),
            ("call-0", "approve", {"args": {"amount": "zq9"}}),
            ("call-0", "approve", {"args": {"amount": 1.5}}),
            ("call-0", "approve", {"args": {"amount": 1, "zq9": 1}}),
            ("call-0", "approve", {"args": ["zq9"]}),
            ("call-0", "approve", {"args": "zq9"}),
            ("call-0", "approve", {"zq9": 1}),
            ("call-0", "approve", {"reason": "zq9"}),
            ("call-0", "approve", {"actor": "zq9" * 67}),
            ("call-0", "approve", {"actor": 9}),
            ("call-0", "approve", {"actor": "deadline"}),
            ("call-1", "approve", {"actor": "deadline"}),
            ("call-0", "decline", {"reason": "zq9" * 334}),
            ("call-0", "decline", {"args": {"amount": 1}}),
            ("call-0", "decline", {"reason": "\ud800"}),
            ("call-1", "resume", {}),
            ("call-1", "resume", {"actor": "ada"}),
            ("call-1", "resume", {"data": None}),
            ("call-1", "resume", {"data": "zq9"}),
            ("call-1", "resume", {"data": {"colour": 9}}),
            ("call-1", "resume", {"data": {"zq9": "blue"}}),
            ("call-1", "resume", {"data": {"colour": "\ud800"}}),
            ("call-1", "resume", {"data": {"colour": "blue", "n": 2**70}}),
        ],
    )
    def test_what_is_no_answer_to_what_is_asked_is_refused_without_an_echo(
        self, caller: Caller, run_id: str, call: str, verb: str, body: Body
    ) -> None:
        path = f"/v1/runs/{run_id}/tool-calls/{call}/{verb}"
        refused = caller.post(path, content=json.dumps(body).encode(), headers=JSON)
        assert_problem(refused, 400, "invalid_request")
        assert "zq9" not in refused.text

    @pytest.mark.parametrize("verb", ["approve", "decline", "resume"])
    @pytest.mark.parametrize("body", ["{", "zq9", "[]", '"zq9"', "1", "\x00", "[" * 100_000, '{"data": NaN'])
    def test_what_is_no_json_object_is_refused(self, caller: Caller, run_id: str, verb: str, body: str) -> None:
        path = f"/v1/runs/{run_id}/tool-calls/call-0/{verb}"
        refused = caller.post(path, content=body.encode(), headers=JSON)
        assert_problem(refused, 400, "invalid_request")
        assert "zq9" not in refused.text

    def test_a_number_that_json_does_not_have_is_none(self, caller: Caller, run_id: str) -> None:
        path = f"/v1/runs/{run_id}/tool-calls/call-0/approve"
        assert_problem(caller.post(path, content=b'{"args": {"amount": NaN}}', headers=JSON), 400, "invalid_request")

    @pytest.mark.parametrize("size", [262_145, 1_000_000, 1_048_577])
    def test_an_answer_of_a_megabyte_is_too_large(self, caller: Caller, run_id: str, size: int) -> None:
        large = {"data": {"colour": "x" * size}}
        assert_problem(answer(caller, run_id, "call-1", "resume", large), 413, "request_too_large")

    def test_a_large_answer_is_taken(self, caller: Caller) -> None:
        run_id = waiting(caller, "call outside", "call-0")
        assert answer(caller, run_id, "call-0", "resume", {"data": "x" * 200_000}).status_code == 200
        assert len(output(caller, run_id)) > 200_000

    def test_there_are_three_verbs(self, caller: Caller, run_id: str) -> None:
        assert_problem(answer(caller, run_id, "call-0", "explode"), 404, "not_found")
        path = f"/v1/runs/{run_id}/tool-calls/call-0/approve"
        assert_problem(caller.get(path), 405, "method_not_allowed")

    def test_a_call_that_nobody_answered_can_not_be_answered_after_the_end_of_its_run(self, caller: Caller) -> None:
        run_id = waiting(caller, 'call refund {"amount": 1}', "call-0")
        assert caller.post(f"/v1/runs/{run_id}/cancel").status_code == 202
        for verb in ("approve", "decline"):
            assert_problem(answer(caller, run_id, "call-0", verb), 409, "run_ended")
        assert "pending" not in caller.look(run_id)

    def test_a_deadline_in_the_past_fails_the_run_and_waits_for_nobody(self, caller: Caller) -> None:
        run = caller.result("call too_late", "gated")
        assert (run["status"], run["error"]["code"]) == ("failed", "configuration_error")
        assert_problem(answer(caller, run["runId"], "call-0", "decline"), 404, "unknown_call")


def test_the_examples_of_the_answers_are_shown_and_accepted(caller: Caller) -> None:
    schemas = caller.get("/openapi.json").json()["components"]["schemas"]
    for name, verb, prompt in (
        ("ApproveBody", "approve", 'call refund {"amount": 1}'),
        ("DeclineBody", "decline", 'call refund {"amount": 1}'),
        ("ResumeBody", "resume", "call outside"),
    ):
        for example in schemas[name]["examples"]:
            run_id = waiting(caller, prompt, "call-0")
            body = {**example, "args": {"amount": 1}} if "args" in example else example
            assert answer(caller, run_id, "call-0", verb, body).status_code == 200
            caller.ended(run_id)


def test_why_tells_of_the_call_that_a_run_waits_for(caller: Caller) -> None:
    run_id = waiting(caller, 'call refund {"amount": 1}', "call-0")
    found = caller.get(f"/v1/runs/{run_id}/diagnosis").json()
    assert (found["reason"], found["summary"]) == ("decision", "It waits for somebody to answer a tool call.")
    assert found["facts"][0]["details"]["toolCallId"] == "call-0"
    caller.post(f"/v1/runs/{run_id}/cancel")
