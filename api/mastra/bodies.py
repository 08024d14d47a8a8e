"""What a caller sends to begin a run, as the run's request.

Invariant: each field either does what it says or is refused by its name. One whose value asks for nothing is neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import Body
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from durable.chunks.base import Json
from durable.runs import RunRequest, read_until_idle

from ..bodies import LONGEST_IDLE_MS
from .messages import read_messages, system_texts, tool_results
from .options import model_settings, provider_options
from .problems import asks_nothing, refuse

CLIENT_TOOL_SECONDS: Final = 3600.0
"""How long a run waits for the result of a tool that its caller executes."""
NOT_SUPPORTED: Final = "This server does not support this."
OTHER_TERMS: Final = "The run was begun with another value."
Sent = Annotated[dict[str, Any], Body()]
Value = dict[str, Any]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Attributes:
        request: The run's request.
        run_id: The caller's own id for the run.
        results: Call and result, of the tools that the caller has executed, when the last message tells these.
        terms: The body's fields by those of the request that they give, the messages aside.
    """

    request: RunRequest
    run_id: str | None = None
    results: list[tuple[str, Json]] = field(default_factory=list)
    terms: dict[str, str] = field(default_factory=dict)

    def differing(self, begun: RunRequest) -> list[str]:
        """The fields that ask for something else than a run was begun with."""
        mine, other = _values(self.request), _values(begun)
        return sorted({said for name, said in self.terms.items() if mine.get(name) != other.get(name)})


def read_execution(body: Value, *, until_idle: bool = False) -> Asked:
    """What to do with a body that begins a run.

    Args:
        body: The JSON object.
        until_idle: Whether the route itself asks that the run goes on when its background tasks end.

    Raises:
        Refused: It asks for something that can't be done, or can't be read.
    """
    if "messages" not in body:
        raise refuse(("messages", "Field required"))
    run_id, fields, terms = _read_terms(body, ("messages", "system", "context"), until_idle=until_idle)
    said = _said(body, in_thread="thread_id" in fields)
    return Asked(_request({**fields, **said}), run_id, tool_results(body["messages"]), terms)


def read_terms(body: Value, *but: str, until_idle: bool = False) -> Asked:
    """What a body says of a run that has begun: the terms that it repeats.

    Args:
        body: The JSON object.
        but: Fields that are read elsewhere.
        until_idle: See `read_execution`.

    Raises:
        Refused: It asks for something that can't be done, or can't be read.
    """
    run_id, fields, terms = _read_terms(body, but, until_idle=until_idle)
    return Asked(_request(fields), run_id, terms=terms)


def _read_terms(body: Value, but: tuple[str, ...], *, until_idle: bool) -> tuple[str | None, Fields, dict[str, str]]:
    unknown = [
        name for name, value in body.items() if name not in _TERMS and name not in but and not asks_nothing(value)
    ]
    unknown = [name for name in unknown if name not in {"runId", "maxIdleMs", "untilIdle"}]
    if unknown:
        raise refuse(*((name, NOT_SUPPORTED) for name in unknown))
    fields: Fields = {}
    terms: dict[str, str] = {}
    settings: Fields = {}
    for name, read in _TERMS.items():
        if body.get(name) is not None:
            found = read(body[name])
            settings |= found.pop("model_settings", {})
            fields |= found
            terms |= dict.fromkeys(found, name)
    if settings:
        fields["model_settings"] = settings
        terms["model_settings"] = "modelSettings"
    run_id = body.get("runId")
    if run_id is not None and not isinstance(run_id, str):
        raise refuse(("runId", "A run id is a text."))
    idle = _idle(body, until_idle=until_idle)
    if idle is not None:
        fields["max_idle"] = idle
    if fields.get("client_tools"):
        waits = {"on_client_tools": "suspend", "client_tool_seconds": CLIENT_TOOL_SECONDS}
        fields |= {"on_client_tools": "end"} if run_id is None else waits
    return run_id, fields, terms


def _said(body: Value, *, in_thread: bool) -> Fields:
    """What the run is told: a prompt where that says it all."""
    values = body["messages"]
    if in_thread and tool_results(values):
        values = values[-1:]  # the thread has what came before
    system = system_texts(body.get("system"), "system")
    messages = [
        *read_messages([{"role": "system", "content": text} for text in system]),
        *read_messages(body.get("context") or [], "context"),
        *read_messages(values),
    ]
    messages = _merged(messages)
    parts = messages[-1]["parts"] if messages else []
    if not parts or messages[-1]["kind"] != "request" or parts[-1]["part_kind"] == "system-prompt":
        raise refuse(("messages", "The last message is the user's, or tells results of tools."))
    if parts[-1]["part_kind"] == "user-prompt":
        content = parts[-1]["content"]
        if isinstance(content, str) and not content.strip():
            raise refuse(("messages", "The last message is empty."))
        if len(messages) == len(parts) == 1:
            return {"prompt": content}
    return {"messages": messages}


def _merged(messages: list[Json]) -> list[Json]:
    """The same with neighbouring messages of one side as one."""
    found: list[Json] = []
    for message in messages:
        if found and found[-1]["kind"] == message["kind"]:
            found[-1] = {**found[-1], "parts": [*found[-1]["parts"], *message["parts"]]}
        else:
            found.append(message)
    return found


def _request(fields: Fields) -> RunRequest:
    try:
        return RunRequest(**fields)
    except ValidationError as error:
        issues = [(_place(issue["loc"]), issue["msg"]) for issue in error.errors(include_input=False)]
        raise refuse(*issues) from None


def _place(loc: tuple[int | str, ...]) -> str:
    if loc[0] == "include":
        return "includeRawChunks"
    return ".".join(to_camel(str(part)) if index == 0 else str(part) for index, part in enumerate(loc))


def _values(request: RunRequest) -> Value:
    found: Value = request.model_dump(mode="json", exclude_none=True)
    return found


def _idle(body: Value, *, until_idle: bool) -> float | None:
    """For how many seconds in a row the run waits for its background tasks."""
    given, most = body.get("untilIdle"), body.get("maxIdleMs")
    if isinstance(given, dict):
        unknown = [name for name, value in given.items() if name != "maxIdleMs" and not asks_nothing(value)]
        if unknown:
            raise refuse(*((f"untilIdle.{name}", NOT_SUPPORTED) for name in unknown))
        most, given = given.get("maxIdleMs", most), True
    if not isinstance(given, bool | None):
        raise refuse(("untilIdle", "This is true, false or an object with maxIdleMs."))
    if not (given or until_idle or most is not None):
        return None
    if most is None:
        return read_until_idle(until_idle=True)
    if isinstance(most, bool) or not isinstance(most, int | float) or not 0 < most <= LONGEST_IDLE_MS:
        raise refuse(("maxIdleMs", "This is a number of milliseconds."))
    return float(most) / 1000


def _memory(value: Json) -> Fields:
    memory = _object(value, "memory", "thread", "resource")
    thread, resource = memory.get("thread"), memory.get("resource")
    if isinstance(thread, dict):
        thread = _object(thread, "memory.thread", "id").get("id")
    if not isinstance(thread, str | None) or not isinstance(resource, str | None):
        raise refuse(("memory", "A thread is an id, or an object with an id; a resource is an id."))
    if thread is None:
        raise refuse(("memory.thread", "Field required"))
    return {"thread_id": thread} | ({} if resource is None else {"resource_id": resource})


def _flag(name: str, where: str) -> Callable[[Json], Fields]:
    def read(value: Json) -> Fields:
        if not isinstance(value, bool):
            raise refuse((where, "This is true or false."))
        return {name: True} if value else {}

    return read


def _instructions(value: Json) -> Fields:
    texts = system_texts(value, "instructions")
    return {"instructions": "\n\n".join(texts)} if texts else {}


