"""On what terms a run uses its agent: which tools the model is given, who executes them, and what it returns.

Invariant: what can be known to be unfit from the request alone is refused before a run is created.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_ai import StructuredDict

from durable.chunks.base import Json, Wire
from durable.errors import InvalidRequest
from durable.schemas import UnusableSchema, check_schema

OutputMode = Literal["tool", "native", "prompted"]
OnClientTools = Literal["suspend", "end"]
MOST_TOOLS: Final = 128
"""Tools that a request may name, or bring along."""
TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""What all providers take for the name of a tool."""


class ClientTool(Wire):
    """A tool that the caller executes.

    Attributes:
        name: 1 to 64 of `A-Z a-z 0-9 _ -`; none of the agent's own.
        description: What it does, for the model.
        parameters: JSON schema of its arguments, an object.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str | None = None
    parameters: dict[str, Json]


ActiveTools = Annotated[list[str], Field(max_length=MOST_TOOLS)]
ClientTools = Annotated[list[ClientTool], Field(max_length=MOST_TOOLS)]


def check_output(schema: dict[str, Json] | None, mode: OutputMode | None) -> None:
    """Look whether a run can return what it is asked to.

    Raises:
        InvalidRequest: The schema is none, or not of an object; or there is a mode without one.
    """
    if schema is None:
        if mode is not None:
            raise InvalidRequest("outputMode belongs to an outputSchema.", field="outputMode")
        return
    _check_object(schema, "outputSchema")
    try:
        TypeAdapter(StructuredDict(schema)).json_schema()
    except Exception as error:  # whatever the machinery says of it
        raise InvalidRequest(
            "An output schema refers to nothing but its $defs, and to none in a circle.", field="outputSchema"
        ) from error


def check_client_tools(
    tools: Sequence[ClientTool] | None, on_client_tools: OnClientTools | None, seconds: float | None
) -> None:
    """Look whether a model can be given the tools that a caller executes.

    Raises:
        InvalidRequest: A name or a schema is none, two are called the same, or there are no tools to which the rest
            belongs.
    """
    if not tools:
        if on_client_tools is not None or seconds is not None:
            raise InvalidRequest("onClientTools and clientToolSeconds belong to clientTools.", field="clientTools")
        return
    if seconds is not None and on_client_tools == "end":
        raise InvalidRequest("A run that ends does not wait: give no clientToolSeconds.", field="clientToolSeconds")
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("Two of the client tools have the same name.", field="clientTools")
    for place, tool in enumerate(tools):
        if not TOOL_NAME.fullmatch(tool.name):
            raise InvalidRequest(
                "A tool's name is 1 to 64 letters, digits, '_' or '-'.", field=f"clientTools.{place}.name"
            )
        _check_object(tool.parameters, f"clientTools.{place}.parameters")


def check_tool_choice(settings: Mapping[str, Json] | None) -> None:
    """Look whether a model's tool choice is one.

    Raises:
        InvalidRequest: It is not.
    """
    match (settings or {}).get("tool_choice"):
        case None | "auto" | "none" | "required":
            return
        case [*names] if all(isinstance(name, str) for name in names):
            return
        case {"function_tools": [*names], **rest} if not rest and all(isinstance(name, str) for name in names):
            return
    raise InvalidRequest(
        "A tool choice is 'auto', 'none', 'required', a list of tools or {\"function_tools\": [...]}.",
        field="modelSettings.tool_choice",
    )


def _check_object(schema: dict[str, Json], field: str) -> None:
    try:
        check_schema(schema)
    except UnusableSchema:
        raise InvalidRequest("It is no JSON schema, or refers to what is not in it.", field=field) from None
    if schema.get("type") != "object":
        raise InvalidRequest('The JSON schema is not of an object: it needs "type": "object".', field=field)
