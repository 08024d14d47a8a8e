"""What this protocol says as a conversation, as Pydantic AI's message JSON.

Three forms are read, also mixed: core messages (`content` is text or a list), messages of a user interface (`parts`),
and those of the other system's own store (`content.parts`). What has no counterpart is refused by its place, never
dropped. Equal messages become equal JSON: nothing of now is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from durable.chunks.base import Json

from .problems import refuse

Part = dict[str, Json]

_DATA_URL: Final = re.compile(r"data:([^;,]*)(?:;[^,]*)?;base64,(.*)", re.DOTALL)
_CHANGING: Final = frozenset({"providerOptions", "tool_calls", "experimental_attachments"})
"""What changes what a message means. All else that it has only repeats the rest, or says when it was made."""
_MARKS: Final = frozenset({"step-start"})


def read_messages(values: Json, field: str = "messages") -> list[Json]:
    """Messages as Pydantic AI's JSON: requests and responses in turn.

    Raises:
        Refused: One of them is of no form that is known.
    """
    if isinstance(values, str):
        values = [{"role": "user", "content": values}]
    if not isinstance(values, list):
        raise refuse((field, "Give a text or a list of messages."))
    history = _History()
    for index, value in enumerate(values):
        place = f"{field}.{index}"
        message = {"role": "user", "content": value} if isinstance(value, str) else value
        if not isinstance(message, dict):
            raise refuse((place, "A message is an object."))
        _read(history, message, place)
    return history.messages


def tool_results(values: Json) -> list[tuple[str, Json]]:
    """The calls that the last message answers, with their results; none when it is not of a tool.

    Raises:
        Refused: It is one, and can't be read.
    """
    if not isinstance(values, list) or not values:
        return []
    last = values[-1]
    if not isinstance(last, dict) or last.get("role") != "tool":
        return []
    history, place = _History(), f"messages.{len(values) - 1}"
    _read(history, last, place)
    return [(part["tool_call_id"], part["content"]) for message in history.messages for part in message["parts"]]


def system_texts(value: Json, field: str) -> list[str]:
    """The texts of instructions: a text, a system message, or a list of either.

    Raises:
        Refused: It is none of these.
    """
    if value is None:
        return []
    if isinstance(value, list):
        return [text for index, item in enumerate(value) for text in system_texts(item, f"{field}.{index}")]
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, dict) and value.get("role") == "system" and isinstance(value.get("content"), str):
        if value.get("providerOptions"):
            raise refuse((f"{field}.providerOptions", "Options of a single message are not supported."))
        return system_texts(value["content"], field)
    raise refuse((field, "Give a text, a system message, or a list of these."))


class _History:
    """A conversation as it is put together: neighbouring parts of one side are one message."""

    def __init__(self) -> None:
        self.messages: list[Json] = []

    def said(self, part: Part) -> None:
        """The model said this."""
        self._add("response", part)

    def asked(self, part: Part) -> None:
        """The model was told this."""
        self._add("request", part)

    def _add(self, kind: str, part: Part) -> None:
        if not self.messages or self.messages[-1]["kind"] != kind:
            self.messages.append({"kind": kind, "parts": []})
        self.messages[-1]["parts"].append(part)


def _read(history: _History, message: dict[str, Json], place: str) -> None:
    content, parts = message.get("content"), message.get("parts")
    if isinstance(content, dict):
        parts, content = content.get("parts"), content.get("content")
    # Where there are parts, the content repeats their text.
    given = parts if isinstance(parts, list) and parts else content
    where = f"{place}.parts" if given is parts else f"{place}.content"
    if isinstance(given, str):
        given = [{"type": "text", "text": given}]
    if not isinstance(given, list):
        raise refuse((where, "Give a text or a list of parts."))
    reader = _READERS.get(str(message.get("role")))
    if reader is None:
        raise refuse((f"{place}.role", "A role is system, user, assistant or tool."))
    for name, extra in message.items():
        if name in _CHANGING and extra:
            raise refuse((f"{place}.{name}", "This is not supported in a message."))
    reader(history, list(_objects(given, where)))


def _objects(parts: Iterable[Json], place: str) -> Iterator[tuple[Part, str]]:
    for index, part in enumerate(parts):
        where = f"{place}.{index}"
        if isinstance(part, str):
            yield {"type": "text", "text": part}, where
        elif isinstance(part, dict) and isinstance(part.get("type"), str):
            if part["type"] not in _MARKS and not part["type"].startswith("data-"):
                yield part, where
        else:
            raise refuse((where, "A part is an object with a type."))


Parts = list[tuple[Part, str]]


def _system(history: _History, parts: Parts) -> None:
    for part, place in parts:
        history.asked({"part_kind": "system-prompt", "content": _text(part, place)})


def _user(history: _History, parts: Parts) -> None:
    content: list[Json] = [
        _text(part, place) if part["type"] == "text" else _file(part, place) for part, place in parts
    ]
    if not content:
        return
    told = "\n".join(content) if all(isinstance(item, str) for item in content) else content
    history.asked({"part_kind": "user-prompt", "content": told})


def _assistant(history: _History, parts: Parts) -> None:
    """What the model said. A part may hold a call and its result, too: results of calls that were made together come
    after all of them, and what follows is another response."""
    results: list[Part] = []
    for part, place in parts:
        call = _call(part, place)
        if call is not None:
            made, result = call
            if made is not None:
                history.said(made)
            if result is not None:
                results.append(result)
        elif (said := _said(part, place)) is not None:
            _settle(history, results)
            history.said(said)
    _settle(history, results)


def _settle(history: _History, results: list[Part]) -> None:
    for result in results:
        history.asked(result)
    results.clear()


def _said(part: Part, place: str) -> Part | None:
    """A part of a response that is no call; None for what only tells where a text is from."""
    match part["type"]:
        case "text":
            return {"part_kind": "text", "content": _text(part, place)}
        case "reasoning":
            return _reasoning(part, place)
        case "file":
            return {"part_kind": "file", "content": _binary(part, place)}
        case "source" | "source-url" | "source-document":
            return None
    raise refuse((f"{place}.type", "A part of this type is not supported here."))


def _tool(history: _History, parts: Parts) -> None:
    for part, place in parts:
        if part["type"] != "tool-result":
            raise refuse((f"{place}.type", "A message of a tool has tool-result parts."))
        history.asked(_result(part, place))


_READERS: Final[dict[str, Callable[[_History, Parts], None]]] = {
    "system": _system,
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
}


def _call(part: Part, place: str) -> tuple[Part | None, Part | None] | None:
    """The call that a part holds, and its result, as far as it has them; None when it is no part of a call."""
    kind = part["type"]
    if kind == "tool-call":
        return _made(part, place), None
    if kind == "tool-result":
        return None, _result(part, place)
    if kind == "tool-invocation":
        made = part.get("toolInvocation")
        if not isinstance(made, dict):
            raise refuse((f"{place}.toolInvocation", "This has to be an object."))
        done = made.get("state") == "result" or "result" in made
        return _made(made, place), _result(made, place) if done else None
    if kind == "dynamic-tool" or kind.startswith("tool-"):
        named = {"toolName": kind.removeprefix("tool-"), **part}
        match part.get("state"):
            case "output-available":
                return _made(named, place), _result({**named, "result": part.get("output")}, place)
            case "output-error":
                return _made(named, place), _result({**named, "result": part.get("errorText"), "isError": True}, place)
            case _:
                return _made(named, place), None
    return None


def _made(call: Part, place: str) -> Part:
    name, call_id = _names(call, place)
    args = call.get("args", call.get("input"))
    if not isinstance(args, dict | str | None):
        raise refuse((f"{place}.args", "The arguments of a call are an object."))
    return {"part_kind": "tool-call", "tool_name": name, "tool_call_id": call_id, "args": args}


def _result(part: Part, place: str) -> Part:
    name, call_id = _names(part, place)
    value, failed = part.get("result"), part.get("isError") is True
    told = part.get("providerOptions")
    output = part.get("output")
    if isinstance(told, dict) and isinstance(mine := told.get("mastra"), dict) and "modelOutput" in mine:
        output = mine["modelOutput"]  # what the caller's tool wants the model to be told in place of the result
    if isinstance(output, dict) and "type" in output:
        failed = failed or str(output["type"]).startswith("error")
        value = output.get("value", output.get("reason", output))
    elif output is not None:
        value = output
    found: Part = {"part_kind": "tool-return", "tool_name": name, "tool_call_id": call_id, "content": value}
    return found | {"outcome": "failed"} if failed else found


def _names(part: Part, place: str) -> tuple[str, str]:
    name, call_id = part.get("toolName"), part.get("toolCallId")
    if not isinstance(name, str) or not isinstance(call_id, str) or not name or not call_id:
        raise refuse((place, "A call has a toolName and a toolCallId."))
    return name, call_id


def _text(part: Part, place: str) -> str:
    text = part.get("text")
    if part["type"] != "text" or not isinstance(text, str):
        raise refuse((place, "Only text is supported here."))
    return text


def _reasoning(part: Part, place: str) -> Part:
    text = part.get("text", part.get("reasoning", ""))
    if not isinstance(text, str):
        raise refuse((place, "Reasoning is given as text."))
    return {"part_kind": "thinking", "content": text}


def _file(part: Part, place: str) -> Json:
    """A file that the user gives: its bytes, or where they are."""
    if part["type"] not in {"file", "image"}:
        raise refuse((f"{place}.type", "A part of this type is not supported here."))
    where = part.get("image", part.get("url", part.get("data")))
    if isinstance(where, str) and where.startswith(("https://", "http://")):
        kind = (_media_type(part) or ("image/*" if part["type"] == "image" else "")).partition("/")[0]
        url: Part = {"kind": f"{kind if kind in {'image', 'audio', 'video'} else 'document'}-url", "url": where}
        media_type = _media_type(part)
        return url | {"media_type": media_type} if media_type and "*" not in media_type else url
    return _binary(part, place)


def _binary(part: Part, place: str) -> Part:
    """The bytes of a file: base64, alone or in a URL."""
    data, media_type = part.get("image", part.get("url", part.get("data"))), _media_type(part)
    if isinstance(data, str) and (found := _DATA_URL.fullmatch(data)) is not None:
        media_type, data = found[1] or media_type, found[2]
    if part["type"] == "image" and not media_type:
        media_type = "image/png"
    if not isinstance(data, str) or not media_type:
        raise refuse((place, "A file has its data, in base64 or as a URL, and its mediaType."))
    return {"kind": "binary", "data": data, "media_type": media_type}


def _media_type(part: Part) -> str:
    found = part.get("mediaType", part.get("mimeType"))
    return found if isinstance(found, str) else ""
