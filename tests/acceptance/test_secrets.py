"""Nothing that a failing part of an agent says in its exceptions reaches anybody.

Not an HTTP answer, not a chunk, not a log, not Redis (neither its data nor a message on any channel), not Flower.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from tests.caller import Caller, of_type, said
from tests.deployment import Deployment, wait_for

SECRET = f"hunter2-{secrets.token_hex(8)}"

FAILURES = [
    ("leaky", "model http", "model_error"),
    ("leaky", "model api", "model_error"),
    ("leaky", "model behaviour", "model_misbehaved"),
    ("leaky", "model user", "agent_misconfigured"),
    ("leaky", "model bug", "internal_error"),
    ("leaky", "model group", "internal_error"),
    ("leaky", "late http", "model_error"),
    ("leaky", "late bug", "internal_error"),
    ("leaky", "tool chained", "tool_failed"),
    ("leaky", "tool grouped", "tool_failed"),
    ("leaky", "tool unprintable", "tool_failed"),
    ("choosy", "anything", "internal_error"),
    ("without-deps", "anything", "configuration_error"),
    ("careless-deps", "anything", "internal_error"),
]


class Everything:
    """All that a Redis server holds, and all messages that pass through it."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._pubsub = self._redis.pubsub()  # type: ignore[no-untyped-call]  # redis-py has no type for it
        self._pubsub.psubscribe("*")
        self._heard: list[bytes] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="all channels", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._pubsub.close()
        self._redis.close()

    def __contains__(self, word: str) -> bool:
        return any(word.encode() in text for text in (*self._heard, *self._texts()))

    def _listen(self) -> None:
        while not self._stop.is_set():
            message = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1)
            if message is not None:
                self._heard.append(message["data"])

    def _texts(self) -> Iterator[bytes]:
        for key in self._redis.scan_iter(count=1000):
            yield key
            yield repr(self._value(key)).encode()

    def _value(self, key: bytes) -> Any:
        match self._redis.type(key):
            case b"string":
                return self._redis.get(key)
            case b"hash":
                return self._redis.hgetall(key)
            case b"stream":
                return self._redis.xrange(key)
            case b"zset":
                return self._redis.zrange(key, 0, -1)
            case b"list":
                return self._redis.lrange(key, 0, -1)
            case b"set":
                return self._redis.smembers(key)
            case other:
                raise AssertionError(f"a key of the unknown type {other!r}")


@pytest.fixture(scope="module")
def everything(redis_url: str) -> Iterator[Everything]:
    found = Everything(redis_url)
    yield found
    found.close()


@pytest.fixture(scope="module")
def leaking(redis_url: str, everything: Everything) -> Iterator[Deployment]:
    """A deployment whose agents try to leak."""
    env = {"LEAKY_SECRET": SECRET, "DURABLE_LEASE_SECONDS": "2", "DURABLE_HEARTBEAT_SECONDS": "0.5"}
    with Deployment(redis_url, env=env, agents="tests.leaky_agents") as found:
        found.start_api()
        found.start_worker()
        yield found


def test_an_exceptions_text_stays_where_it_was_raised(leaking: Deployment, everything: Everything, flower: str) -> None:
    run_id = ""
    with Caller(leaking.url) as caller:
        for agent, prompt, code in FAILURES:
            run_id = caller.submit(prompt, agent)
            run = caller.ended(run_id)
            assert (run["status"], run["error"]["code"]) == ("failed", code), (agent, prompt)
            answers = [
                caller.get(f"/v1/runs/{run_id}").text,
                caller.get(f"/v1/runs/{run_id}/chunks?limit=1000").text,
                caller.get(f"/v1/runs/{run_id}/chunks", headers={"Accept": "text/event-stream"}).text,
            ]
            assert not any(SECRET in answer for answer in answers), (agent, prompt)
            if prompt.startswith("late"):
                assert said(caller.log(run_id)) == "so far so good "
        overview = caller.get("/v1/runs").text + caller.get("/v1/agents").text
    assert SECRET not in overview

    def is_shown() -> bool:
        return httpx.get(f"{flower}/api/task/info/{run_id}", trust_env=False).status_code == 200

    wait_for(is_shown, what="Flower to show the last run")
    for path in ("/api/tasks", f"/api/task/info/{run_id}", f"/task/{run_id}", "/api/workers"):
        assert SECRET not in httpx.get(f"{flower}{path}", trust_env=False).text
    assert SECRET not in everything
    assert run_id in everything, "what is searched holds the runs"
    assert SECRET not in leaking.log.text
    assert "Traceback" not in leaking.log.text
    assert "leaky_agents.py" in leaking.log.text, "the log says where it failed"


@pytest.mark.parametrize("tool", ["cancelling", "exiting", "exiting_loop"])
def test_a_tool_that_tries_to_end_its_process_fails_its_run_alone(leaking: Deployment, tool: str) -> None:
    with Caller(leaking.url) as caller:
        run = caller.ended(caller.submit(f"tool {tool}", "leaky"), seconds=10)
        assert (run["status"], run["error"]["code"], run["attempt"]) == ("failed", "tool_failed", 1)
        assert len(of_type(caller.log(run["runId"]), "tool-error")) == 1
        assert caller.result("go on", "leaky")["status"] == "completed"
    assert SECRET not in leaking.log.text
