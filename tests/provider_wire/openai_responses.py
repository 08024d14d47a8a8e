"""OpenAI Responses: `POST /v1/responses`, as a stream of named and numbered events."""

from __future__ import annotations

import itertools
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from tests.provider_wire.script import (
    DROP,
    Block,
    Failure,
    Frame,
    Hold,
    Page,
    Picture,
    RedactedThinking,
    Reply,
    Text,
    Thinking,
    ToolCall,
    Usage,
    WebSearch,
    named_event,
    plain,
    refusal,
)

PATH = "/v1/responses"
MODEL = "gpt-5"

_Event = dict[str, Any] | Hold


def reply(
    *blocks: Block,
    usage: Usage | None = None,
    failure: Failure | None = None,
    drop: bool = False,
    delay: float = 0.0,
    contains: str | None = None,
    response_id: str = "resp_1",
) -> Reply:
    """A streamed response of these blocks; the arguments are those of `anthropic.reply`.

    Raises:
        ValueError: For redacted thinking, which this protocol does not have.
    """
    items = [_item(index, block) for index, block in enumerate(blocks)]
    opening = _response(response_id, "in_progress")
    events: list[_Event] = [
        {"type": "response.created", "response": opening},
        {"type": "response.in_progress", "response": opening},
        *(event for index, block in enumerate(blocks) for event in _block(index, block, items[index])),
    ]
    if failure is not None:
        events.append({"type": "error", "code": "server_error", "message": failure.message, "param": None})
    elif not drop:
        done = _response(response_id, "completed", output=items, usage=_usage(usage or Usage()))
        events.append({"type": "response.completed", "response": done})
    frames = (*_numbered(events), *((DROP,) if drop else ()))
    return Reply(PATH, frames, delay=delay, contains=contains)


def rate_limited() -> Reply:
    """HTTP 429; the client may come back at once."""
    error = {"error": {"message": "Slow down", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
    return refusal(PATH, 429, error, {"retry-after-ms": "1"})


def _numbered(events: list[_Event]) -> Iterator[Frame]:
    numbers = itertools.count()
    for event in events:
        yield event if isinstance(event, Hold) else named_event({**event, "sequence_number": next(numbers)})


def _item(index: int, block: Block) -> dict[str, Any]:
    """The finished output item of a block."""
    match block:
        case Text():
            cited = [_citation(page, block) for page in block.cites]
            part = {"type": "output_text", "text": plain(block.pieces), "annotations": cited, "logprobs": []}
            item = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
            return {"id": f"msg_{index}", **item}
        case Thinking():
            summary = [{"type": "summary_text", "text": plain(block.pieces)}]
            signature = {"encrypted_content": block.signature}
            return {"id": f"rs_{index}", "type": "reasoning", "summary": summary, **signature}
        case ToolCall():
            call = {"call_id": block.id, "name": block.name, "arguments": block.json}
            return {"id": f"fc_{index}", "type": "function_call", "status": "completed", **call}
        case WebSearch():
            sources = [{"type": "url", "url": page.url} for page in block.found]
            action = {"type": "search", "query": block.query, "queries": [block.query], "sources": sources}
            return {"id": block.id, "type": "web_search_call", "status": "completed", "action": action}
        case Picture():
            picture = {"result": _base64(block.data), "output_format": "png"}
            return {"id": block.id, "type": "image_generation_call", "status": "completed", **picture}
        case RedactedThinking():
            raise ValueError("Responses has no redacted thinking")


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _citation(page: Page, block: Text) -> dict[str, Any]:
    where = {"url": page.url, "title": page.title, "start_index": 0, "end_index": len(plain(block.pieces))}
    return {"type": "url_citation", **where}


def _block(index: int, block: Block, item: dict[str, Any]) -> Iterator[_Event]:
    started, body = _content(index, block, item)
    yield {"type": "response.output_item.added", "output_index": index, "item": started}
    yield from body
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _content(index: int, block: Block, item: dict[str, Any]) -> tuple[dict[str, Any], Iterator[_Event]]:
    """The item as it begins, and what fills it."""
    at = {"item_id": item["id"], "output_index": index}
    match block:
        case Text():
            started = {**item, "status": "in_progress", "content": []}
            return started, _text(block, {**at, "content_index": 0})
        case Thinking():
            started = {**item, "summary": [], "encrypted_content": None}
            return started, _thinking(block, {**at, "summary_index": 0})
        case ToolCall():
            return {**item, "status": "in_progress", "arguments": ""}, _call(block, at)
        case WebSearch():
            kinds = ("in_progress", "searching", "completed")
            return {**item, "status": "in_progress"}, iter(
                [{"type": f"response.web_search_call.{k}", **at} for k in kinds]
            )
        case Picture():
            return {**item, "status": "in_progress", "result": None}, _picture(block, at)
        case RedactedThinking():
            raise ValueError("Responses has no redacted thinking")


def _text(block: Text, at: dict[str, Any]) -> Iterator[_Event]:
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    yield {"type": "response.content_part.added", **at, "part": part}
    for piece in block.pieces:
        if isinstance(piece, Hold):
            yield piece
        else:
            yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
    whole = plain(block.pieces)
    for number, page in enumerate(block.cites):
        annotation = {"annotation_index": number, "annotation": _citation(page, block)}
        yield {"type": "response.output_text.annotation.added", **at, **annotation}
    yield {"type": "response.output_text.done", **at, "text": whole, "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": {**part, "text": whole}}


def _picture(block: Picture, at: dict[str, Any]) -> Iterator[_Event]:
    yield {"type": "response.image_generation_call.generating", **at}
    for number, preview in enumerate(block.previews):
        shown = {"partial_image_index": number, "partial_image_b64": _base64(preview), "output_format": "png"}
        yield {"type": "response.image_generation_call.partial_image", **at, **shown}
    yield {"type": "response.image_generation_call.completed", **at}


def _thinking(block: Thinking, at: dict[str, Any]) -> Iterator[_Event]:
    part = {"type": "summary_text", "text": ""}
    yield {"type": "response.reasoning_summary_part.added", **at, "part": part}
    for piece in block.pieces:
        if isinstance(piece, Hold):
            yield piece
        else:
            yield {"type": "response.reasoning_summary_text.delta", **at, "delta": piece}
    whole = plain(block.pieces)
    yield {"type": "response.reasoning_summary_text.done", **at, "text": whole}
    yield {"type": "response.reasoning_summary_part.done", **at, "part": {**part, "text": whole}}


def _call(block: ToolCall, at: dict[str, Any]) -> Iterator[_Event]:
    for piece in block.pieces:
        yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
    done = {"name": block.name, "arguments": block.json}
    yield {"type": "response.function_call_arguments.done", **at, **done}


def _response(
    response_id: str,
    status: str,
    *,
    output: list[dict[str, Any]] | None = None,
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1_795_486_808,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": MODEL,
        "output": output or [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }
