"""A worker dies while its words are read over Mastra's protocol: nobody assembles them twice."""

from __future__ import annotations

import json
import signal

from tests.caller import Body, Caller, of_type
from tests.deployment import Deployment, stop_child
from tests.mastra_caller import MastraCaller, blocks, new_id, text_of

WORDS = [f"w{n}" for n in range(40)]


def test_words_that_turn_out_to_be_void_end_their_stream_and_are_empty_when_read_again(redis_url: str) -> None:
    env = {"DURABLE_LEASE_SECONDS": "1", "DURABLE_HEARTBEAT_SECONDS": "0.25"}
    run_id = new_id()
    with Deployment(redis_url, env=env) as deployment:
        deployment.start_api()
        worker = deployment.start_worker()
        with MastraCaller(deployment.url) as mastra, Caller(deployment.url) as caller:
            body = {"messages": f"slowly 50 {' '.join(WORDS)}", "runId": run_id}
            with mastra.open("stream", body) as response:
                reading = blocks(response)
                live: list[Body] = []
                while len(live) < 6:
                    live.append(json.loads(next(reading)))
                stop_child(worker, signal.SIGKILL)
                deployment.start_worker()
                live += [json.loads(block) for block in reading]  # it ends, without a mark
            caller.ended(run_id)

            log = caller.log(run_id)
            [void] = [step["void"] for step in of_type(log, "step-start") if "void" in step]
            declared = next(chunk["seq"] for chunk in log if "void" in (chunk["payload"] or {}))
            assert text_of(live).split() == WORDS[: len(text_of(live).split())]
            assert len(live) == declared - 1

            again = mastra.observed(run_id)
            assert [chunk["type"] for chunk in again] == [chunk["type"] for chunk in log]
            assert text_of(again).split() == WORDS
            assert text_of(again[: void["to"]]) == ""
            assert mastra.chunks("stream", body) == again
            for offset in (void["from"] + 1, void["to"], declared):
                assert mastra.observed(run_id, offset=offset) == again[offset:]
