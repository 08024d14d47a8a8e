"""Anthropic Messages: `POST /v1/messages`, as a stream of named events."""

from __future__ import annotations

import json
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
    Piece,
    RedactedThinking,
    Reply,
    Text,
    Thinking,
    ToolCall,
    Usage,
    WebSearch,
    named_event,
    refusal,
)

PATH = "/v1/messages"
MODEL = "claude-sonnet-5-5"

_Delta = Hold | dict[str, Any]


def reply(
    *blocks: Block,
    usage: Usage | None = None,
    failure: Failure | None = None,
    drop: bool = False,
    delay: float = 0.0,
    contains: str | None = None,
    response_id: str = "msg_1",
) -> Reply:
    """A streamed response of these blocks.

    Args:
        blocks: The content, in order.
        usage: What the response reports.
        failure: An `error` event in place of the end.
        drop: Cut the connection in place of the end.
        delay: Seconds between events.
        contains: See `Reply`.
        response_id: The provider's name of the response.
    """
    frames = (
        *_opening(response_id, usage or Usage()),
        *(frame for index, content in enumerate(_contents(blocks)) for frame in _block(index, *content)),
        *_end(blocks, usage or Usage(), failure, drop=drop),
    )
    return Reply(PATH, frames, delay=delay, contains=contains)


def rate_limited() -> Reply:
    """HTTP 429; the client may come back at once."""
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down"}}
    return refusal(PATH, 429, error, {"retry-after-ms": "1"})


def _opening(response_id: str, usage: Usage) -> Iterator[Frame]:
    message: dict[str, Any] = {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage.input - usage.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": 1,
        },
    }
    yield named_event({"type": "message_start", "message": message})
    yield named_event({"type": "ping"})


def _contents(blocks: tuple[Block, ...]) -> Iterator[tuple[dict[str, Any], list[_Delta]]]:
    """What the blocks begin with, and their deltas. What a search finds is a block of its own."""
    for block in blocks:
        yield _content(block)
        if isinstance(block, WebSearch):
            found = [
                {"type": "web_search_result", "url": page.url, "title": page.title, "encrypted_content": "c2VjcmV0"}
                for page in block.found
            ]
            yield {"type": "web_search_tool_result", "tool_use_id": block.id, "content": found}, []


def _block(index: int, start: dict[str, Any], deltas: list[_Delta]) -> Iterator[Frame]:
    yield named_event({"type": "content_block_start", "index": index, "content_block": start})
    for delta in deltas:
        if isinstance(delta, Hold):
            yield delta
        else:
            yield named_event({"type": "content_block_delta", "index": index, "delta": delta})
    yield named_event({"type": "content_block_stop", "index": index})


def _content(block: Block) -> tuple[dict[str, Any], list[_Delta]]:
    match block:
        case Text():
            cited = [{"type": "citations_delta", "citation": _citation(page)} for page in block.cites]
            return {"type": "text", "text": ""}, [*_deltas("text_delta", "text", block.pieces), *cited]
        case Thinking():
            deltas = _deltas("thinking_delta", "thinking", block.pieces)
            if block.signature:
                deltas += _deltas("signature_delta", "signature", (block.signature,))
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case RedactedThinking():
            return {"type": "redacted_thinking", "data": block.data}, []
        case ToolCall():
            start = {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
            return start, _deltas("input_json_delta", "partial_json", ("", *block.pieces))
        case WebSearch():
            start = {"type": "server_tool_use", "id": block.id, "name": "web_search", "input": {}}
            return start, _deltas("input_json_delta", "partial_json", (json.dumps({"query": block.query}),))
        case Picture():
            raise ValueError("Messages has no pictures")


def _citation(page: Page) -> dict[str, str]:
    where = {"url": page.url, "title": page.title, "cited_text": page.quote, "encrypted_index": "aW5kZXg="}
    return {"type": "web_search_result_location", **where}


def _deltas(kind: str, key: str, pieces: tuple[Piece, ...]) -> list[_Delta]:
    return [piece if isinstance(piece, Hold) else {"type": kind, key: piece} for piece in pieces]


def _end(blocks: tuple[Block, ...], usage: Usage, failure: Failure | None, *, drop: bool) -> Iterator[Frame]:
    if drop:
        yield DROP
    elif failure is not None:
        yield named_event({"type": "error", "error": {"type": "overloaded_error", "message": failure.message}})
    else:
        reason = "tool_use" if any(isinstance(block, ToolCall) for block in blocks) else "end_turn"
        delta = {"stop_reason": reason, "stop_sequence": None}
        yield named_event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage.output}})
        yield named_event({"type": "message_stop"})
