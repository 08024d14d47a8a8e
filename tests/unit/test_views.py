from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from durable.chunks import TextDelta, UnknownChunk
from durable.views import AgentView, ChunkPage, RunPage, RunStatus, RunView

RUN: dict[str, Any] = {
    "runId": "r",
    "agent": "echo",
    "status": "suspended",
    "reason": "approval",
    "attempt": 2,
    "lastSeq": 9,
    "createdAt": "2026-01-02T03:04:05Z",
    "usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3},
    "pending": [{"toolCallId": "c", "toolName": "add", "args": {"a": None}}],
    "metadata": {"empty": None},
}


def test_a_run_survives_a_round_trip_unchanged() -> None:
    assert RunView.model_validate(RUN).to_wire() == RUN


def test_a_field_without_a_value_is_absent_and_nulls_inside_of_values_stay() -> None:
    view = RunView(run_id="r", agent="a", status=RunStatus.COMPLETED, created_at=datetime.now(UTC), output={"x": None})
    wire = view.to_wire()
    assert wire.keys() == {"runId", "agent", "status", "attempt", "lastSeq", "createdAt", "output"}
    assert wire["output"] == {"x": None}
    assert json.loads(view.model_dump_json(by_alias=True)) == wire


def test_fields_of_a_newer_server_survive() -> None:
    assert RunView.model_validate({**RUN, "colour": "red"}).to_wire()["colour"] == "red"


def test_times_are_utc_on_the_wire() -> None:
    view = RunView.model_validate({**RUN, "createdAt": "2026-01-02T03:04:05+02:00"})
    assert view.to_wire()["createdAt"] == "2026-01-02T01:04:05Z"


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError):
        RunView.model_validate({**RUN, "createdAt": "2026-01-02T03:04:05"})


def test_three_states_are_ends() -> None:
    assert {status for status in RunStatus if status.ended} == {"completed", "failed", "cancelled"}
    assert RunView.model_validate({**RUN, "status": "failed"}).ended
    assert not RunView.model_validate(RUN).ended


def test_a_page_of_chunks_reads_each_as_its_type_and_writes_it_unchanged() -> None:
    envelope = {"runId": "r", "from": "AGENT", "attempt": 1}
    chunks = [
        {"type": "text-delta", **envelope, "seq": 1, "payload": {"id": "t", "text": "a"}},
        {"type": "tomorrow", **envelope, "seq": 2, "payload": [1]},
        {"type": "text-delta", **envelope, "seq": 3, "payload": {"words": 3}},
    ]
    page = ChunkPage.model_validate({"runId": "r", "chunks": chunks, "next": 3, "final": False})
    assert [type(chunk) for chunk in page.chunks] == [TextDelta, UnknownChunk, UnknownChunk]
    assert json.loads(page.model_dump_json(by_alias=True)) == {
        "runId": "r",
        "chunks": chunks,
        "next": 3,
        "final": False,
    }


def test_the_last_page_of_runs_says_so_with_null() -> None:
    assert RunPage(runs=[]).model_dump(by_alias=True) == {"runs": [], "next": None}


def test_the_schema_describes_what_is_written() -> None:
    schema = RunView.model_json_schema(mode="serialization")
    assert schema["required"] == ["runId", "agent", "status", "createdAt"]
    assert schema["properties"]["usage"]["anyOf"][0] == {"$ref": "#/$defs/Usage"}
    items = ChunkPage.model_json_schema(mode="serialization")["properties"]["chunks"]["items"]
    assert items == {"$ref": "#/$defs/Chunk"}


def test_an_agent_needs_only_a_name() -> None:
    assert AgentView(name="echo").model_dump(by_alias=True) == {"name": "echo", "tools": []}
