"""What fits a JSON schema, and which schemas can be used: nothing is fetched, and nothing takes for ever."""

from __future__ import annotations

import socket
from datetime import date, datetime, time
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, NaiveDatetime, TypeAdapter
from pydantic.networks import IPvAnyAddress

from durable.errors import ConfigurationError
from durable.schemas import MOST_PROBLEMS, UnusableSchema, check_schema, misfits
from durable.suspension import suspend

LINKED: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    return not misfits(value, schema, "data")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date-time", ["2026-11-24T10:00:00Z", "2026-11-24t10:00:00.25+01:00"], ["2026-11-24", "2026-13-01T00:00:00Z"]),
        ("date-time", ["2026-11-24T10:00:00", "2026-11-24 10:00"], ["now", "1795507200", "2026-11-24T25:00:00Z", ""]),
        ("date", ["2026-11-24"], ["2026-02-30", "24.11.2026", "2026-11-24T10:00:00Z"]),
        ("time", ["10:00:00Z", "10:00", "10:00:00.5+01:00"], ["10", "25:00:00", "ten"]),
        ("email", ["ada@example.org"], ["ada"]),
        ("idn-email", ["ada@example.org"], ["ada"]),
        ("uuid", ["6f1fa2ab-90e3-4d56-9d7c-0d6c5b2a9f10"], ["6f1fa2ab", "6f1fa2ab90e34d569d7c0d6c5b2a9f10"]),
        ("ipv4", ["127.0.0.1"], ["127.0.0.256", "::1"]),
        ("ipv6", ["::1"], ["127.0.0.1"]),
        ("regex", ["^a+$"], ["(", "(?=a)"]),
    ],
)
def test_formats_are_looked_at(name: str, good: list[str], bad: list[str]) -> None:
    schema = {"type": "string", "format": name}
    assert all(fits(value, schema) for value in good)
    assert not any(fits(value, schema) for value in bad)
    assert fits(7, {"format": name}), "a format is one of texts"


def test_an_unknown_format_says_nothing() -> None:
    assert fits("anything", {"format": "phase-of-the-moon"})


@pytest.mark.parametrize("kind", [datetime, NaiveDatetime, date, time, UUID, list[datetime], dict[str, UUID]])
def test_what_pydantic_writes_of_a_type_fits_its_schema(kind: Any) -> None:
    values = {
        datetime: datetime.fromisoformat("2026-11-24T10:00:00.25Z"),
        NaiveDatetime: datetime.fromisoformat("2026-11-24T10:00"),
        date: date(2026, 11, 24),
        time: time(10, 30),
        UUID: UUID(int=7),
        list[datetime]: [datetime.fromisoformat("2026-11-24T10:00:00+01:00")],
        dict[str, UUID]: {"a": UUID(int=7)},
    }
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    assert fits(adapter.dump_python(values[kind], mode="json"), adapter.json_schema())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": 7},
        {"properties": {"a": {"type": "nonsense"}}},
        {"required": True},
        {"pattern": "("},
        {"pattern": "(?=lookahead)"},
        {"patternProperties": {"[": {}}},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#nowhere"},
        {"$dynamicRef": "#nowhere"},
        {"items": {"anyOf": [{"$ref": "nowhere.json"}]}},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"properties": {"a": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}},
        {"$ref": 7},
        {"$ref": "#/items/%FF", "items": []},
        {"unevaluatedProperties": False, "allOf": [{"patternProperties": {"a": {}}}]},
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_used_is_told_when_the_tool_asks(schema: dict[str, Any]) -> None:
    with pytest.raises(UnusableSchema):
        check_schema(schema)
    with pytest.raises(ConfigurationError):
        suspend(resume_schema=schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"required": True},
        {"pattern": "("},
        {"pattern": "(?=lookahead)"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#/x/y", "x": {"y": {"$ref": "http://127.0.0.1:9/schema.json"}}},
        {"$ref": "#"},
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        {"items": 7},
        {"properties": 7},
        {"multipleOf": 0, "type": "integer"},
    ],
    ids=str,
)
def test_whatever_the_machinery_says_of_a_schema_is_one_error(
    schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Any] = []

    def connect(_: socket.socket, address: Any) -> None:
        fetched.append(address)
        raise OSError

    monkeypatch.setattr(socket.socket, "connect", connect)
    value: Any = [] if "items" in schema else 7 if "multipleOf" in schema else {} if len(schema) == 1 else "text"
    value = "text" if "pattern" in schema else value
    with pytest.raises(UnusableSchema):
        misfits(value, schema, "data")
    assert fetched == []


