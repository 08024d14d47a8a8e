"""What the door for Mastra's protocol says where it does nothing: its errors, without a store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from durable.dev.ports import free_port
from durable.settings import Settings


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """An API whose store is away, and that takes small bodies only."""
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", max_body_bytes=2000)
    with TestClient(create_app(settings)) as found:
        yield found


def test_a_route_that_is_none_is_not_found_in_the_shape_that_the_client_reads(client: TestClient) -> None:
    for path in ("/api", "/api/", "/api/nothing", "/api/workflows", "/api/workflows/a/start", "/api/agents/a/network"):
        answer = client.post(path, json={})
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
    # The other door keeps its own.
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_a_body_that_is_too_large_is_refused_in_this_shape(client: TestClient) -> None:
    answer = client.post("/api/agents/a/stream", json={"messages": "x" * 3000})
    assert (answer.status_code, list(answer.json())) == (413, ["error"])


def test_a_body_that_is_none_is_refused_with_what_is_wrong(client: TestClient) -> None:
    answer = client.post("/api/agents/a/observe", json={"runId": "r", "offset": -1})
    assert answer.status_code == 400
    assert [issue["field"] for issue in answer.json()["issues"]] == ["offset"]


def test_a_store_that_does_not_answer_is_the_one_thing_worth_another_try(client: TestClient) -> None:
    for route, body in (("stream", {"messages": "hi"}), ("observe", {"runId": "r"}), ("recover", {"runId": "r"})):
        answer = client.post(f"/api/agents/a/{route}", json=body)
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        assert answer.headers["retry-after"] == "1"


def test_the_door_is_no_part_of_the_documented_api(client: TestClient) -> None:
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path.startswith("/api")]
