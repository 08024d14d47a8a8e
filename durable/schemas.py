"""JSON schemas of answers: which can be used, and what does not fit them.

Invariant: a schema, whoever wrote it, fetches nothing, and neither it nor a value takes more than a bounded time. So
patterns are matched by an engine that does not backtrack, and a value may follow only so many references.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, time
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from pydantic_core import SchemaError, SchemaValidator, core_schema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from durable import exact_json
from durable.chunks.base import Issue, Json

MOST_PROBLEMS: Final = 20
"""Problems of a value that are told."""
FEWEST_REFERENCES: Final = 1000
REFERENCES_PER_BYTE: Final = 10
"""References that are followed for a value, at most: more than it needs with any schema that is not malign."""

_REFERENCES: Final = frozenset({"$ref", "$dynamicRef"})
_TIME: Final = re.compile(r"\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?", re.ASCII | re.IGNORECASE)
_DATE_TIME: Final = re.compile(rf"\d{{4}}-\d\d-\d\d[T ]{_TIME.pattern}", re.ASCII | re.IGNORECASE)


class UnusableSchema(Exception):
    """Nothing can be checked with the schema."""


def check_schema(schema: dict[str, Json]) -> None:
    """Look whether values can be checked with a schema.

    Raises:
        UnusableSchema: It is no schema, refers to what is not in it, or has a pattern that is none.
    """
    try:
        Draft202012Validator.check_schema(schema, format_checker=_FORMATS)
        _usable(schema)
    except Exception as error:  # whatever the machinery says of it
        raise UnusableSchema from error


def misfits(value: Json, schema: dict[str, Json], name: str) -> list[Issue]:
    """What of a value does not fit a schema, without the value; `name` is what the value is called.

    Raises:
        UnusableSchema: It can't be told.
    """
    try:
        usable, size = _usable(schema), len(exact_json.dumps(value))
        left = iter(range(FEWEST_REFERENCES + REFERENCES_PER_BYTE * size))
        # A registry of its own: nothing is fetched from anywhere.
        checker = _checker(left)(usable, registry=Registry(), format_checker=_FORMATS)
        found = list(islice(checker.iter_errors(value), MOST_PROBLEMS))
    except Exception as error:
        raise UnusableSchema from error
    return [issue([name, *problem.absolute_path], str(problem.validator)) for problem in found]


def issue(place: Sequence[str | int], check: str) -> Issue:
    """What is wrong with a value: where, and by which check, but never the value."""
    return Issue(field=".".join(str(part)[:50] for part in place), message=f"does not fit {check!r}")


def _usable(schema: dict[str, Json]) -> dict[str, Json]:
    """The schema as it is used: in our dialect throughout, as the library goes over to its own where one is named."""
    usable: dict[str, Json] = _without_dialects(schema)
    written = exact_json.dumps(usable)
    if b'"unevaluatedProperties"' in written and b'"patternProperties"' in written:
        raise UnusableSchema  # for these two together the library matches patterns itself
    root = DRAFT202012.create_resource(usable)
    _look_up(root, Registry().resolver_with_root(root))
    return usable


def _without_dialects(schema: Any) -> Any:
    match schema:
        case dict():
            # A property may be called so: then it is no text.
            parts = ((name, part) for name, part in schema.items() if name != "$schema" or not isinstance(part, str))
            return {name: _without_dialects(part) for name, part in parts}
        case list():
            return [_without_dialects(part) for part in schema]
    return schema


def _look_up(schema: Resource[Any], resolver: Any) -> None:
    """Find what each part of a schema refers to."""
    if isinstance(schema.contents, dict):
        for name in _REFERENCES & schema.contents.keys():
            resolver.lookup(schema.contents[name])
    for part in schema.subresources():
        _look_up(part, resolver.in_subresource(part))


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> SchemaValidator:
    """Finds a pattern in a text, in linear time. Raises for what is no pattern, or needs backtracking."""
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def _checker(left: Iterator[int]) -> Any:
    """The library's validator, with our own keywords in place of those that take unbounded time."""

    def following(name: str) -> Any:
        def follow(checker: Any, reference: str, value: Json, schema: Any) -> Iterator[ValidationError]:
            if next(left, None) is None:
                raise UnusableSchema
            yield from Draft202012Validator.VALIDATORS[name](checker, reference, value, schema) or ()

        return follow

    keywords = {**_KEYWORDS, **{name: following(name) for name in _REFERENCES}}
    return extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]  # the stubs leave it open


def _pattern(checker: Any, pattern: str, value: Json, _: Any) -> Iterator[ValidationError]:
    if checker.is_type(value, "string") and not _matcher(pattern).isinstance_python(value):
        yield ValidationError("it does not match")


def _pattern_properties(checker: Any, patterns: dict[str, Any], value: Any, _: Any) -> Iterator[ValidationError]:
    if checker.is_type(value, "object"):
        for pattern, part in patterns.items():
            for name in value:
                if _matcher(pattern).isinstance_python(name):
                    yield from checker.descend(value[name], part, path=name, schema_path=pattern)


def _additional_properties(checker: Any, part: Any, value: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    if not checker.is_type(value, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name in value:
        if name in known or any(_matcher(pattern).isinstance_python(name) for pattern in patterns):
            continue
        if part is False:
            yield ValidationError("there is more")
            return
        yield from checker.descend(value[name], part, path=name)


def _unique_items(checker: Any, unique: bool, value: Any, _: Any) -> Iterator[ValidationError]:  # noqa: FBT001 - the library's form
    # The library compares each with each.
    if unique and checker.is_type(value, "array") and len({_key(item) for item in value}) < len(value):
        yield ValidationError("some are the same")


def _key(value: Json) -> Any:
    """Equal for what JSON schema takes for equal: 1 and 1.0, but not 1 and true."""
    match value:
        case dict():
            return "object", tuple((name, _key(value[name])) for name in sorted(value))
        case list():
            return "array", tuple(map(_key, value))
        case bool():
            return "boolean", value
    return value


_KEYWORDS: Final[dict[str, Any]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}
# Those that need no further package, and are the same whichever are installed.
_FORMATS: Final = FormatChecker(("date", "email", "idn-email", "ipv4", "ipv6", "uuid"))


@_FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    """As RFC 3339 has it; the offset may be missing, as in times that a tool wants to be local."""
    return not isinstance(value, str) or bool(_DATE_TIME.fullmatch(value) and datetime.fromisoformat(value.upper()))


@_FORMATS.checks("time", raises=ValueError)
def _is_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return _TIME.fullmatch(value) is not None and time.fromisoformat(value.upper()) is not None


@_FORMATS.checks("regex", raises=ValueError)
def _is_pattern(value: object) -> bool:
    if isinstance(value, str):
        try:
            _matcher(value)
        except SchemaError as error:
            raise ValueError from error
    return True
