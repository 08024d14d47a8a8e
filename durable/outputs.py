"""An agent's output, to the run's record and back to the type that the agent declares.

The record holds the output twice where that is needed: as JSON for everybody, and in a form that makes the same value
of the same type again. The second form is only kept if it was seen to do so when it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_ai import StructuredDict
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.output import NativeOutput, PromptedOutput, TextOutput, ToolOutput
from pydantic_core import PydanticSerializationError, core_schema, from_json, to_json

from durable.chunks.base import Json
from durable.chunks.codec import without_surrogates
from durable.runs import OutputMode, RunRequest
from durable.schemas import UnusableSchema, misfits
from durable.translate import Shape, to_json_value

_VALUE: Final = "output"
_TYPE: Final = "outputType"
_EXACT: Final = "outputExact"


def requested_output(schema: dict[str, Json], mode: OutputMode | None) -> Any:
    """The output type of a run that is asked for an object of this JSON schema. What does not fit it is refused, and
    the model is told what of it."""
    kind = _checked(schema)
    match mode:
        case "native":
            return NativeOutput(kind)
        case "prompted":
            return PromptedOutput(kind)
        case _:
            return ToolOutput(kind)


def output_type_of(agent: AbstractAgent[Any, Any], request: RunRequest) -> Any:
    """What a run returns: what it was asked for, or else what its agent does."""
    if request.output_schema is None:
        return agent.output_type
    return requested_output(request.output_schema, request.output_mode)


def _checked(schema: dict[str, Json]) -> type:
    """A dictionary that fits a JSON schema."""

    class Checked(StructuredDict(schema)):  # type: ignore[misc]  # a class that is made from the schema
        @classmethod
        def __get_pydantic_core_schema__(
            cls, source_type: Any, handler: GetCoreSchemaHandler
        ) -> core_schema.CoreSchema:
            found = super().__get_pydantic_core_schema__(source_type, handler)
            return core_schema.no_info_after_validator_function(fitting, found)

    def fitting(value: Json) -> Json:
        try:
            problems = misfits(value, schema, "output")
        except UnusableSchema:
            raise ValueError("it can't be told whether it fits the schema") from None
        if problems:
            raise ValueError("; ".join(f"{problem.field} {problem.message}" for problem in problems))
        return value

    return Checked


def output_fields(spec: Any, output: Any) -> dict[str, bytes | str]:
    """The fields of a run's record that hold an output.

    Args:
        spec: What the run returns, as `output_type_of` tells it.
        output: What it returned; any value.
    """
    try:
        value = to_json(to_json_value(output))
    except PydanticSerializationError:
        value = to_json(without_surrogates(to_json_value(output)))
    fields: dict[str, bytes | str] = {_VALUE: value}
    if type(output) is str:
        return fields
    # The type's own entry before those that it would fit as well.
    for kind in sorted(_types(spec), key=lambda kind: kind is not type(output)):
        exact = _exact(kind, output)
        if exact is not None:
            fields[_TYPE] = _name(kind)
            if exact != value:
                fields[_EXACT] = exact
            break
    return fields


def restore_output(spec: Any, fields: Mapping[str, bytes]) -> Any:
    """The output as the agent itself would return it; the JSON value where its type can't be told.

    Args:
        spec: What the run returns, as this process knows it by `output_type_of`.
        fields: The run's record.
    """
    data = fields.get(_VALUE)
    if data is None:
        return None
    kinds = list(_types(spec))
    name = fields.get(_TYPE, b"").decode()
    for kind in kinds:
        if _name(kind) == name:
            try:
                return _read(kind, fields.get(_EXACT, data))
            except ValidationError:  # the type has changed since
                break
    return _likely(kinds, from_json(data))


def shape_of(schema: Any) -> Shape:
    """Where the responses of one agent run have its structured output, by Pydantic AI's own schema of it. What that
    does not tell as this version knows it is not followed."""
    tools = getattr(getattr(schema, "toolset", None), "processors", None) or {}
    named = {name: _path(processor) for name, processor in tools.items()}
    if schema.mode in {"native", "prompted", "auto"}:
        return Shape(named, _path(getattr(schema, "processor", None)), may_be_text=schema.mode == "auto")
    return Shape(named)


def _path(processor: Any) -> tuple[str, ...]:
    if hasattr(processor, "_union_processor"):
        return ("result", "data")
    key = getattr(processor, "hook_unwrap_key", None)
    schema: dict[str, Any] = getattr(getattr(processor, "object_def", None), "json_schema", {})
    # A function that takes one model is called with what that has, without the name of its argument around it.
    return (str(key),) if key in schema.get("properties", {}) else ()


def _likely(kinds: Sequence[Any], value: Json) -> Any:
    """The value as the type that it fits best."""
    if not kinds or Any in kinds or (isinstance(value, str) and str in kinds):
        return value
    union: Any = Union[tuple(kinds)]  # noqa: UP007 - the members are not known here
    try:
        return TypeAdapter(union).validate_json(to_json(value))
    except ValidationError:
        return value


def _exact(kind: Any, output: Any) -> bytes | None:
    """The JSON that this type makes the very same value of; None when there is none."""
    try:
        data = TypeAdapter(kind).dump_json(output, by_alias=False, round_trip=True, warnings="error")
        again = _read(kind, data)
    except Exception:  # noqa: BLE001 - validators and serializers are the user's own
        return None
    return data if type(again) is type(output) and again == output else None


def _read(kind: Any, data: bytes) -> Any:
    return TypeAdapter(kind).validate_json(data, by_alias=False, by_name=True)


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) and not get_args(kind) else repr(kind)


def _types(spec: Any) -> Iterator[Any]:
    """The types that an output specification may produce."""
    match spec:
        case ToolOutput() | NativeOutput() | PromptedOutput() | TextOutput():
            yield from _types(_marked(spec))
        case str() | bytes():
            return
        case Sequence():
            for item in spec:
                yield from _types(item)
        case _ if get_origin(spec) in (Union, UnionType):
            for item in get_args(spec):
                yield from _types(item)
        case _ if callable(spec) and not isinstance(spec, type) and hasattr(spec, "__annotations__"):
            yield from _types(_returned(spec))
        case _:
            yield spec


def _marked(marker: Any) -> Any:
    """What a marker marks."""
    match marker:
        case ToolOutput():
            return marker.output
        case TextOutput():
            return marker.output_function
        case _:
            return marker.outputs


def _returned(function: Any) -> Any:
    """What a function says that it returns; anything when it does not say."""
    try:
        return get_type_hints(function).get("return", Any)
    except Exception:  # noqa: BLE001 - annotations may name what is not there at run time
        return Any
