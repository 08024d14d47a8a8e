"""What the OpenAPI page says beyond the models: errors and the event stream, with examples."""

from __future__ import annotations

from typing import Any, Final

_ERRORS: Final = {
    400: ("invalid_request", "The request is not valid."),
    404: ("unknown_run", "There is no such run or agent."),
    409: ("run_conflict", "The run's state, or another request with the same id, forbids it."),
    410: ("run_expired", "The run has ended and its retention has passed."),
    413: ("request_too_large", "The body is larger than this server accepts."),
    503: ("store_unavailable", "Redis does not answer. Repeat after the seconds in `Retry-After`."),
}

_SCHEMA: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "object"},
            },
        }
    },
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of error responses."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        code, text = _ERRORS[status]
        example = {"error": {"code": code, "message": text}}
        found[status] = {"description": text, "content": {"application/json": {"schema": _SCHEMA, "example": example}}}
    return found


def known(description: str, model: Any) -> dict[int | str, dict[str, Any]]:
    """The documentation of a repeated request's answer."""
    return {200: {"model": model, "description": description}}


CHUNKS_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Chunks, as a page or as a stream.",
        "content": {
            "application/json": {
                "example": {
                    "runId": "6mUYXuWMuVhRIctqrwgGLg",
                    "chunks": [
                        {
                            "type": "text-delta",
                            "runId": "6mUYXuWMuVhRIctqrwgGLg",
                            "from": "AGENT",
                            "seq": 4,
                            "attempt": 1,
                            "payload": {"id": "a1p1", "text": "It is "},
                        }
                    ],
                    "next": 4,
                    "final": False,
                }
            },
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'id: 4\ndata: {"type":"text-delta","runId":"6mUYXuWMuVhRIctqrwgGLg","from":"AGENT",'
                '"seq":4,"attempt":1,"payload":{"id":"a1p1","text":"It is "}}\n\n',
            },
        },
    },
    204: {"description": "Event stream only: the run has ended and the reader has all of it."},
}
