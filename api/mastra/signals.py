"""The routes of messages: tell a run that is under way something, or begin one with it.

A message for a thread is told to the run that has not ended (`ifActive`), or begins one (`ifIdle`). What a message says
is what its model is told: nothing that it has beside is left out silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import APIRouter, Response

from durable.backend import Backend
from durable.chunks.base import Json
from durable.errors import RunEnded, ThreadConflict
from durable.runs import RunRecord
from durable.runs.record import RUN_ID

from ..dependencies import TheBackend
from .agents import as_json
from .bodies import NOT_SUPPORTED, Sent, read_execution
from .log import run_of
from .messages import read_messages
from .problems import asks_nothing, refuse
from .repeats import Repeats
from .runs import begun
from .threads import live_run

router = APIRouter(prefix="/agents/{agent}")

Said = dict[str, Json]

_PLAIN: Final = frozenset({"user", "user-message"})
_TAGGED: Final = frozenset({"reactive", "notification", "system-reminder"})
_TAG: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)
IGNORED: Final = frozenset({"id", "type", "tagName", "createdAt", "contents"})


@dataclass(frozen=True)
class Told:
    """What a body tells, and whom.

    Attributes:
        contents: Text, or a list of parts, as the sender gives them.
        run_id: The run, if one is named.
        thread_id: The thread, if one is named.
        resource_id: Whose it has to be.
        if_active: What is done with it if a run is under way.
        if_idle: … and if none is.
        options: On what terms a run begins with it.
        signal: What the sender calls a signal, if it is one.
    """

    contents: Json
    run_id: str | None
    thread_id: str | None
    resource_id: str | None
    if_active: str
    if_idle: str
    options: Said
    signal: Said | None = None

    @property
    def content(self) -> Json:
        """The contents as what a user says in Pydantic AI's JSON."""
        parts = [
            part
            for message in read_messages([{"role": "user", "content": self.contents}], "message")
            for part in message["parts"]
        ]
        if len(parts) == 1:
            return parts[0]["content"]
        return [item for part in parts for item in _listed(part["content"])]


@router.post("/send-message")
async def send_message(agent: str, body: Sent, backend: TheBackend) -> Response:
    """Tell the run that is under way; begin one if none is."""
    told = _read(body, "message", _message)
    return await _tell(backend, agent, told, await Repeats(backend, "send-message", agent, body).id())


@router.post("/signals")
async def send_signal(agent: str, body: Sent, backend: TheBackend) -> Response:
    """The same with a signal, which may have an id of its own: with that it is told once."""
    told = _read(body, "signal", _signal)
    return await _tell(backend, agent, told, await Repeats(backend, "signals", agent, body).id())


@router.post("/queue-message")
async def queue_message(agent: str, body: Sent, backend: TheBackend) -> Response:
    """Begin a run with it, behind the one that is under way."""
    told, run_id = _read(body, "message", _message), await Repeats(backend, "queue-message", agent, body).id()
    if told.run_id is not None:
        record = await run_of(backend, agent, told.run_id)
        _check_place(record, told)
        if record.thread_id is None:
            raise refuse(("runId", "The run has no thread in which another could follow it."))
        told = replace(told, thread_id=record.thread_id, resource_id=record.resource_id)
    live = await live_run(backend, agent, told.thread_id or "", told.resource_id)
    if live is not None and live.run_id != run_id and told.if_active == "discard":
        return _accepted(live.run_id, told, run_id)
    if live is None and told.if_idle == "discard":
        return _accepted("", told, run_id)  # nothing is to become of it
    return await _begin(backend, agent, told, run_id)


async def _tell(backend: Backend, agent: str, told: Told, request_id: str) -> Response:
    if told.run_id is not None:
        live: RunRecord | None = (named := await run_of(backend, agent, told.run_id))
        _check_place(named, told)
    else:
        live = await live_run(backend, agent, told.thread_id or "", told.resource_id)
        # A request that is sent again means the run that it was for: that one may have ended since, or begun with it.
        meant = await Repeats(backend, "told", request_id).first("" if live is None else live.run_id)
        live = await run_of(backend, agent, meant) if meant else None
    if live is not None:
        if told.if_active == "discard":
            return _accepted(live.run_id, told, request_id)
        message_id = str((told.signal or {}).get("id") or request_id)
        try:
            await backend.send(live.run_id, told.content, message_id=message_id)
        except RunEnded:
            if told.run_id is not None:
                raise
        else:
            return _accepted(live.run_id, told, request_id)
    if told.if_idle == "discard":
        return _accepted("", told, request_id)  # nothing is to become of it
    return await _begin(backend, agent, told, request_id)


