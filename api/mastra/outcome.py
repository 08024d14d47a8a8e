"""What a run has come to, as one JSON object: for callers who wait for it instead of following it.

A run that failed is 422: the client of this protocol sends a request again that is answered with 5xx, and the model
would be asked anew. So it does when no answer has begun for minutes: one that takes long begins before it is known, and
then tells a failure in its body. A caller who goes away stops waiting, not the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from durable.backend import Backend
from durable.chunks.base import Json
from durable.errors import DurableError, StoreUnavailable
from durable.runs import RunRecord
from durable.views import PendingCall, RunStatus, RunView

from ..sse import HEADERS
from .framing import HEARTBEAT_SECONDS
from .log import pauses
from .problems import problem

Told = dict[str, Any]

_KEPT: Final = (
    "start", "step-start", "text-delta", "reasoning-delta", "source", "file", "tool-call", "tool-result",
    "tool-error", "finish",
)  # fmt: skip
_PREFIXES: Final = tuple(b'{"type":"%b"' % name.encode() for name in _KEPT)
PATIENCE_SECONDS: Final = 120.0
CLOSED: Final = 499
"""The status of an answer that nobody waits for any more; it is never seen."""


async def outcome(
    backend: Backend, record: RunRecord, request: Request, *, patience: float = PATIENCE_SECONDS
) -> Response:
    """Wait until a run ends, or waits for somebody, and tell what it has come to.

    Args:
        backend: The run layer.
        record: The run.
        request: Of the caller who waits.
        patience: Seconds after which the answer begins, whatever it will be.

    Raises:
        StoreUnavailable: Redis does not answer, or this server stops: the same request may be sent again.
    """
    waiting = asyncio.create_task(_full(backend, record))
    deadline = asyncio.get_running_loop().time() + patience
    while not waiting.done():
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return StreamingResponse(_late(waiting, record.run_id), media_type="application/json", headers=HEADERS)
        await asyncio.wait([waiting], timeout=min(left, 1.0))
        if not waiting.done() and await request.is_disconnected():
            waiting.cancel()
            return Response(status_code=CLOSED)
    full = await waiting
    return problem(422, full) if isinstance(full, str) else Response(orjson.dumps(full), media_type="application/json")


async def _late(waiting: asyncio.Task[Told | str], run_id: str) -> AsyncIterator[bytes]:
    """The answer for a client that would give up on one that does not begin, and send its request again: blanks, which
    JSON allows before a value, until it is there."""
    try:
        while not waiting.done():
            yield b" "
            await asyncio.wait([waiting], timeout=HEARTBEAT_SECONDS)
        try:
            full = await waiting
        except DurableError as error:
            full = error.message
        yield orjson.dumps({"error": full, "finishReason": "error", "runId": run_id} if isinstance(full, str) else full)
    finally:
        waiting.cancel()


async def _full(backend: Backend, record: RunRecord) -> Told | str:
    """What a run has come to; why it failed, when it did."""
    heard = _Heard()
    reading = backend.observer.pages(record.run_id, silence=HEARTBEAT_SECONDS, pauses=partial(pauses, backend))
    async with aclosing(reading) as pages:
        async for page in pages:
            for entry in page:
                for seq, body in enumerate(entry.bodies, entry.first):
                    if body.startswith(_PREFIXES):
                        heard.take(seq, orjson.loads(body))
    record = await backend.runs.get(record.run_id)
    if not (record.status.ended or await pauses(backend, record)):
        raise StoreUnavailable("This server stops. The run goes on: ask again.")
    [view] = await backend.views([record])
    if view.status is RunStatus.FAILED and view.tripwire is None:
        return "The run failed." if view.error is None else view.error.message
    client_tools = {tool.name for tool in (await backend.runs.request(record.run_id)).client_tools or []}
    return _told(view, heard, record.voids, client_tools)


class _Heard:
    """What of a log is told again at the end."""

    def __init__(self) -> None:
        self._chunks: list[tuple[int, Told]] = []
        self.finish: Told | None = None

    def take(self, seq: int, chunk: Told) -> None:
        """The next chunk."""
        if chunk["type"] == "finish":
            self.finish = chunk["payload"]
        else:
            self._chunks.append((seq, chunk))

    def payloads(self, kind: str, voids: Iterable[tuple[int, int]]) -> list[Told]:
        """The payloads of one type, without those that do not count."""
        return [
            chunk["payload"]
            for seq, chunk in self._chunks
            if chunk["type"] == kind and not any(first <= seq <= last for first, last in voids)
        ]

    def of_last_step(self, kind: str) -> list[Told]:
        """The payloads of one type since the last step began."""
        found: list[Told] = []
        for _, chunk in self._chunks:
            if chunk["type"] == "step-start":
                found.clear()
            elif chunk["type"] == kind:
                found.append(chunk["payload"])
        return found


def _told(view: RunView, heard: _Heard, voids: list[tuple[int, int]], client_tools: Collection[str]) -> Told:
    pending = [] if view.ended else view.pending or []
    finish = heard.finish if view.ended else None
    output: Told = finish["output"] if finish is not None else _so_far(heard)
    steps = [_step(view.run_id, index, step) for index, step in enumerate(output["steps"])]
    open_calls = _open(heard, pending)
    reason = finish["stepResult"]["reason"] if finish is not None else _waiting_reason(pending, client_tools)
    if reason == "tool-calls":
        calls = [_chunk(view.run_id, "tool-call", call) for call in open_calls]
    else:
        calls = [call for step in steps for call in step["toolCalls"]]
    messages = [message for step in output["steps"] for message in _messages(step)]
    found: Told = {
        "text": output["text"],
        "usage": output["usage"],
        "steps": steps,
        "finishReason": reason,
        "warnings": [],
        "request": {},
        "reasoning": [{"type": "reasoning", "payload": each} for each in heard.payloads("reasoning-delta", voids)],
        "reasoningText": "".join(each["text"] for each in heard.payloads("reasoning-delta", voids)),
        "toolCalls": calls,
        "toolResults": [result for step in steps for result in step["toolResults"]],
        "sources": [_chunk(view.run_id, "source", each) for each in heard.payloads("source", voids)],
        "files": [_chunk(view.run_id, "file", each) for each in heard.payloads("file", voids)],
        "response": {"messages": messages, "dbMessages": [], "uiMessages": []},
        "totalUsage": output["usage"],
        "usedFallbackValue": False,
        "runId": view.run_id,
        "messages": messages,
        "rememberedMessages": [],
    }
    if "object" in output:
        found["object"] = output["object"]
    if view.tripwire is not None:
        found["tripwire"] = view.tripwire
    if reason == "suspended" and pending:
        found["suspendPayload"] = _asked(pending[0])
        found["resumeSchema"] = found["suspendPayload"]["resumeSchema"]
    return found


def _so_far(heard: _Heard) -> Told:
    """What a run that waits has said in its last step."""
    text = "".join(each["text"] for each in heard.of_last_step("text-delta"))
    step = {
        "text": text,
        "toolCalls": heard.of_last_step("tool-call"),
        "toolResults": heard.of_last_step("tool-result"),
        "usage": {},
        "finishReason": "tool-calls",
    }
    return {"text": text, "usage": {}, "steps": [step] if step["toolCalls"] else []}


def _waiting_reason(pending: list[PendingCall], client_tools: Collection[str]) -> str:
    """`tool-calls` when all that a run waits for are results of tools that its caller executes."""
    if pending and all(call.kind == "external" and call.tool_name in client_tools for call in pending):
        return "tool-calls"
    return "suspended"


def _open(heard: _Heard, pending: list[PendingCall]) -> list[Told]:
    """The calls of the last step that have no result."""
    if pending:
        waiting = {call.tool_call_id for call in pending}
        return [call for call in heard.of_last_step("tool-call") if call["toolCallId"] in waiting]
    done = {each["toolCallId"] for kind in ("tool-result", "tool-error") for each in heard.of_last_step(kind)}
    return [call for call in heard.of_last_step("tool-call") if call["toolCallId"] not in done]


def _step(run_id: str, index: int, step: Told) -> Told:
    return {
        "stepType": "tool-result" if index else "initial",
        "text": step["text"],
        "toolCalls": [_chunk(run_id, "tool-call", call) for call in step["toolCalls"]],
        "toolResults": [_chunk(run_id, "tool-result", result) for result in step["toolResults"]],
        "finishReason": step["finishReason"],
        "usage": step["usage"],
        "sources": [],
        "files": [],
        "reasoning": [],
        "warnings": [],
        "request": {},
    }


def _messages(step: Told) -> list[Told]:
    """A step as messages of this protocol: what `read_messages` takes again."""
    content: list[Json] = [{"type": "text", "text": step["text"]}] if step["text"] else []
    content += [
        {
            "type": "tool-call",
            "toolCallId": call["toolCallId"],
            "toolName": call["toolName"],
            "input": call.get("args") or {},
        }
        for call in step["toolCalls"]
    ]
    results = [
        {
            "type": "tool-result",
            "toolCallId": result["toolCallId"],
            "toolName": result["toolName"],
            "output": {"type": "json", "value": result.get("result", result.get("error"))},
        }
        for result in step["toolResults"]
    ]
    found: list[Told] = [{"role": "assistant", "content": content}] if content else []
    return [*found, {"role": "tool", "content": results}] if results else found


def _chunk(run_id: str, kind: str, payload: Told) -> Told:
    return {"type": kind, "runId": run_id, "from": "AGENT", "payload": payload}


def _asked(call: PendingCall) -> Told:
    """What a call waits for, as the chunk that announced it tells it."""
    found: Told = {
        "toolCallId": call.tool_call_id,
        "toolName": call.tool_name,
        "args": call.args,
        "resumeSchema": orjson.dumps(call.resume_schema or {}).decode(),
    }
    if call.payload is not None:
        found["suspendPayload"] = call.payload
    return found
