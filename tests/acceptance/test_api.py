"""Every route of the API as a caller sees it: what succeeds, what is refused, and the log as a stream and as pages."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from httpx import Response

from api import problems
from tests.caller import STREAM, Caller, assert_problem, chunks_of, frames, of_type, said
from tests.deployment import wait_for

RUNS = "/v1/agents/scripted/runs"


class TestSubmit:
    """POST /v1/agents/{agent}/runs."""

    def test_the_answer_is_the_run_and_says_where_it_is(self, caller: Caller) -> None:
        answer = caller.post(RUNS, json={"prompt": "say hello", "metadata": {"order": [1, "ä"]}})
        assert answer.status_code == 202
        run = answer.json()
        assert len(run["runId"]) >= 22, "128 random bits"
        assert (run["agent"], run["metadata"]) == ("scripted", {"order": [1, "ä"]})
        assert answer.headers["location"] == run["links"]["self"] == f"/v1/runs/{run['runId']}"
        for link in ("self", "chunks"):
            assert caller.get(run["links"][link]).status_code == 200
        assert caller.ended(run["runId"])["output"] == "hello "

    def test_messages_end_with_what_the_user_says(self, caller: Caller) -> None:
        messages = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "say no"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": [{"type": "text", "text": "say yes"}]},
        ]
        run_id = caller.post(RUNS, json={"messages": messages}).json()["runId"]
        assert caller.ended(run_id)["output"] == "yes "

    def test_messages_may_be_those_of_pydantic_ai(self, caller: Caller) -> None:
        messages = [{"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "say native"}]}]
        run_id = caller.post(RUNS, json={"messages": messages}).json()["runId"]
        assert caller.ended(run_id)["output"] == "native "

    def test_max_steps_ends_a_run_that_would_go_on(self, caller: Caller) -> None:
        run = caller.result('call add {"a": 1, "b": 2}', maxSteps=1)
        assert run["status"] == "completed"
        [finish] = of_type(caller.log(run["runId"]), "finish")
        assert finish["maxStepsReached"] is True

    @pytest.mark.parametrize("by", ["runId", "Idempotency-Key"])
    def test_the_same_request_again_finds_the_run_and_another_is_a_conflict(self, caller: Caller, by: str) -> None:
        fields, headers = ({"runId": "my-own_ID"}, {}) if by == "runId" else ({}, {"Idempotency-Key": "order 4711"})

        def submit(**more: Any) -> Response:
            return caller.post(RUNS, json={"prompt": "say once", **fields, **more}, headers=headers)

        first, again = submit(metadata={"a": 1, "b": 2}), submit(metadata={"b": 2, "a": 1})
        assert (first.status_code, again.status_code) == (202, 200)
        assert first.json()["runId"] == again.json()["runId"]
        assert first.headers["location"] == again.headers["location"]
        for other in ({"metadata": {"a": 2}}, {"prompt": "say twice"}, {"maxSteps": 3}):
            assert_problem(submit(**other), 409, "run_conflict")
        run_id = first.json()["runId"]
        caller.ended(run_id)
        assert submit(metadata={"a": 1, "b": 2}).json()["status"] == "completed"
        assert len(of_type(caller.log(run_id), "start")) == 1

    def test_one_run_comes_of_many_equal_requests_at_once(self, caller: Caller) -> None:
        body = {"prompt": "say once", "runId": "at-once"}
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: caller.post(RUNS, json=body), range(24)))
        assert sorted(answer.status_code for answer in answers) == [200] * 23 + [202]
        caller.ended("at-once")
        assert len(of_type(caller.log("at-once"), "start")) == 1

    def test_an_agent_that_was_never_announced_is_unknown(self, caller: Caller) -> None:
        for name in ("nobody", "%00", "%7B%7D", "*", "a" * 10_240, "%ff"):
            assert_problem(caller.post(f"/v1/agents/{name}/runs", json={"prompt": "say x"}), 404, "unknown_agent")


class TestRun:
    """GET /v1/runs/{id} and GET /v1/runs."""

    def test_an_ended_run_tells_all_about_itself(self, caller: Caller) -> None:
        run = caller.result('call add {"a": 1, "b": 2}')
        assert (run["status"], run["attempt"], run["output"]) == ("completed", 1, "The tool said 3 ")
        assert run["createdAt"] <= run["startedAt"] <= run["finishedAt"]
        assert all(run[name].endswith("Z") for name in ("createdAt", "startedAt", "finishedAt"))
        assert run["usage"]["totalTokens"] == run["usage"]["inputTokens"] + run["usage"]["outputTokens"] > 0
        assert run["lastSeq"] == len(caller.log(run["runId"]))
        assert "error" not in run

    def test_a_run_is_seen_running(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 100 " + "word " * 100)
        caller.wait_for_text(run_id, "word word")
        run = caller.look(run_id)
        assert (run["status"], run["attempt"]) == ("running", 1)
        assert run["lastSeq"] > 0
        assert {"finishedAt", "output", "error"}.isdisjoint(run)
        assert caller.post(f"/v1/runs/{run_id}/cancel").status_code == 202

    @pytest.mark.parametrize("run_id", ["unknown", "%00", "x" * 10_240, "*", "%7B%7D", "%ff", "%2e%2e", "a b", "ä"])
    def test_what_is_no_run_is_unknown_whatever_is_asked_of_it(self, caller: Caller, run_id: str) -> None:
        path = f"/v1/runs/{run_id}"
        for answer in (
            caller.get(path),
            caller.get(f"{path}/chunks"),
            caller.get(f"{path}/chunks", headers=STREAM),
            caller.get(f"{path}/chunks?after=1&wait=30"),
            caller.post(f"{path}/cancel"),
        ):
            assert_problem(answer, 404, "unknown_run")

    @pytest.mark.parametrize("path", ["a%2Fb", "a/b", "..", ""])
    def test_a_slash_leads_nowhere(self, caller: Caller, path: str) -> None:
        if path:
            assert caller.get(f"/v1/runs/{path}").status_code == 404
        assert_problem(caller.get("/v1/nothing"), 404, "not_found")
        assert_problem(caller.delete("/v1/runs/some"), 405, "method_not_allowed")

    def test_lists_are_newest_first_and_narrowed(self, caller: Caller) -> None:
        ids = [caller.result("say x", agent="in-process")["runId"] for _ in range(3)]
        failed = caller.result("fail", agent="in-process")["runId"]
        listed = caller.get("/v1/runs", params={"agent": "in-process"}).json()["runs"]
        assert [run["runId"] for run in listed][:4] == [failed, *reversed(ids)]  # other tests have runs of it, too
        assert all("output" not in run for run in listed)
        found = caller.get("/v1/runs", params={"agent": "in-process", "status": "failed"}).json()["runs"]
        assert found[0]["runId"] == failed
        assert {run["status"] for run in found} == {"failed"}
        assert caller.get("/v1/runs", params={"agent": "nobody"}).json() == {"runs": [], "next": None}

    def test_a_list_is_not_narrowed_by_what_there_is_not(self, caller: Caller) -> None:
        assert caller.get("/v1/runs", params={"somethingElse": "t"}).status_code == 200

    def test_pages_hold_every_run_once(self, caller: Caller) -> None:
        with ThreadPoolExecutor(5) as pool:
            made = set(pool.map(lambda _: caller.submit("say x"), range(10)))
        whole = [run["runId"] for run in caller.get("/v1/runs", params={"limit": 200}).json()["runs"]]
        paged: list[str] = []
        params: dict[str, Any] = {"limit": 3}
        while len(paged) < len(whole):
            page = caller.get("/v1/runs", params=params).json()
            paged += [run["runId"] for run in page["runs"]]
            if page["next"] is None:
                break
            params["cursor"] = page["next"]
        assert paged[: len(whole)] == whole
        assert made <= set(whole)
        for run_id in made:
            caller.ended(run_id)

    def test_an_expired_run_is_gone_and_not_unknown(self, caller: Caller) -> None:
        body = {"prompt": "say x", "runId": "expires"}
        assert caller.post("/v1/agents/short-lived/runs", json=body).status_code == 202
        wait_for(lambda: caller.get("/v1/runs/expires").status_code == 410, what="the run to expire")
        for answer in (
            caller.get("/v1/runs/expires"),
            caller.get("/v1/runs/expires/chunks"),
            caller.get("/v1/runs/expires/chunks", headers=STREAM),
            caller.post("/v1/runs/expires/cancel"),
            caller.post("/v1/agents/short-lived/runs", json=body),
        ):
            assert_problem(answer, 410, "run_expired")
        assert caller.get("/v1/runs", params={"agent": "short-lived"}).json()["runs"] == []


class TestStream:
    """GET /v1/runs/{id}/chunks with Accept: text/event-stream."""

    def test_every_frame_has_its_seq_as_id_and_the_last_is_final(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 20 a b c d e f")
        with caller.open_stream(run_id) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert "no-cache" in response.headers["cache-control"]
            chunks = chunks_of(list(frames(response)))
        assert [chunk["seq"] for chunk in chunks] == list(range(1, len(chunks) + 1))
        assert [chunk["type"] for chunk in chunks if chunk.get("final")] == ["finish"]
        assert chunks[-1]["final"] is True
        assert all((chunk["runId"], chunk["attempt"], chunk["from"]) == (run_id, 1, "AGENT") for chunk in chunks)
        assert said(chunks) == "a b c d e f "

    def test_all_readers_see_the_same_bytes(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 10 " + "word " * 40)
        with ThreadPoolExecutor(4) as pool:
            live = [pool.submit(caller.frames, run_id) for _ in range(4)]
            followed = [reader.result() for reader in live]
        replayed = caller.frames(run_id)
        assert all(found == replayed for found in followed)
        page = caller.get(f"/v1/runs/{run_id}/chunks", params={"limit": 1000}).content
        assert b",".join(data for _, data in replayed) in page

    def test_any_cursor_goes_on_with_the_next_chunk(self, caller: Caller) -> None:
        run_id = caller.result('calls add {"a": 1, "b": 2}; add {"a": 3, "b": 4}')["runId"]
        whole = caller.frames(run_id)
        for after in range(len(whole)):
            assert caller.frames(run_id, after) == whole[after:]

    def test_last_event_id_wins_over_after(self, caller: Caller) -> None:
        run_id = caller.result("say a b c")["runId"]
        whole = caller.frames(run_id)
        assert caller.frames(run_id, 1, **{"Last-Event-ID": "4"}) == whole[4:]
        page = caller.get(f"/v1/runs/{run_id}/chunks?after=1", headers={"Last-Event-ID": "4"}).json()
        assert page["chunks"][0]["seq"] == 5

    def test_a_reader_who_has_all_of_an_ended_run_is_told_to_stay_away(self, caller: Caller) -> None:
        run = caller.result("say x")
        answer = caller.get(f"/v1/runs/{run['runId']}/chunks", params={"after": run["lastSeq"]}, headers=STREAM)
        assert (answer.status_code, answer.content) == (204, b"")

    def test_a_reader_who_leaves_does_no_harm(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 20 " + "word " * 20)
        with caller.open_stream(run_id) as response:
            first = next(frames(response))
        assert first[0] == 1
        assert caller.ended(run_id)["status"] == "completed"
        assert said(chunks_of(caller.frames(run_id))) == "word " * 20


class TestPages:
    """GET /v1/runs/{id}/chunks as JSON."""

    def test_limit_cuts_inside_of_what_was_written_together(self, caller: Caller) -> None:
        run = caller.result("say a b c")
        seen, after = [], 0
        while after < run["lastSeq"]:
            page = caller.get(f"/v1/runs/{run['runId']}/chunks", params={"after": after, "limit": 1}).json()
            assert (page["runId"], len(page["chunks"])) == (run["runId"], 1)
            after = page["next"]
            seen.append(after)
            assert page["final"] is (after == run["lastSeq"])
        assert seen == list(range(1, run["lastSeq"] + 1))

    def test_the_end_of_an_ended_run_is_an_empty_page_at_once(self, caller: Caller) -> None:
        run = caller.result("say x")
        page = caller.get(f"/v1/runs/{run['runId']}/chunks", params={"after": run["lastSeq"], "wait": 30}).json()
        assert page == {"runId": run["runId"], "chunks": [], "next": run["lastSeq"], "final": True}

    def test_a_long_poll_answers_with_news(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 150 a b c d")
        chunks: list[Any] = []
        final = False
        while not final:
            page = caller.get(f"/v1/runs/{run_id}/chunks", params={"after": len(chunks), "wait": 20}).json()
            assert page["chunks"], "it waits until there is something"
            chunks += page["chunks"]
            assert page["next"] == len(chunks)
            final = page["final"]
        assert said(chunks) == "a b c d "

    def test_a_long_poll_without_news_is_an_empty_page(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 1500 a")
        wait_for(lambda: caller.look(run_id)["lastSeq"] >= 2, what="the model to be asked")
        after = caller.look(run_id)["lastSeq"]
        page = caller.get(f"/v1/runs/{run_id}/chunks", params={"after": after, "wait": 0.2}).json()
        assert page == {"runId": run_id, "chunks": [], "next": after, "final": False}
        caller.ended(run_id)

    @pytest.mark.parametrize(
        "cursor", ["-1", "x", "", "1.0", "1e1", "+1", "٣", "0x1", "null", "999999", "9" * 16, "9" * 5000]
    )
    def test_a_cursor_outside_of_the_log_is_refused(self, caller: Caller, cursor: str) -> None:
        run_id = caller.result("say x")["runId"]
        path = f"/v1/runs/{run_id}/chunks"
        for headers in ({}, STREAM):
            assert_problem(caller.get(path, params={"after": cursor}, headers=headers), 400, "invalid_request")
            raw = [(b"Last-Event-ID", cursor.encode()), *((k.encode(), v.encode()) for k, v in headers.items())]
            assert_problem(caller.get(path, headers=raw), 400, "invalid_request")

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=1001", "limit=x", "wait=-1", "wait=31", "wait=nan", "wait=inf", "wait=x"]
    )
    def test_limits_are_kept(self, caller: Caller, query: str) -> None:
        run_id = caller.result("say x")["runId"]
        assert_problem(caller.get(f"/v1/runs/{run_id}/chunks?{query}"), 400, "invalid_request")


class TestCancel:
    """POST /v1/runs/{id}/cancel."""

    def test_a_running_run_ends_cancelled_and_keeps_what_it_said(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 50 " + "word " * 400)
        caller.wait_for_text(run_id, "word word")
        answer = caller.post(f"/v1/runs/{run_id}/cancel", json={"reason": "enough", "actor": "me"})
        assert (answer.status_code, answer.json()["runId"]) == (202, run_id)
        assert caller.ended(run_id)["status"] == "cancelled"
        chunks = caller.log(run_id)
        assert said(chunks).startswith("word word")
        assert of_type(chunks, "abort") == [{"reason": "enough", "actor": "me"}]
        assert chunks[-1]["payload"]["stepResult"]["reason"] == "abort"
        assert chunks[-1]["final"] is True

    def test_a_cancelled_run_may_be_cancelled_again(self, caller: Caller) -> None:
        run_id = caller.submit("slowly 50 " + "word " * 400)
        caller.post(f"/v1/runs/{run_id}/cancel")
        run = caller.ended(run_id)
        again = caller.post(f"/v1/runs/{run_id}/cancel", json={"reason": "again"})
        assert (again.status_code, again.json()) == (200, run)
        assert caller.look(run_id) == run

    @pytest.mark.parametrize("prompt", ["say x", "fail"])
    def test_a_run_that_ended_otherwise_does_not_change(self, caller: Caller, prompt: str) -> None:
        run = caller.result(prompt)
        assert_problem(caller.post(f"/v1/runs/{run['runId']}/cancel"), 409, "run_ended")
        assert caller.look(run["runId"]) == run

    @pytest.mark.parametrize(
        "body", [b"{", b"[]", b'{"reason": 1}', b'{"zq9": 1}', b'{"reason": "\\ud800"}', b'{"actor": "\\udfff"}']
    )
    def test_a_body_of_a_wrong_shape_cancels_nothing(self, caller: Caller, body: bytes) -> None:
        run_id = caller.submit("slowly 300 a b")
        answer = caller.post(f"/v1/runs/{run_id}/cancel", content=body, headers={"Content-Type": "application/json"})
        assert_problem(answer, 400, "invalid_request")
        assert "zq9" not in answer.text
        assert caller.ended(run_id)["status"] == "completed"


class TestAgentsAndHealth:
    """GET /v1/agents, /healthz, /readyz."""

    def test_agents_are_listed_with_their_tools_and_workers(self, caller: Caller) -> None:
        agents = {agent["name"]: agent for agent in caller.get("/v1/agents").json()["agents"]}
        assert {"scripted", "forgiving", "in-process", "short-lived"} <= set(agents)
        assert list(agents) == sorted(agents)
        scripted = agents["scripted"]
        assert scripted["kind"] == "evented"
        assert scripted["workers"] == 1
        tools = {tool["name"]: tool for tool in scripted["tools"]}
        assert tools["add"]["description"] == "Add two numbers."
        assert set(tools["add"]["parameters"]["properties"]) == {"a", "b"}

    def test_health_tells_of_the_process_and_readiness_of_redis_and_workers(self, caller: Caller) -> None:
        assert caller.get("/healthz").json() == {"status": "ok"}
        assert caller.get("/readyz").json() == {"status": "ok", "workers": 1}


class TestDocument:
    """GET /openapi.json."""

    def test_every_route_shows_an_example_of_each_answer(self, caller: Caller) -> None:
        document = caller.get("/openapi.json").json()
        routes = {
            (method, path): operation
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if path.startswith("/v1/")
        }
        assert {
            ("post", "/v1/agents/{agent}/runs"),
            ("get", "/v1/runs"),
            ("get", "/v1/runs/{run_id}"),
            ("post", "/v1/runs/{run_id}/cancel"),
            ("get", "/v1/runs/{run_id}/chunks"),
            ("get", "/v1/agents"),
        } <= set(routes)
        for route, operation in routes.items():
            assert "503" in operation["responses"], route
            assert "422" not in operation["responses"], route
            for status, response in operation["responses"].items():
                for media, content in response.get("content", {}).items():
                    assert "example" in content, (route, status, media)
                    if int(status) >= 400:
                        assert set(content["example"]["error"]) == {"code", "message"}
        assert document["components"]["schemas"]["SubmitBody"]["examples"]

    def test_the_submit_examples_are_accepted(self, caller: Caller) -> None:
        for example in caller.get("/openapi.json").json()["components"]["schemas"]["SubmitBody"]["examples"]:
            answer = caller.post("/v1/agents/in-process/runs", json=example)
            assert answer.status_code in {200, 202}, answer.text
            caller.ended(answer.json()["runId"])


async def test_an_error_that_nobody_foresaw_tells_nothing_to_the_caller_or_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("hunter2")

    # An error that leaves the app would be raised here, as the server would log it with its text.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get("/broken")
    assert (answer.status_code, json.loads(answer.text)) == (
        500,
        {"error": {"code": "internal_error", "message": "The server failed."}},
    )
    assert "hunter2" not in caplog.text
    assert "RuntimeError at test_api.py" in caplog.text
