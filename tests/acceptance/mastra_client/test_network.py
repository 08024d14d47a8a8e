"""Mastra's client on a network that loses requests, answers and halves of letters, and with servers that die."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.acceptance.faulty_proxy import (
    Fault,
    FaultyProxy,
    answered_with,
    cut_after,
    lost_answer,
    lost_request,
)
from tests.acceptance.mastra_client.agents import KINDS
from tests.acceptance.mastra_client.conftest import Site
from tests.acceptance.mastra_client.driver import Call, ClientFailed, Driver, MastraClient, new_id
from tests.deployment import stop_child

pytestmark = pytest.mark.timeout(180)

ADD = 'call add {"a": 1, "b": 2}'
REFUND = 'call refund {"amount": 5}'
CALL = "call-0"
WORLD = "Grüße, 世界 und 🌍 "
"""Letters of two, three and four bytes."""
LOSSES: dict[str, list[Fault]] = {
    "lost requests": [lost_request] * 3,
    "lost answers": [lost_answer] * 3,
    "gateways that fail": [answered_with("502 Bad Gateway"), answered_with("504 Gateway Timeout"), lost_answer],
}


@contextmanager
def through(client: MastraClient, *faults: Fault, backoff_ms: int = 5) -> Iterator[tuple[MastraClient, FaultyProxy]]:
    """The client behind a proxy that spoils the first answers, and less patient than it is by itself."""
    port = urlsplit(client.servers[0]).port
    assert port is not None
    with FaultyProxy(port, *faults) as proxy:
        yield client.at(proxy.url, backoffMs=backoff_ms), proxy


def bodies(proxy: FaultyProxy) -> set[bytes]:
    """The different bodies that came to a proxy."""
    return {request.partition(b"\r\n\r\n")[2] for request in proxy.requests}


class Breaking:
    """Streams that break once the client has read so many chunks.

    Args:
        client: Whose streams.
        inside: Bytes of the next block that still arrive.
    """

    def __init__(self, client: MastraClient, inside: int = 0) -> None:
        self._client = client
        self._inside = inside

    def read(self, count: int, method: str, *args: Any) -> Call:
        """Call a method whose stream breaks after so many chunks; what the client made of it."""
        read = threading.Event()
        with through(self._client, cut_after(count, inside=self._inside, held=read.wait)) as (client, _):
            call = client.start(method, *args).until_open()
            try:
                call.until(lambda reading: len(reading.chunks) == count, f"{count} chunks")
            finally:
                read.set()
            return call.until_over()


class TestRetries:
    """The client sends a request again whose answer it did not get."""

    @pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
    def test_a_run_is_started_once_however_often_the_client_asks(
        self, client: MastraClient, losses: list[Fault]
    ) -> None:
        run_id = new_id()
        with through(client, *losses, backoff_ms=100) as (lossy, proxy):
            call = lossy.stream(ADD, runId=run_id)
        assert (len(proxy.requests), len(bodies(proxy))) == (4, 1)
        assert call.types.count("start") == call.types.count("tool-result") == 1
        assert call.text == "The tool said 3 "
        assert call.chunks == client.observe(run_id).chunks

    @pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
    @pytest.mark.parametrize("method", ["approveToolCall", "declineToolCall"])
    def test_a_decision_is_applied_once_and_repeated_gives_the_same_continuation(
        self, client: MastraClient, losses: list[Fault], method: str
    ) -> None:
        first = client.stream(REFUND)
        answer = {"runId": first.run_id, "toolCallId": CALL}
        with through(client, *losses) as (lossy, proxy):
            then = lossy.start(method, answer).done()
        assert (len(proxy.requests), len(bodies(proxy))) == (4, 1)
        whole = client.observe(first.run_id)
        assert whole.chunks == first.chunks + then.chunks
        assert whole.types.count("tool-result") + whole.types.count("tool-output-denied") == 1
        assert client.start(method, answer).done().chunks == then.chunks

    @pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
    def test_what_a_tool_was_told_is_told_once(self, client: MastraClient, losses: list[Fault]) -> None:
        first = client.stream("call paint {}")
        with through(client, *losses) as (lossy, _):
            then = lossy.start("resumeStream", {"colour": "red"}, {"runId": first.run_id}).done()
        assert client.observe(first.run_id).chunks == first.chunks + then.chunks
        assert then.types.count("tool-result") == 1

    def test_a_whole_answer_is_the_same_when_it_is_asked_for_again(self, client: MastraClient) -> None:
        run_id = new_id()
        with through(client, lost_request, lost_answer, answered_with("502 Bad Gateway")) as (lossy, _):
            output = lossy.call("generate", REFUND, {"runId": run_id})
        with through(client, lost_answer, lost_request, lost_answer) as (lossy, _):
            then = lossy.call("approveToolCallGenerate", {"runId": run_id, "toolCallId": CALL})
        assert (output["finishReason"], then["text"]) == ("suspended", "The tool said refunded 5 ")
        assert client.observe(run_id).types.count("tool-result") == 1

    @pytest.mark.parametrize("loss", [lost_request, lost_answer])
    def test_the_results_of_the_applications_tools_are_taken_once(self, client: MastraClient, loss: Fault) -> None:
        run_id = new_id()
        tool = {"id": "locate", "description": "Find.", "inputSchema": {"type": "object", "properties": {}}}
        tools = {"locate": {**tool, "execute": {"$returns": "here"}}}
        with through(client, loss, passing, loss, loss) as (lossy, proxy):
            call = lossy.stream([{"role": "user", "content": "call locate {}"}], runId=run_id, clientTools=tools)
        assert len(proxy.requests) == 5, "a turn that was lost once, and its continuation, lost twice"
        assert call.executed == [{}]
        assert call.text == "The tool said here "
        observed = client.observe(run_id)
        assert [chunk for chunk in call.chunks if chunk in observed.chunks] == observed.chunks

    def test_a_message_is_told_once(self, client: MastraClient) -> None:
        losses = [lost_request, lost_answer, answered_with("502 Bad Gateway")]
        thread = {"threadId": new_id(), "resourceId": "alice"}
        memory = {"thread": thread["threadId"], "resource": "alice"}
        call = client.begin('call wait {"ms": 800}', memory=memory).until_type("tool-output")
        with through(client, *losses) as (lossy, proxy):
            sent = lossy.call("sendMessage", {"message": "tell", **thread})
            assert len(proxy.requests) == 4
        assert sent["runId"] == call.run_id
        assert json.loads(call.done().text)["prompts"].count("tell") == 1
        with through(client, *losses) as (lossy, _):
            queued = lossy.call("queueMessage", {"message": "say queued", **thread})
        assert client.observe(queued["runId"]).text == "queued "
        told = json.loads(client.stream("tell", memory=memory).text)
        assert told["prompts"].count("say queued") == 1

    def test_a_tool_is_executed_and_a_thread_aborted_in_the_end(self, client: MastraClient) -> None:
        with through(client, *LOSSES["lost answers"]) as (lossy, proxy):
            assert lossy.call("executeTool", "add", {"data": {"a": 1, "b": 2}}) == 3
            assert len(proxy.requests) == 4
        memory = {"thread": new_id(), "resource": "alice"}
        call = client.begin("slowly 20 " + "word " * 400, memory=memory).until_said("word")
        with through(client, lost_request, answered_with("502 Bad Gateway")) as (lossy, _):
            lossy.call("abortThread", {"threadId": memory["thread"], "resourceId": "alice"})
        assert call.done().reason == "abort"

    def test_an_observer_is_answered_in_the_end(self, client: MastraClient) -> None:
        run = client.stream("say one two")
        with through(client, *LOSSES["gateways that fail"]) as (lossy, _):
            assert lossy.observe(run.run_id).chunks == run.chunks


def passing(exchange: Any) -> None:
    """Nothing happens to the answer."""
    with exchange.answer() as answer:
        exchange.pass_all(answer)


class TestCuts:
    """Streams that break after the head of the answer: the client gives up, and observes with the count it has."""

    def test_a_live_run_is_read_without_loss_in_pieces_of_one_chunk(self, roaming: MastraClient) -> None:
        run_id = new_id()
        breaking = Breaking(roaming)
        chunks = breaking.read(0, "stream", "slowly 5 one two three four five six", {"runId": run_id}).chunks
        assert chunks == []
        while not chunks or chunks[-1]["type"] != "finish":
            piece = breaking.read(1, "observe", {"runId": run_id, "offset": len(chunks)}).chunks
            assert len(piece) == 1
            chunks += piece
        assert chunks == roaming.observe(run_id).chunks

    def test_every_boundary_between_chunks_may_be_where_a_stream_breaks(self, client: MastraClient) -> None:
        run_id = new_id()
        whole = client.stream(ADD, runId=run_id).chunks
        for count in range(len(whole)):
            for method, args in (("stream", (ADD, {"runId": run_id})), ("observe", ({"runId": run_id},))):
                broken = Breaking(client).read(count, method, *args)
                assert broken.chunks == whole[:count]
                assert client.observe(run_id, count).chunks == whole[count:]

    def test_a_stream_may_break_in_the_middle_of_a_letter(self, client: MastraClient) -> None:
        run_id = new_id()
        first = client.stream("say " + WORLD, runId=run_id)
        assert first.text == WORLD
        for number, chunk in enumerate(first.chunks):
            if chunk["type"] != "text-delta" or chunk["payload"]["text"].isascii():
                continue
            block = b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()
            inner = [place for place, byte in enumerate(block) if byte & 0b1100_0000 == 0b1000_0000]
            assert inner, "letters go over the wire as they are"
            rest = client.observe(run_id, number)
            for place in inner:
                for method, args in (
                    ("stream", ("say " + WORLD, {"runId": run_id})),
                    ("observe", ({"runId": run_id},)),
                ):
                    broken = Breaking(client, place).read(number, method, *args)
                    assert broken.text + rest.text == WORLD
                    assert broken.chunks + rest.chunks == first.chunks

    def test_a_decisions_stream_may_break_and_be_observed_on(self, client: MastraClient) -> None:
        first = client.stream(REFUND)
        answer = {"runId": first.run_id, "toolCallId": CALL}
        then = client.start("approveToolCall", answer).done().chunks
        for count in range(len(then)):
            broken = Breaking(client).read(count, "approveToolCall", answer)
            rest = client.observe(first.run_id, len(first.chunks) + count)
            assert broken.chunks + rest.chunks == then

    def test_a_client_behind_a_breaking_network_never_stops_the_run(self, client: MastraClient) -> None:
        run_id = new_id()
        args = ("slowly 20 one two three four five six", {"runId": run_id})
        broken = Breaking(client).read(5, "stream", *args)
        assert "finish" not in broken.types, "how an application knows that there is more"
        rest = client.observe(run_id, 5)
        assert broken.text + rest.text == "one two three four five six "
        assert rest.reason == "stop"


class TestDeaths:
    """A process that executes a run is killed, or stopped, while the client streams."""

    PROMPT = "slowly 15 " + "".join(f"word{number} " for number in range(50))
    TEXT = PROMPT.removeprefix("slowly 15 ")

    def test_the_text_is_right_in_the_end_although_those_who_wrote_it_have_died(
        self, driver: Driver, site: Site
    ) -> None:
        deployment = site.deployment
        server, url = site.start_another_api()
        worker = deployment.workers.pop()
        durable = MastraClient(driver, "durable-helper", (url,))
        evented = MastraClient(driver, "evented-helper", site.servers[:1])
        streams = [client.begin(self.PROMPT, runId=new_id()) for client in (durable, evented)]
        observers = [
            client.at(site.servers[1]).start_observe(stream.run_id)
            for client, stream in zip((durable, evented), streams, strict=True)
        ]
        for call in (*streams, *observers):
            call.until_said("word9 ")
        for doomed in (server, worker):
            stop_child(doomed, signal.SIGKILL)
        deployment.start_worker()
        for call in (*streams, *observers):
            assert "finish" not in call.until_over().types, "what it was told is void, or its server is gone"
        for client, stream in zip((durable, evented), streams, strict=True):
            anywhere = client.at(*site.servers)
            whole = anywhere.observe(stream.run_id)
            assert (whole.text, whole.reason) == (self.TEXT, "stop")
            assert [step for step in whole.of_type("step-start") if "void" in step]
            for offset in (3, len(whole.chunks) // 2):
                assert anywhere.observe(stream.run_id, offset).chunks == whole.chunks[offset:]
            assert anywhere.stream(self.PROMPT, runId=stream.run_id).chunks == whole.chunks
            assert anywhere.start("recover", {"runId": stream.run_id}).done().chunks == whole.chunks

    def test_a_server_that_is_stopped_loses_nothing(self, driver: Driver, site: Site) -> None:
        leaving, url = site.start_another_api()
        clients = [MastraClient(driver, f"{kind}-helper", (url,)) for kind in KINDS]
        calls = [client.begin(self.PROMPT, runId=new_id()) for client in clients]
        for call in calls:
            call.until_said("word5 ")
        stop_child(leaving)
        for client, call in zip(clients, calls, strict=True):
            assert "finish" not in call.until_over().types
            whole = client.at(*site.servers).observe(call.run_id)
            assert (whole.text, whole.reason) == (self.TEXT, "stop")


def test_of_two_who_approve_at_once_both_get_the_one_continuation(roaming: MastraClient) -> None:
    first = roaming.stream(REFUND)
    answer = {"runId": first.run_id, "toolCallId": CALL}
    calls = [roaming.start("approveToolCall", answer) for _ in range(4)]
    continuations = [call.done().chunks for call in calls]
    assert all(chunks == continuations[0] for chunks in continuations)
    assert roaming.observe(first.run_id).chunks == first.chunks + continuations[0]
    assert [chunk["type"] for chunk in continuations[0]].count("tool-result") == 1


def test_of_two_opposite_answers_the_second_is_refused(client: MastraClient) -> None:
    first = client.stream(REFUND)
    answer = {"runId": first.run_id, "toolCallId": CALL}
    client.start("approveToolCall", answer).done()
    with pytest.raises(ClientFailed) as failed:
        client.start("declineToolCall", answer).done()
    assert failed.value.status == 409


def test_the_same_run_asked_for_by_several_at_once_is_one(roaming: MastraClient) -> None:
    run_id = new_id()
    calls = [roaming.begin("slowly 5 one two three", runId=run_id) for _ in range(4)]
    lists = [call.done().chunks for call in calls]
    assert all(chunks == lists[0] for chunks in lists)
    assert [chunk["type"] for chunk in lists[0]].count("start") == 1
    assert roaming.stream("slowly 5 one two three", runId=run_id).chunks == lists[0]