async def _begin(backend: Backend, agent: str, told: Told, run_id: str) -> Response:
    memory = {"thread": told.thread_id} | ({} if told.resource_id is None else {"resource": told.resource_id})
    given = told.options.get("memory")
    if given is not None and _thread_of(given) != told.thread_id:
        raise refuse(("ifIdle.streamOptions.memory", "This names another thread than the message."))
    messages = [{"role": "user", "content": told.contents}]
    asked = read_execution({**told.options, "memory": memory, "messages": messages})
    record, _ = await begun(backend, agent, replace(asked, run_id=asked.run_id or run_id))
    return _accepted(record.run_id, told, run_id)


def _check_place(record: RunRecord, told: Told) -> None:
    """Refuse a run that is not where the sender takes it to be."""
    if told.thread_id not in {None, record.thread_id}:
        raise refuse(("threadId", "The run is of another thread."))
    if told.resource_id not in {None, record.resource_id}:
        raise ThreadConflict


def _accepted(run_id: str, told: Told, request_id: str) -> Response:
    signal = {} if told.signal is None else {"signal": {"id": request_id, **told.signal}}
    return as_json({"accepted": True, "runId": run_id, **signal})


def _read(body: Said, name: str, read: Any) -> Told:
    known = {name, "runId", "resourceId", "threadId", "ifActive", "ifIdle"}
    wrong = [(each, NOT_SUPPORTED) for each, value in body.items() if each not in known and not asks_nothing(value)]
    ids = ("runId", "resourceId", "threadId")
    wrong += [(each, "This is a text.") for each in ids if not isinstance(body.get(each), str | None)]
    if name not in body:
        wrong.append((name, "Field required"))
    if body.get("runId") is None and body.get("threadId") is None:
        wrong.append(("threadId", "Name a thread, or a run by runId."))
    if wrong:
        raise refuse(*wrong)
    active = _behaviour(body, "ifActive", {"deliver", "discard"})
    idle = _behaviour(body, "ifIdle", {"wake", "discard"}, "streamOptions")
    options = (body.get("ifIdle") or {}).get("streamOptions") or {}
    if not isinstance(options, dict):
        raise refuse(("ifIdle.streamOptions", "This is an object."))
    contents, signal = read(body[name], name)
    return Told(
        contents=contents,
        run_id=body.get("runId"),
        thread_id=body.get("threadId"),
        resource_id=body.get("resourceId"),
        if_active=active or "deliver",
        if_idle=idle or "wake",
        options={each: value for each, value in options.items() if value is not None},
        signal=signal,
    )


def _behaviour(body: Said, name: str, known: set[str], *also: str) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise refuse((name, "This is an object."))
    for each, given in value.items():
        if each not in {"behavior", *also} and not asks_nothing(given):
            raise refuse((f"{name}.{each}", NOT_SUPPORTED))
    behaviour = value.get("behavior")
    if behaviour is not None and behaviour not in known:
        raise refuse((f"{name}.behavior", f"This server knows: {', '.join(sorted(known))}."))
    return behaviour


def _message(value: Json, name: str) -> tuple[Json, None]:
    if isinstance(value, dict):
        _nothing_else(value, name, frozenset({"contents"}))
        return value["contents"], None
    return value, None


def _signal(value: Json, name: str) -> tuple[Json, Said]:
    if not isinstance(value, dict):
        raise refuse((name, "A signal is an object."))
    _nothing_else(value, name, IGNORED)
    kind, tag = value.get("type"), value.get("tagName")
    if kind not in _PLAIN | _TAGGED:
        raise refuse((f"{name}.type", f"This server knows: {', '.join(sorted(_PLAIN | _TAGGED))}."))
    if value.get("id") is not None and not (isinstance(value["id"], str) and RUN_ID.fullmatch(value["id"])):
        raise refuse((f"{name}.id", "An id is 1 to 128 letters, digits, '_' or '-'."))
    contents = value["contents"]
    if kind in _TAGGED or tag is not None:
        contents = _tagged(contents, tag or kind, name)
    told = {each: value[each] for each in ("id", "type", "tagName", "createdAt", "contents") if each in value}
    return contents, told


def _tagged(contents: Json, tag: Json, name: str) -> Json:
    """Contents that the model is to know from what its user says."""
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise refuse((f"{name}.tagName", "A tag is a name."))
    if isinstance(contents, str):
        return f"<{tag}>{contents}</{tag}>"
    return [{"type": "text", "text": f"<{tag}>"}, *_listed(contents), {"type": "text", "text": f"</{tag}>"}]


def _nothing_else(value: Said, name: str, known: frozenset[str]) -> None:
    for each, given in value.items():
        if each not in known and not asks_nothing(given):
            raise refuse((f"{name}.{each}", NOT_SUPPORTED))
    if "contents" not in value:
        raise refuse((f"{name}.contents", "Field required"))


def _thread_of(memory: Json) -> Json:
    thread = memory.get("thread") if isinstance(memory, dict) else None
    return thread.get("id") if isinstance(thread, dict) else thread


def _listed(value: Json) -> list[Json]:
    return list(value) if isinstance(value, list) else [value]
