"""Chunks and their bytes: what is written is read again, and what is not understood is not lost."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from durable.chunks import (
    KNOWN_TYPES,
    Chunk,
    ErrorInfo,
    Finish,
    PartTextPayload,
    StepFinish,
    TextDelta,
    ToolCall,
    ToolCallPayload,
    ToolError,
    ToolOutput,
    ToolOutputPayload,
    ToolResult,
    ToolResultPayload,
    UnknownChunk,
    encode_body,
    from_wire,
    parse,
)
from durable.journal import Entry

CATALOGUE = [
    "abort",
    "background-task-cancelled",
    "background-task-completed",
    "background-task-failed",
    "background-task-output",
    "background-task-progress",
    "background-task-resumed",
    "background-task-running",
    "background-task-started",
    "background-task-suspended",
    "budget-raised",
    "budget-reached",
    "error",
    "file",
    "finish",
    "goal",
    "is-task-complete",
    "object",
    "object-result",
    "raw",
    "reasoning-delta",
    "reasoning-end",
    "reasoning-signature",
    "reasoning-start",
    "redacted-reasoning",
    "response-metadata",
    "source",
    "start",
    "step-finish",
    "step-output",
    "step-start",
    "text-delta",
    "text-end",
    "text-start",
    "tool-call",
    "tool-call-approval",
    "tool-call-decided",
    "tool-call-delta",
    "tool-call-input-streaming-end",
    "tool-call-input-streaming-start",
    "tool-call-suspended",
    "tool-error",
    "tool-output",
    "tool-output-denied",
    "tool-result",
    "tripwire",
    "user-message",
    "watch",
]

few = settings(max_examples=15, deadline=None)
many = settings(max_examples=200, deadline=None)

# Any text that UTF-8 has, with line ends of all kinds, quotes and zeros among it.
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["\n", "\r\n", "\u2028", "\u2029", "\x85", "\0", '"', "\\", "\ud7ff", "🙂", "\ufeff"]
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | texts, lambda item: st.lists(item, max_size=3) | st.dictionaries(texts, item, max_size=3), max_leaves=6
)


def wires(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects that this model has: all required fields, and any of the others."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in model.model_fields.items():
        wire = field.alias or name
        (required if field.is_required() else optional)[wire] = _of(field.annotation)
    return st.fixed_dictionaries(required, optional=optional)


def _of(kind: Any) -> st.SearchStrategy[Any]:
    """JSON values of a type."""
    if kind is Any:
        return values
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return wires(kind)
    match get_origin(kind):
        case None:
            numbers = {int: st.integers(0, 2**63 - 1), float: st.floats(allow_nan=False, allow_infinity=False)}
            return {str: texts, **numbers, bool: st.booleans(), type(None): st.none()}[kind]
        case origin if origin is Literal:
            return st.sampled_from(get_args(kind))
        case origin if origin is dict:
            return st.dictionaries(texts, values, max_size=3)
        case origin if origin is list:
            return st.lists(_of(get_args(kind)[0]), max_size=3)
        case _:  # a union
            return st.one_of([_of(item) for item in get_args(kind)])


def through_the_log(chunk: Chunk) -> Chunk:
    """As a reader gets it."""
    (wire,) = Entry("r1", 7, 2, (encode_body(chunk),)).wire
    return parse(wire)


def test_the_catalogue_is_this_and_no_other() -> None:
    assert sorted(KNOWN_TYPES) == CATALOGUE


def test_each_name_belongs_to_the_class_that_says_so() -> None:
    for name, cls in KNOWN_TYPES.items():
        assert get_args(cls.model_fields["type"].annotation) == (name,)
        assert issubclass(cls, Chunk)


@pytest.mark.parametrize("name", CATALOGUE)
@few
@given(data=st.data())
def test_every_chunk_comes_back_as_it_was_sent(name: str, data: st.DataObject) -> None:
    wire = data.draw(wires(KNOWN_TYPES[name]))
    wire["type"] = name
    chunk = from_wire(wire)

    assert type(chunk) is KNOWN_TYPES[name]
    assert chunk.to_wire() == wire
    assert parse(json.dumps(wire)) == chunk
    body = encode_body(chunk)
    assert b"\n" not in body
    assert json.loads(body) == {k: v for k, v in wire.items() if k not in ("runId", "seq", "attempt")}
    assert from_wire(json.loads(body)) == from_wire(json.loads(encode_body(parse(body))))


@pytest.mark.parametrize("name", CATALOGUE)
@few
@given(data=st.data())
def test_every_chunk_comes_out_of_the_log_as_it_was_put_in(name: str, data: st.DataObject) -> None:
    wire = data.draw(wires(KNOWN_TYPES[name]))
    wire["type"] = name
    seen = through_the_log(from_wire(wire)).to_wire()

    assert seen == {"from": "AGENT", **wire, "runId": "r1", "seq": 7, "attempt": 2}


@many
@given(
    kind=texts.filter(lambda name: name not in KNOWN_TYPES),
    payload=values,
    extra=st.dictionaries(texts.filter(lambda name: name not in Chunk.model_fields), values, max_size=3),
)
def test_a_type_of_another_version_survives(kind: str, payload: Any, extra: dict[str, Any]) -> None:
    extra = {name: value for name, value in extra.items() if name not in ("runId", "from")}
    wire = {"type": kind, "payload": payload, **extra}
    chunk = from_wire(wire)

    assert isinstance(chunk, UnknownChunk)
    assert chunk.to_wire() == wire
    assert through_the_log(chunk).to_wire() == {**wire, "from": "AGENT", "runId": "r1", "seq": 7, "attempt": 2}


@many
@given(value=values)
def test_fields_of_another_version_survive_in_every_place(value: Any) -> None:
    step = {"reason": "stop", "unheardOf": value}
    usage = {"inputTokens": 1, "unheardOf": value}
    wire = {
        "type": "step-finish",
        "payload": {
            "stepResult": step,
            "output": {"usage": usage, "unheardOf": value},
            "metadata": {"x": value},
            "unheardOf": value,
        },
        "unheardOf": value,
    }
    chunk = from_wire(wire)

    assert isinstance(chunk, StepFinish)
    assert chunk.to_wire() == wire
    assert json.loads(encode_body(chunk)) == wire


def test_a_null_that_was_said_is_told_from_nothing_said() -> None:
    said = ToolResult(payload=ToolResultPayload(tool_call_id="c", tool_name="t", result=None))
    assert json.loads(encode_body(said))["payload"] == {"toolCallId": "c", "toolName": "t", "result": None}
    unsaid = ToolCall(payload=ToolCallPayload(tool_call_id="c", tool_name="t"))
    assert json.loads(encode_body(unsaid))["payload"] == {"toolCallId": "c", "toolName": "t"}
    for chunk in (said, unsaid):
        assert through_the_log(chunk).payload == chunk.payload


def test_a_body_begins_with_its_type_and_names_only_what_was_set() -> None:
    chunk = TextDelta(payload=PartTextPayload(id="p", text="a"))
    assert encode_body(chunk) == b'{"type":"text-delta","payload":{"id":"p","text":"a"}}'
    told = TextDelta(payload=PartTextPayload(id="p", text="a"), run_id="r", seq=3, attempt=1, final=True)
    assert encode_body(told) == b'{"type":"text-delta","payload":{"id":"p","text":"a"},"final":true}'


def test_who_speaks_is_kept() -> None:
    chunk = from_wire({"type": "text-delta", "from": "USER", "payload": {"id": "p", "text": "a"}})
    assert through_the_log(chunk).to_wire()["from"] == "USER"
    assert through_the_log(from_wire({"type": "text-end", "payload": {"id": "p"}})).to_wire()["from"] == "AGENT"


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\u2028b", "a\u2029b", "a\x85b", "a\0b", "\ufeff", "🙂", ""])
def test_a_body_is_one_line_whatever_the_text(text: str) -> None:
    body = encode_body(TextDelta(payload=PartTextPayload(id="p", text=text)))
    assert b"\n" not in body
    assert parse(body).payload.text == text


@pytest.mark.parametrize(
    ("text", "read"), [("a\ud83d", "a?"), ("\ude42b", "?b"), ("\ud83d\ude42", "??"), ("🙂\ud800", "🙂?")]
)
def test_half_a_character_is_replaced_and_the_rest_is_kept(text: str, read: str) -> None:
    body = encode_body(TextDelta(payload=PartTextPayload(id="p", text=text)))
    assert parse(body).payload.text == read


def test_half_a_character_is_replaced_wherever_it_stands() -> None:
    value = {"key \ud83d": ["\ud83d", {"deep": "ok \ude42"}, 1, None, True]}
    output = ToolOutput(payload=ToolOutputPayload(output=value, tool_call_id="c\ud83d"), metadata={"m": "\ud83d"})
    read = json.loads(encode_body(output))

    assert read["payload"] == {"output": {"key ?": ["?", {"deep": "ok ?"}, 1, None, True]}, "toolCallId": "c?"}
    assert read["metadata"] == {"m": "?"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", ["whole", "half \ud83d"])
def test_numbers_that_json_has_not_are_null(number: float, text: str) -> None:
    chunk = ToolOutput(payload=ToolOutputPayload(output=[number, {"a": number}, 1.5, text], tool_call_id="c"))
    body = encode_body(chunk)

    assert b"NaN" not in body
    assert b"Infinity" not in body
    assert json.loads(body)["payload"]["output"][:3] == [None, {"a": None}, 1.5]


@many
@given(text=st.text())
def test_any_text_is_written_and_read(text: str) -> None:
    body = encode_body(TextDelta(payload=PartTextPayload(id="p", text=text)))
    assert parse(body).payload.text == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"text-delta"',
        b"{}",
        b'{"type":1,"payload":{}}',
        b'{"type":null}',
        b'{"type":"text-delta"}',
        b'{"type":"text-delta","payload":{}}',
        b'{"type":"text-delta","payload":{"id":"p","text":1}}',
        b'{"type":"finish","payload":{"output":{},"stepResult":{"reason":"bored"}}}',
        b'{"type":"text-end","payload":{"id":"p"},"seq":"x"}',
    ],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of pydantic, or of JSON
        parse(data)


def test_names_are_camel_case_outside_and_python_inside() -> None:
    chunk = from_wire({"type": "tool-error", "payload": {"toolCallId": "c", "toolName": "t", "error": _ERROR}})
    assert isinstance(chunk, ToolError)
    assert (chunk.payload.tool_call_id, chunk.payload.error) == ("c", ErrorInfo(code="x", message="y"))
    for cls in KNOWN_TYPES.values():
        for name in _wire_names(cls):
            assert "_" not in name


_ERROR = {"code": "x", "message": "y"}


def _wire_names(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema(by_alias=True)
    models = [schema, *schema.get("$defs", {}).values()]
    return [name for item in models for name in item.get("properties", {})]


def test_the_end_is_told_by_final_and_not_by_the_type() -> None:
    end = {"type": "finish", "payload": {"output": {"text": "", "usage": {}, "steps": []}, "stepResult": _STOP}}
    turn, run = from_wire(end), from_wire({**end, "final": True})

    assert isinstance(turn, Finish)
    assert (turn.final, run.final) == (None, True)
    assert Entry("r", 1, 1, (encode_body(turn),)).final is False
    assert Entry("r", 1, 1, (encode_body(run),)).final is True
    assert Entry("r", 1, 1, (encode_body(from_wire({"type": "new-end", "final": True})),)).final is True


_STOP = {"reason": "stop"}


def test_a_payload_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValidationError):
        TextDelta.model_validate({"payload": {"id": "p"}})
