"""The client against a server on the loopback address that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from durable import errors
from durable.chunks import Chunk, TextDelta, UnknownChunk
from durable.client import Backoff, Client
from durable.views import RunStatus
from tests.scripted_api import DEADLINE_SECONDS, ScriptedApi, Stream, problem, run_object, sse, text_log

FAST = Backoff(first=0.01, cap=0.05, patience=DEADLINE_SECONDS)
HASTY = Backoff(first=0.01, cap=0.05, patience=0.2)


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi() as server:
        yield server


def client_of(api: ScriptedApi, **options: Any) -> Client:
    return Client(api.url, **{"retry": FAST, "reconnect": FAST, **options})


async def seqs_of(client: Client, after: int = 0) -> list[int]:
    return [chunk.seq async for chunk in client.observe("run-1", after)]


def bodies(api: ScriptedApi) -> list[bytes]:
    return [body for method, _, _, body in api.requests if method == "POST"]


# --- people in the loop ---


async def test_an_answer_is_sent_again_until_somebody_takes_it(api: ScriptedApi) -> None:
    api.answers.extend([problem(503, "store_unavailable"), problem(502, "bad_gateway")])
    async with client_of(api) as client:
        view = await client.approve("run-1", "a/b?c", args={"n": 1}, actor="ada")
    assert view.run_id == "run-1"
    assert [target for _, target, _, _ in api.requests] == ["/v1/runs/run-1/tool-calls/a/b%3Fc/approve"] * 3
    assert [json.loads(body) for body in bodies(api)] == [{"args": {"n": 1}, "actor": "ada"}] * 3


async def test_what_is_not_said_is_not_sent_but_null_is_data(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        await client.approve("run-1", "c1")
        await client.decline("run-1", "c1", reason="no")
        await client.resume("run-1", "c1", None)
        await client.approve("run-1", "c1", question="1.0")
        await client.decline("run-1", "c1", question="1.1")
        await client.resume("run-1", "c1", 1, question="2.0")
    assert [json.loads(body) for body in bodies(api)] == [
        {},
        {"reason": "no"},
        {"data": None},
        {"questionId": "1.0"},
        {"questionId": "1.1"},
        {"data": 1, "questionId": "2.0"},
    ]


async def test_a_refused_answer_tells_what_was_decided(api: ScriptedApi) -> None:
    decision = {"decision": "decline", "actor": "ada", "at": "2026-01-02T03:04:05Z"}
    error = {"code": "already_decided", "message": "No.", "details": {"decision": decision}}
    api.answers.append(JSONResponse({"error": error}, 409))
    async with client_of(api) as client:
        with pytest.raises(errors.AlreadyDecided) as refused:
            await client.approve("run-1", "c1")
    assert refused.value.details["decision"] == decision


@pytest.mark.parametrize("call", ["", ".", "..", "\ud800"])
async def test_an_id_that_no_path_can_hold_is_not_sent(api: ScriptedApi, call: str) -> None:
    async with client_of(api) as client:
        with pytest.raises(errors.InvalidRequest):
            await client.approve("run-1", call)
    assert api.requests == []


async def test_the_calls_that_wait_are_read_page_by_page(api: ScriptedApi) -> None:
    api.pending = [{"runId": "run-1", "agent": "echo", "toolCallId": "c1", "toolName": "refund", "kind": "approval"}]
    async with client_of(api) as client:
        page = await client.pending(agent="echo", limit=1, cursor="5.run-0%3Ac")
    assert [(call.run_id, call.tool_call_id, call.since) for call in page.pending] == [("run-1", "c1", None)]
    assert api.requests[0][1] == "/v1/pending?agent=echo&limit=1&cursor=5.run-0%253Ac"


# --- observe ---


async def test_every_chunk_comes_once_and_in_order(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        chunks = [chunk async for chunk in client.observe("run-1")]
    assert [chunk.to_wire() for chunk in chunks] == api.log
    assert api.cursors == [0]


async def test_every_seq_comes_once_when_the_connection_breaks_at_each_place(api: ScriptedApi) -> None:
    last = len(api.log)
    api.streams.extend(Stream(until=seq, cut=True) for seq in range(last))
    async with client_of(api) as client:
        assert await seqs_of(client) == list(range(1, last + 1))
    assert api.cursors == [0, *range(last)]


async def test_a_stream_that_ends_without_the_final_chunk_is_asked_for_again(api: ScriptedApi) -> None:
    api.streams.extend([Stream(until=3), Stream(until=3), Stream(until=5)])
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0, 3, 3, 5]


async def test_a_frame_that_is_cut_in_its_middle_comes_whole_from_the_next_connection(api: ScriptedApi) -> None:
    api.streams.append(Stream(until=4, tail=sse(api.log[4])[:-20], cut=True))
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0, 4]


def tree_log() -> list[dict[str, Any]]:
    """What a server tells of a run with a child."""
    rows = [("run-1", 1, "1"), ("kid", 1, "1(0:1)"), ("kid", 2, "1.1"), ("run-1", 2, "2.1"), ("run-1", 3, "3")]
    ends = {("kid", 2), ("run-1", 3)}
    return [
        {"type": "x", "runId": run, "seq": seq, "cursor": cursor, **({"final": True} if (run, seq) in ends else {})}
        for run, seq, cursor in rows
    ]


async def tree_of(client: Client, after: str = "0") -> list[tuple[str, int, str]]:
    return [(chunk.run_id, chunk.seq, chunk.cursor) async for chunk in client.observe("run-1", after, tree=True)]


async def test_a_tree_is_followed_with_the_cursor_that_the_server_gives_wherever_the_connection_breaks(
    api: ScriptedApi,
) -> None:
    api.log = tree_log()
    whole = [(each["runId"], each["seq"], each["cursor"]) for each in api.log]
    api.streams.extend(Stream(until=place, cut=True) for place in range(5))
    async with client_of(api) as client:
        assert await tree_of(client) == whole
        assert await tree_of(client, "1(0:1)") == whole[2:]
        assert await tree_of(client, "3") == []
    assert all("tree=true" in target for _, target, _, _ in api.requests)


async def test_in_a_tree_a_duplicate_is_skipped_and_a_gap_asked_for_again(api: ScriptedApi) -> None:
    api.log = tree_log()
    whole = [(each["runId"], each["seq"], each["cursor"]) for each in api.log]
    api.streams.append(Stream(edit=lambda log: [*log[:2], log[0], log[1], log[2], log[4]]))
    async with client_of(api) as client:
        assert await tree_of(client) == whole
    assert api.cursors == [0, 3]


async def test_a_duplicate_is_skipped(api: ScriptedApi) -> None:
    api.streams.append(Stream(edit=lambda log: [*log[:3], log[0], log[2], *log[2:]]))
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0]


async def test_a_gap_is_never_shown_but_asked_for_again(api: ScriptedApi) -> None:
    api.streams.append(Stream(edit=lambda log: [*log[:3], *log[4:]]))
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0, 3]


@pytest.mark.parametrize("tail", [b"data: {broken\n\n", b"data: [1]\n\n", b'data: {"type": 1, "seq": 3}\n\n'])
async def test_a_broken_frame_is_a_drop(api: ScriptedApi, tail: bytes) -> None:
    api.streams.append(Stream(until=2, tail=tail, hold=True))
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0, 2]


async def test_a_log_that_stays_broken_is_given_up_with_an_error(api: ScriptedApi) -> None:
    del api.log[3]
    async with client_of(api) as client:
        stream = client.observe("run-1")
        assert [(await anext(stream)).seq for _ in range(3)] == [1, 2, 3]
        with pytest.raises(errors.ServerUnreachable, match="keeps breaking after chunk 3"):
            await anext(stream)


async def test_gaps_with_progress_between_them_are_never_given_up(api: ScriptedApi) -> None:
    api.streams.extend(Stream(edit=lambda log: [log[0], *log[2:]]) for _ in range(6))
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0, 1, 2, 3, 4, 5, 6]


async def test_a_run_that_is_silent_for_long_is_never_given_up(api: ScriptedApi) -> None:
    # As behind a proxy that ends idle streams: each connection is taken, and brings nothing.
    api.streams.extend(Stream(until=0) for _ in range(40))
    async with client_of(api, reconnect=HASTY) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(api.cursors) == 41


async def test_what_is_no_event_stream_is_given_up_with_an_error(api: ScriptedApi) -> None:
    api.streams.extend(PlainTextResponse("<html>") for _ in range(10))
    async with client_of(api) as client:
        with pytest.raises(errors.ServerUnreachable):
            await seqs_of(client)


async def test_frames_of_another_type_are_not_chunks(api: ScriptedApi) -> None:
    api.streams.append(Stream(until=2, tail=b"event: presence\ndata: nobody\n\n" + sse(api.log[2])))
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0, 3]


async def test_a_chunk_whose_payload_is_of_a_newer_form_is_given_out_as_it_is(api: ScriptedApi) -> None:
    api.log[3]["payload"] = {"words": ["Hel"]}
    async with client_of(api) as client:
        chunks = [chunk async for chunk in client.observe("run-1")]
    assert type(chunks[3]) is UnknownChunk
    assert chunks[3].to_wire() == api.log[3]


async def test_a_reader_who_has_it_all_ends_at_once(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        assert await seqs_of(client, after=8) == []
    assert api.cursors == [8]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "unknown_run", errors.UnknownRun),
        (410, "run_expired", errors.RunExpired),
        (400, "invalid_request", errors.InvalidRequest),
    ],
)
async def test_a_refusal_ends_observing_with_its_class(
    api: ScriptedApi, status: int, code: str, kind: type[errors.DurableError]
) -> None:
    api.streams.extend([Stream(until=2, cut=True), problem(status, code, "Because.")])
    async with client_of(api) as client:
        seen: list[Chunk] = []
        with pytest.raises(kind, match=r"Because\."):
            seen.extend([chunk async for chunk in client.observe("run-1")])
    assert api.cursors == [0, 2]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_passing_trouble_of_the_server_is_waited_out(api: ScriptedApi, status: int) -> None:
    api.streams.extend([Stream(until=2), problem(status, "internal_error"), PlainTextResponse("proxy", status)])
    async with client_of(api) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_the_servers_retry_after_is_honoured_while_observing(api: ScriptedApi) -> None:
    api.streams.append(problem(503, "store_unavailable", **{"Retry-After": "3600"}))
    async with client_of(api, reconnect=HASTY) as client:
        # An hour is more than this client is willing to wait; it must not ask sooner instead.
        with pytest.raises(errors.StoreUnavailable):
            await seqs_of(client)
    assert api.cursors == [0]


class Watched(httpx.AsyncHTTPTransport):
    """Tells when a connection was refused."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except httpx.ConnectError:
            self.refused.set()
            raise


