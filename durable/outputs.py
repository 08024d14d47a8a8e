"""An agent's output, back from JSON to the type that the agent declares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Union, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.output import NativeOutput, PromptedOutput, TextOutput, ToolOutput

from durable.chunks.base import Json


def restore_output(agent: AbstractAgent[Any, Any], value: Json) -> Any:
    """The output as the agent itself would return it; the JSON value where its type can't be told."""
    types = tuple(_types(agent.output_type))
    if not types or Any in types:
        return value
    try:
        union: Any = Union[types]  # noqa: UP007 - the members are not known here
        return TypeAdapter(union).validate_python(value)
    except ValidationError:
        return value


def _types(spec: Any) -> Iterator[Any]:
    """The types that an output specification may produce."""
    match spec:
        case ToolOutput():
            yield from _types(spec.output)
        case NativeOutput() | PromptedOutput():
            yield from _types(spec.outputs)
        case TextOutput():
            yield from _types(spec.output_function)
        case str() | bytes():
            return
        case Sequence():
            for item in spec:
                yield from _types(item)
        case type():
            yield spec
        case _ if callable(spec) and hasattr(spec, "__annotations__"):
            yield get_type_hints(spec).get("return", Any)
        case _:
            yield spec