def test_usable_schemas_are_used() -> None:
    class Visit(BaseModel):
        at: datetime
        host: IPvAnyAddress
        tags: set[int] = set()

    usable: list[dict[str, Any]] = [
        Visit.model_json_schema(),
        LINKED,
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}, "$ref": "#/definitions/a"},
        {"$id": "https://example.org/s", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "null"}}},
        {"properties": {"$schema": {"type": "string"}, "$ref": {"type": "string"}}, "additionalProperties": False},
    ]
    for schema in usable:
        check_schema(schema)
        suspend(resume_schema=schema)
    named = {"properties": {"$schema": {"type": "string"}}, "additionalProperties": False}
    assert fits({"$schema": "a"}, named)
    assert not fits({"$schema": 7}, named)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "dialect", ["", "https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"]
)
def test_a_pattern_that_would_backtrack_for_ever_is_matched_at_once(dialect: str) -> None:
    evil, text = r"^(a+)+$", "a" * 40 + "b"
    string = {"type": "string", "pattern": evil} | ({"$schema": dialect} if dialect else {})
    assert not fits(text, string)
    assert not fits(
        [text], {**LINKED, "$defs": {"node": {**string, "type": ["array", "string"], "items": {"$ref": "#"}}}}
    )
    assert not fits({text: 1}, {"patternProperties": {evil: {}}, "additionalProperties": False})
    assert not fits({"b": 1}, {"patternProperties": {"b": {"type": "string"}}})
    assert fits({"aa": 1}, {"patternProperties": {evil: {}}, "additionalProperties": False})
    assert not fits({"aa": 1, "b": 2}, {"properties": {"aa": {}}, "additionalProperties": {"type": "string"}})
    assert not fits({text: 1}, {"propertyNames": {"pattern": evil}})
    assert fits("a" * 200_000, string)


@pytest.mark.timeout(20)
def test_a_schema_that_would_be_followed_for_ever_is_given_up() -> None:
    levels = 60
    twice = {f"l{i}": {"allOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(levels)}
    with pytest.raises(UnusableSchema):
        misfits(1, {"$ref": "#/$defs/l0", "$defs": {**twice, f"l{levels}": {}}}, "data")


@pytest.mark.timeout(20)
def test_the_items_of_the_largest_answer_are_compared_in_time() -> None:
    many = [{"n": i} for i in range(20_000)]
    unique = {"uniqueItems": True}
    assert fits(many, unique)
    assert not fits([*many, {"n": 7.0}], unique)
    assert not fits([*many, many[3]], unique)
    assert fits([1, True, "1", [1], {"1": 1}, None, [True], 0, False], unique)
    assert fits([1, 1], {"uniqueItems": False})


def test_what_does_not_fit_is_told_without_the_value() -> None:
    schema = {"properties": {"at": {"type": "string", "format": "date"}, "many": {"items": {"type": "integer"}}}}
    found = misfits({"at": "secret", "many": ["secret"] * 100}, schema, "data")
    assert len(found) == MOST_PROBLEMS
    assert (found[0].field, found[0].message) == ("data.at", "does not fit 'format'")
    assert (found[1].field, found[1].message) == ("data.many.0", "does not fit 'type'")
    assert "secret" not in repr(found)