async def test_a_server_that_was_gone_and_is_back_goes_on_from_the_cursor(api: ScriptedApi) -> None:
    api.streams.append(Stream(until=3, hold=True))
    transport = Watched()
    async with client_of(api, transport=transport) as client:
        stream = client.observe("run-1")
        seen = [(await anext(stream)).seq for _ in range(3)]
        await asyncio.to_thread(api.stop)

        async def rest() -> list[int]:
            return [chunk.seq async for chunk in stream]

        reading = asyncio.create_task(rest())
        async with asyncio.timeout(DEADLINE_SECONDS):
            await transport.refused.wait()
            await asyncio.to_thread(api.start)
            seen += await reading
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors == [0, 3]


async def test_a_server_that_stays_away_is_given_up_with_an_error(api: ScriptedApi) -> None:
    api.stop()
    async with client_of(api, reconnect=HASTY) as client:
        with pytest.raises(errors.ServerUnreachable, match=r"can't be reached"):
            await seqs_of(client)


async def test_a_silent_connection_counts_as_lost(api: ScriptedApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.client.subscription._SILENCE_SECONDS", 0.1)
    api.streams.append(Stream(until=3, hold=True))
    async with client_of(api, timeout=0.1) as client:
        assert await seqs_of(client) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert api.cursors[:2] == [0, 3]


async def test_a_reader_may_leave_at_any_time_and_the_client_goes_on(api: ScriptedApi) -> None:
    api.streams.append(Stream(until=3, hold=True))
    async with client_of(api) as client:
        async for chunk in client.observe("run-1"):
            if chunk.seq == 2:
                break
        assert await seqs_of(client, after=6) == [7, 8]


async def test_many_runs_can_be_followed_with_one_client(api: ScriptedApi) -> None:
    readers = 120  # more than httpx opens by default
    api.streams.extend(Stream(until=3, hold=True) for _ in range(readers))
    async with client_of(api) as client:
        streams = [client.observe("run-1") for _ in range(readers)]
        async with asyncio.timeout(DEADLINE_SECONDS):
            firsts = await asyncio.gather(*(anext(stream) for stream in streams))
            assert {chunk.seq for chunk in firsts} == {1}
            api.release()
            for stream in streams:
                await stream.aclose()


# --- submit and the other calls ---


async def test_submit_sends_what_was_given_and_nothing_else(api: ScriptedApi) -> None:
    async with client_of(api, headers={"authorization": "Bearer t"}) as client:
        view = await client.submit("my agent", "hi", run_id="r-9", metadata={"a": 1}, max_steps=3)
    assert (view.run_id, view.status) == ("r-9", RunStatus.QUEUED)
    (method, target, headers, body) = api.requests[0]
    assert (method, target) == ("POST", "/v1/agents/my agent/runs")
    assert json.loads(body) == {"prompt": "hi", "runId": "r-9", "metadata": {"a": 1}, "maxSteps": 3}
    assert (headers["authorization"], headers["content-type"]) == ("Bearer t", "application/json")
    assert "idempotency-key" not in headers


async def test_submit_without_a_run_id_makes_up_a_key_of_its_own(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        await client.submit("echo", "hi")
        await client.submit("echo", "hi")
    keys = [headers["idempotency-key"] for _, _, headers, _ in api.requests]
    assert len(set(keys)) == 2
    assert min(map(len, keys)) >= 22


async def test_submit_is_repeated_with_the_same_key_and_bytes_until_the_store_is_back(api: ScriptedApi) -> None:
    api.submits.extend(
        [problem(503, "store_unavailable", **{"Retry-After": "0"}), PlainTextResponse("bad gateway", 502)]
    )
    async with client_of(api) as client:
        assert (await client.submit("echo", "hi")).run_id == "run-1"
    assert len(set(bodies(api))) == 1
    assert len(api.requests) == 3
    assert len({headers["idempotency-key"] for _, _, headers, _ in api.requests}) == 1


async def test_submit_does_not_come_back_before_retry_after(api: ScriptedApi) -> None:
    api.submits.append(problem(503, "store_unavailable", "The store is away.", **{"Retry-After": "3600"}))
    async with client_of(api, retry=HASTY) as client:
        with pytest.raises(errors.StoreUnavailable, match="The store is away"):
            await client.submit("echo", "hi")
    assert len(api.requests) == 1


async def test_submit_survives_a_lost_answer() -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["idempotency-key"].encode() + request.content)
        if len(seen) == 1:
            raise httpx.ReadError("lost", request=request)
        return httpx.Response(200, json=run_object())

    async with Client(transport=httpx.MockTransport(answer), retry=FAST) as client:
        assert (await client.submit("echo", "hi")).run_id == "run-1"
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_submit_to_a_server_that_is_not_there_yet_waits_for_it(api: ScriptedApi) -> None:
    api.stop()
    transport = Watched()
    async with client_of(api, transport=transport) as client:
        submitting = asyncio.create_task(client.submit("echo", "hi"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await transport.refused.wait()
            await asyncio.to_thread(api.start)
            assert (await submitting).run_id == "run-1"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", errors.InvalidRequest),
        (413, "request_too_large", errors.RequestTooLarge),
        (404, "unknown_agent", errors.UnknownAgent),
        (409, "run_conflict", errors.RunConflict),
        (500, "internal_error", errors.DurableError),
    ],
)
async def test_a_refused_submit_is_not_repeated(
    api: ScriptedApi, status: int, code: str, kind: type[errors.DurableError]
) -> None:
    api.submits.append(problem(status, code, "No such thing."))
    async with client_of(api) as client:
        with pytest.raises(kind, match=r"No such thing\.") as caught:
            await client.submit("echo", "hi")
    assert (type(caught.value), caught.value.code, len(api.requests)) == (kind, code, 1)


async def test_a_code_without_a_class_is_kept_with_its_details(api: ScriptedApi) -> None:
    error = {"code": "moon_phase", "message": "Full moon.", "details": {"until": "dawn"}}
    api.gets.append(Response(json.dumps({"error": error}), 418))
    async with client_of(api) as client:
        with pytest.raises(errors.DurableError) as caught:
            await client.get("run-1")
    assert type(caught.value) is errors.DurableError
    assert (caught.value.code, caught.value.message, caught.value.details) == (
        "moon_phase",
        "Full moon.",
        {"until": "dawn"},
    )
    assert errors.DurableError.code == "internal_error"


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": "x"}', b'{"detail": "Not Found"}', b"\xff"])
@pytest.mark.parametrize("status", [200, 302, 404])
async def test_what_does_not_speak_this_api_is_told_from_a_refusal(
    api: ScriptedApi, content: bytes, status: int
) -> None:
    api.gets.append(Response(content, status))
    async with client_of(api) as client:
        with pytest.raises(errors.ServerUnreachable, match="not in the form of this API"):
            await client.get("run-1")


@pytest.mark.parametrize("run_id", ["a/b", "a?b", "ä", "a\0b", "%2e%2e", "x" * 2000])
async def test_an_odd_run_id_stays_one_segment_of_the_path(api: ScriptedApi, run_id: str) -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path.decode())
        return httpx.Response(404, json={"error": {"code": "unknown_run", "message": "No."}})

    async with Client(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(errors.UnknownRun):
            await client.get(run_id)
    assert paths[0].startswith("/v1/runs/")
    assert paths[0].count("/") == 3
    assert "?" not in paths[0]


@pytest.mark.parametrize("run_id", ["", ".", ".."])
async def test_a_run_id_that_leads_elsewhere_is_refused_here(run_id: str) -> None:
    async with Client() as client:
        with pytest.raises(errors.InvalidRequest):
            await client.get(run_id)
        with pytest.raises(errors.InvalidRequest):
            client.observe(run_id)


async def test_what_is_no_json_is_refused_before_it_is_sent(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        with pytest.raises(errors.InvalidRequest):
            await client.submit("echo", "hi", deps=object())
    assert api.requests == []


async def test_a_key_that_is_no_header_is_refused_before_it_is_sent(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        with pytest.raises(errors.InvalidRequest):
            await client.submit("echo", "hi", idempotency_key="a\nb: c")
    assert api.requests == []


async def test_runs_agents_and_chunks_are_read_as_models(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        runs = await client.runs(status=RunStatus.COMPLETED, agent="echo", limit=5)
        agents = await client.agents()
        page = await client.chunks("run-1", after=3, limit=10, wait=1)
    assert [view.run_id for view in runs.runs] == ["run-1"]
    assert [(agent.name, [tool.name for tool in agent.tools]) for agent in agents] == [("echo", ["add"])]
    assert (page.next, page.final, type(page.chunks[0])) == (8, True, TextDelta)
    targets = [target for _, target, _, _ in api.requests]
    assert targets[0] == "/v1/runs?status=completed&agent=echo&limit=5"
    assert targets[2] == "/v1/runs/run-1/chunks?after=3&limit=10&wait=1"


async def test_cancel_sends_the_reason(api: ScriptedApi) -> None:
    async with client_of(api) as client:
        await client.cancel("run-1", "changed my mind")
    assert json.loads(bodies(api)[0]) == {"reason": "changed my mind"}


async def test_cancel_of_an_ended_run_is_a_typed_error(api: ScriptedApi) -> None:
    api.cancels.append(problem(409, "run_ended"))
    async with client_of(api) as client:
        with pytest.raises(errors.RunEnded):
            await client.cancel("run-1")


# --- wait, result, text ---


async def test_wait_follows_a_run_to_its_end(api: ScriptedApi) -> None:
    running = Response(json.dumps(run_object(lastSeq=2)), media_type="application/json")
    api.gets.append(running)
    api.streams.append(Stream(until=5, cut=True))
    async with client_of(api) as client:
        view = await client.wait("run-1", DEADLINE_SECONDS)
    assert (view.status, view.output) == (RunStatus.COMPLETED, "Hello wörld")
    assert api.cursors == [2, 5]


async def test_wait_returns_a_failed_run_and_result_raises_it(api: ScriptedApi) -> None:
    api.run = run_object(status="failed", error={"code": "tool_failed", "message": "The tool failed."})
    async with client_of(api) as client:
        assert (await client.wait("run-1")).status is RunStatus.FAILED
        with pytest.raises(errors.RunFailed, match=r"The tool failed\.") as caught:
            await client.result("run-1")
    assert (caught.value.run_id, caught.value.failure_code) == ("run-1", "tool_failed")


async def test_the_result_of_a_cancelled_run_is_an_error_of_its_own(api: ScriptedApi) -> None:
    api.run = run_object(status="cancelled")
    async with client_of(api) as client:
        with pytest.raises(errors.RunCancelled):
            await client.result("run-1")


async def test_the_result_of_a_completed_run_is_its_output(api: ScriptedApi) -> None:
    api.run = run_object(status="completed", output={"city": "Paris"})
    async with client_of(api) as client:
        assert await client.result("run-1") == {"city": "Paris"}


async def test_wait_ends_at_its_timeout_and_the_run_goes_on(api: ScriptedApi) -> None:
    api.run = run_object()
    api.streams.append(Stream(until=2, hold=True))
    async with client_of(api) as client:
        with pytest.raises(TimeoutError):
            await client.wait("run-1", 0.1)
    assert all(method == "GET" for method, _, _, _ in api.requests)


async def test_text_is_what_counts_of_a_run_with_a_torn_response(api: ScriptedApi) -> None:
    api.log = text_log("one", "two", "three")
    api.log[4] = {**api.log[1], "seq": 5, "payload": {**api.log[1]["payload"], "void": {"from": 2, "to": 4}}}
    async with client_of(api) as client:
        assert await client.text("run-1") == "three"


# --- where it connects ---


async def test_the_server_comes_from_the_environment(api: ScriptedApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_URL", api.url + "/")
    async with Client() as client:
        assert (await client.get("run-1")).run_id == "run-1"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "::"])
def test_what_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        Client(url)


async def test_a_password_in_the_url_stays_out_of_errors(api: ScriptedApi) -> None:
    api.stop()
    async with Client(api.url.replace("http://", "http://me:secret@")) as client:
        with pytest.raises(errors.ServerUnreachable) as caught:
            await client.get("run-1")
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


LONELY = textwrap.dedent(
    """
    import asyncio, sys

    NEEDED = {
        "httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio",
        "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "durable",
    }

    class OnlyWhatIsNeeded:
        def find_spec(self, name, path=None, target=None):
            top = name.partition(".")[0]
            known = top in NEEDED or top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
            if not known:
                raise ModuleNotFoundError(f"No module named {top!r}", name=top)

    sys.meta_path.insert(0, OnlyWhatIsNeeded())
    try:
        import celery
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("the block does not work")

    from durable import Client

    async def main():
        async with Client(sys.argv[1]) as client:
            run = await client.submit("echo", "hi")
            print([chunk.seq async for chunk in client.observe(run.run_id)], await client.text(run.run_id))

    asyncio.run(main())
    """
)


async def test_the_client_needs_httpx_and_pydantic_only(api: ScriptedApi) -> None:
    command = [sys.executable, "-X", "utf8", "-c", LONELY, api.url]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=DEADLINE_SECONDS * 2, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "[1, 2, 3, 4, 5, 6, 7, 8] Hello wörld"