def _settings(value: Json) -> Fields:
    settings, retries = model_settings(value)
    return ({"model_settings": settings} if settings else {}) | ({} if retries is None else {"retries": retries})


def _options(value: Json) -> Fields:
    return {"model_settings": provider_options(value)}


def _tool_choice(value: Json) -> Fields:
    match value:
        case "auto" | "none" | "required":
            return {"model_settings": {"tool_choice": value}}
        case {"type": "tool", "toolName": str(name)}:
            return {"model_settings": {"tool_choice": [name]}}
    raise refuse(("toolChoice", "This is auto, none, required or an object of type tool with a toolName."))


def _structured_output(value: Json) -> Fields:
    asked = _object(value, "structuredOutput", "schema", "jsonPromptInjection", "errorStrategy")
    if asked.get("errorStrategy") not in {None, "strict"}:
        raise refuse(("structuredOutput.errorStrategy", "A run whose output does not fit its schema fails."))
    schema, prompted = asked.get("schema"), asked.get("jsonPromptInjection")
    if not isinstance(schema, dict):
        raise refuse(("structuredOutput.schema", "This is a JSON schema."))
    if not isinstance(prompted, bool | None):
        raise refuse(("structuredOutput.jsonPromptInjection", "This is true or false."))
    return {"output_schema": schema} | ({"output_mode": "prompted"} if prompted else {})


def _client_tools(value: Json) -> Fields:
    if not isinstance(value, dict):
        raise refuse(("clientTools", "This is an object of tools by their names."))
    tools = [_client_tool(name, tool, f"clientTools.{name}") for name, tool in value.items()]
    return {"client_tools": tools} if tools else {}


def _client_tool(name: str, tool: Json, place: str) -> Fields:
    """A tool as the model is told of it. All else that it has is for who executes it."""
    if not isinstance(tool, dict):
        raise refuse((place, "This is an object."))
    for asked in ("requireApproval", "providerOptions"):
        if not asks_nothing(tool.get(asked)):
            raise refuse((f"{place}.{asked}", NOT_SUPPORTED))
    schema = tool.get("inputSchema", tool.get("parameters"))
    if schema is None:
        schema = {"type": "object", "properties": {}}
    if not isinstance(schema, dict):
        raise refuse((f"{place}.inputSchema", "This is a JSON schema."))
    return {"name": name, "description": tool.get("description"), "parameters": schema}


def _plain(name: str) -> Callable[[Json], Fields]:
    def read(value: Json) -> Fields:
        return {name: value}

    return read


def _context(value: Json) -> Fields:
    if not isinstance(value, dict):
        raise refuse(("requestContext", "This is an object."))
    return {"deps": value} if value else {}


def _raw_chunks(value: Json) -> Fields:
    if not isinstance(value, bool):
        raise refuse(("includeRawChunks", "This is true or false."))
    return {"include": ["raw"]} if value else {}


def _object(value: Json, place: str, *known: str) -> Value:
    """A field that is an object, with nothing in it that is not known."""
    if not isinstance(value, dict):
        raise refuse((place, "This is an object."))
    unknown = [name for name, given in value.items() if name not in known and not asks_nothing(given)]
    if unknown:
        raise refuse(*((f"{place}.{name}", NOT_SUPPORTED) for name in unknown))
    return value


_TERMS: Final[dict[str, Callable[[Json], Fields]]] = {
    "memory": _memory,
    "instructions": _instructions,
    "requireToolApproval": _flag("require_tool_approval", "requireToolApproval"),
    "maxSteps": _plain("max_steps"),
    "modelSettings": _settings,
    "providerOptions": _options,
    "toolChoice": _tool_choice,
    "activeTools": _plain("active_tools"),
    "structuredOutput": _structured_output,
    "clientTools": _client_tools,
    "requestContext": _context,
    "includeRawChunks": _raw_chunks,
}
