"""OpenAI Chat Completions: `POST /v1/chat/completions`, as a stream of unnamed events that `[DONE]` ends.

Reasoning comes in `reasoning_content`, as the servers send it that have this protocol and reasoning.
"""

from __future__ import annotations

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
    plain,
    refusal,
    unnamed_event,
)

PATH = "/v1/chat/completions"
MODEL = "gpt-4.1"


def reply(
    *blocks: Block,
    usage: Usage | None = None,
    failure: Failure | None = None,
    drop: bool = False,
    delay: float = 0.0,
    contains: str | None = None,
    response_id: str = "chatcmpl-1",
) -> Reply:
    """A streamed response of these blocks; the arguments are those of `anthropic.reply`.

    Raises:
        ValueError: For redacted thinking, which this protocol does not have.
    """
    frames = (
        _chunk(response_id, {"role": "assistant", "content": ""}),
        *_blocks(response_id, blocks),
        *_end(response_id, blocks, usage or Usage(), failure, drop=drop),
    )
    return Reply(PATH, frames, delay=delay, contains=contains)


def rate_limited() -> Reply:
    """HTTP 429; the client may come back at once."""
    error = {"error": {"message": "Slow down", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
    return refusal(PATH, 429, error, {"retry-after-ms": "1"})


def _blocks(response_id: str, blocks: tuple[Block, ...]) -> Iterator[Frame]:
    calls = 0
    for block in blocks:
        match block:
            case Text() | Thinking():
                key = "content" if isinstance(block, Text) else "reasoning_content"
                for piece in block.pieces:
                    yield piece if isinstance(piece, Hold) else _chunk(response_id, {key: piece})
                if isinstance(block, Text) and block.cites:
                    yield _chunk(response_id, {"annotations": [_citation(page, block) for page in block.cites]})
            case ToolCall():
                function: dict[str, Any] = {"name": block.name, "arguments": ""}
                head = {"index": calls, "id": block.id, "type": "function", "function": function}
                yield _chunk(response_id, {"tool_calls": [head]})
                for piece in block.pieces:
                    more = {"index": calls, "function": {"arguments": piece}}
                    yield _chunk(response_id, {"tool_calls": [more]})
                calls += 1
            case RedactedThinking() | WebSearch() | Picture():
                raise ValueError("Chat Completions has no such block")


def _citation(page: Page, block: Text) -> dict[str, Any]:
    where = {"url": page.url, "title": page.title, "start_index": 0, "end_index": len(plain(block.pieces))}
    return {"type": "url_citation", "url_citation": where}


def _end(
    response_id: str, blocks: tuple[Block, ...], usage: Usage, failure: Failure | None, *, drop: bool
) -> Iterator[Frame]:
    if drop:
        yield DROP
        return
    if failure is not None:
        error = {"message": failure.message, "type": "server_error", "param": None, "code": None}
        yield unnamed_event({"error": error})
        return
    reason = "tool_calls" if any(isinstance(block, ToolCall) for block in blocks) else "stop"
    yield _chunk(response_id, {}, finish_reason=reason)
    yield unnamed_event({**_envelope(response_id), "choices": [], "usage": _usage(usage)})
    yield b"data: [DONE]\n\n"


def _chunk(response_id: str, delta: dict[str, Any], *, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return unnamed_event({**_envelope(response_id), "choices": [choice], "usage": None})


def _envelope(response_id: str) -> dict[str, Any]:
    return {
        "id": response_id,
        "object": "chat.completion.chunk",
        "created": 1_795_486_808,
        "model": MODEL,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": 0},
    }
