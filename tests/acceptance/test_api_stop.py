"""A stop of the API server: it is gone within seconds, its readers go on elsewhere, its runs too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.caller import Caller, Frame, chunks_of, frames, of_type, said
from tests.deployment import Deployment, stop_child, wait_for

READERS = 20
WORDS = "word " * 50


@pytest.fixture
def own(redis_url: str) -> Iterator[Deployment]:
    """A deployment whose API also executes agents itself."""
    with Deployment(redis_url, api_agents="tests.scripted_agents") as found:
        yield found


def test_readers_of_a_server_that_stops_go_on_at_another_from_their_cursor(own: Deployment) -> None:
    stopping = own.start_api()
    own.start_worker()
    with Caller(own.url) as first:
        run_id = first.submit("slowly 40 " + WORDS)
        first.wait_for_text(run_id, "word")
        reading = threading.Barrier(READERS + 1)

        def read(_: int) -> list[Frame]:
            with Caller(str(first.base_url)) as reader, reader.open_stream(run_id) as response:
                following = frames(response)
                found = [next(following)]
                reading.wait(20)
                return found + list(following)

        with ThreadPoolExecutor(READERS) as pool:
            parts = pool.map(read, range(READERS))
            reading.wait(20)
            stop_child(stopping)
            heads = list(parts)
    assert all(head and b'"final":true' not in head[-1][1] for head in heads), "the run goes on"

    own.start_api()
    with Caller(own.url) as second:
        assert second.ended(run_id)["output"] == WORDS
        log = second.log(run_id)
        for head in heads:
            assert chunks_of(head + second.frames(run_id, head[-1][0])) == log
    assert said(log) == WORDS
    assert "Traceback" not in own.log.text


def test_an_in_process_run_needs_no_worker_and_moves_to_one_when_its_server_stops(own: Deployment) -> None:
    stopping = own.start_api()
    with Caller(own.url) as first:
        assert first.get("/readyz").json()["workers"] == 0
        wait_for(lambda: first.get("/v1/agents").json()["agents"] != [], what="the agent to be announced")
        run = first.result('call add {"a": 1, "b": 2}', agent="in-process")
        assert (run["status"], run["attempt"], run["output"]) == ("completed", 1, "The tool said 3 ")
        run_id = first.submit("slowly 40 " + WORDS, agent="in-process")
        first.wait_for_text(run_id, "word")
        assert first.look(run_id)["status"] == "running"
        stop_child(stopping)

    own.api_agents = ""
    own.start_api()
    with Caller(own.url) as second:
        own.start_worker()
        run = second.ended(run_id)
        assert (run["status"], run["output"]) == ("completed", WORDS)
        assert run["attempt"] >= 2
        chunks = second.log(run_id)
        assert len(of_type(chunks, "start")) == 1
        assert sum(1 for chunk in chunks if chunk.get("final")) == 1
    assert "Traceback" not in own.log.text


def test_closing_the_request_does_not_touch_an_in_process_run(own: Deployment) -> None:
    own.start_api()
    with Caller(own.url) as caller:
        wait_for(lambda: caller.get("/v1/agents").json()["agents"] != [], what="the agent to be announced")
        run_id = caller.submit("slowly 20 a b c d e f g h", agent="in-process")
        with caller.open_stream(run_id) as response:
            next(frames(response))
    with Caller(own.url) as later:
        assert later.ended(run_id)["output"] == "a b c d e f g h "
