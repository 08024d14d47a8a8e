"""What the OpenAPI page says beyond the models: errors and the event stream, with examples."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

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


RUN: Final[dict[str, Any]] = {
    "runId": "6mUYXuWMuVhRIctqrwgGLg",
    "agent": "weather",
    "status": "completed",
    "attempt": 1,
    "lastSeq": 17,
    "createdAt": "2026-11-24T08:00:00.000000Z",
    "startedAt": "2026-11-24T08:00:00.004000Z",
    "finishedAt": "2026-11-24T08:00:02.310000Z",
    "usage": {"inputTokens": 120, "outputTokens": 41, "totalTokens": 161},
    "output": "It is 7 degrees and dry in Basel.",
    "metadata": {"customer": "c-42"},
    "links": {
        "self": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg",
        "chunks": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg/chunks",
        "messages": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg/messages",
        "diagnosis": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg/diagnosis",
        "cancel": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg/cancel",
    },
}
_BEGUN: Final = {"agent", "runId", "createdAt", "metadata", "links"}
NEW_RUN: Final = {**{k: v for k, v in RUN.items() if k in _BEGUN}, "status": "queued", "attempt": 0, "lastSeq": 0}
RUN_UNDER_WAY: Final = {**NEW_RUN, "status": "running", "attempt": 1, "lastSeq": 12, "startedAt": RUN["startedAt"]}
RUNS: Final = {"runs": [{k: v for k, v in RUN.items() if k != "output"}], "next": "1795507200000.1"}
_CALL: Final = {
    "toolCallId": "call_8Zk2",
    "questionId": "1.0",
    "toolName": "refund",
    "args": {"order": "4711", "amount": 120},
    "kind": "approval",
    "resumeSchema": {
        "type": "object",
        "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string"}},
        "required": ["approved"],
    },
    "since": "2026-11-24T08:00:01.204000Z",
    "expiresAt": "2026-11-25T08:00:01.204000Z",
    "onExpiry": "decline",
    "links": {
        "run": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg",
        "approve": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg/tool-calls/call_8Zk2/approve?questionId=1.0",
        "decline": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg/tool-calls/call_8Zk2/decline?questionId=1.0",
    },
}
INBOX: Final = {
    "pending": [{**_CALL, "runId": "6mUYXuWMuVhRIctqrwgGLg", "agent": "support"}],
    "next": "1795507201204.6mUYXuWMuVhRIctqrwgGLg%3Acall_8Zk2",
}
_TASK: Final[dict[str, Any]] = {
    "taskId": "task-3f1c0a7be59d42c8a6d1f08e7b24c9530d1e6a87",
    "status": "completed",
    "toolName": "read_all_about",
    "toolCallId": "call_8Zk2",
    "runId": "6mUYXuWMuVhRIctqrwgGLg",
    "agent": "researcher",
    "args": {"topic": "tea"},
    "disposition": "deferred",
    "queue": "durable.researcher",
    "attempt": 1,
    "retriesUsed": 0,
    "createdAt": "2026-11-24T08:00:00.000000Z",
    "startedAt": "2026-11-24T08:00:00.004000Z",
    "completedAt": "2026-11-24T08:00:41.310000Z",
    "links": {
        "self": "/v1/background-tasks/task-3f1c0a7be59d42c8a6d1f08e7b24c9530d1e6a87",
        "cancel": "/v1/background-tasks/task-3f1c0a7be59d42c8a6d1f08e7b24c9530d1e6a87/cancel",
        "chunks": "/v1/runs/task-3f1c0a7be59d42c8a6d1f08e7b24c9530d1e6a87/chunks",
        "run": "/v1/runs/6mUYXuWMuVhRIctqrwgGLg",
    },
}
TASK: Final[dict[str, Any]] = {**_TASK, "result": "All about tea."}
TASKS: Final = {"tasks": [_TASK], "next": "1795507200000.task-3f1c0a7be59d42c8a6d1f08e7b24c9530d1e6a87"}
CANCELLED_TASK: Final = {**_TASK, "status": "cancelled"}
RESUMED_TASK: Final = {k: v for k, v in _TASK.items() if k != "completedAt"} | {"status": "pending"}
TASK_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The tasks that are being executed, then what becomes of tasks.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"runId":"6mUYXuWMuVhRIctqrwgGLg","from":"AGENT","type":"background-task-running",'
                '"payload":{"taskId":"task-3f1c0a7be59d42c8a6d1f08e7b24c9530d1e6a87","toolName":"read_all_about",'
                '"toolCallId":"call_8Zk2","runId":"6mUYXuWMuVhRIctqrwgGLg","agentId":"researcher",'
                '"startedAt":"2026-11-24T08:00:00.004Z","args":{"topic":"tea"}}}\n\n',
            }
        },
    },
    204: {"description": "The task that was asked for has ended."},
}


def decided(decision: str, **more: str) -> dict[str, Any]:
    """A run whose call has just had an answer: it waits for a worker to go on."""
    names = {"toolCallId": "call_8Zk2", "questionId": "1.0", "toolName": "refund"}
    told = {**names, "decision": decision, **more, "actor": "ada"}
    begun = {name: RUN[name] for name in ("runId", "createdAt", "startedAt", "metadata", "links")}
    decision_at = {**told, "at": "2026-11-24T08:31:07.918000Z"}
    return {**begun, "agent": "support", "status": "queued", "attempt": 1, "lastSeq": 12, "decisions": [decision_at]}


MESSAGES: Final = {
    "messages": [
        {"role": "user", "content": "What is the weather in Basel?"},
        {
            "role": "assistant",
            "content": "",
            "toolCalls": [{"toolCallId": "call-1", "toolName": "forecast", "args": {"city": "Basel"}}],
        },
        {
            "role": "tool",
            "content": "",
            "toolResults": [{"toolCallId": "call-1", "toolName": "forecast", "result": "7 degrees, dry"}],
        },
        {"role": "assistant", "content": "It is 7 degrees and dry in Basel."},
    ]
}
THREAD_MESSAGES: Final = {
    "messages": [
        {
            "id": "6mUYXuWMuVhRIctqrwgGLg.1",
            "runId": "6mUYXuWMuVhRIctqrwgGLg",
            "role": "user",
            "content": "What is the weather in Basel?",
        },
        {
            "id": "6mUYXuWMuVhRIctqrwgGLg.2",
            "runId": "6mUYXuWMuVhRIctqrwgGLg",
            "role": "assistant",
            "content": "It is 7 degrees and dry in Basel.",
        },
    ],
    "next": None,
}
DIAGNOSIS: Final = {
    "runId": "6mUYXuWMuVhRIctqrwgGLg",
    "agent": "weather",
    "status": "queued",
    "reason": "no_worker",
    "summary": "It waits: no live worker serves the agent 'weather'.",
    "facts": [
        {
            "code": "queued",
            "message": "It was submitted 12.3 s ago.",
            "details": {"since": "2026-11-24T08:00:00.000Z"},
        },
        {
            "code": "workers",
            "message": "No live worker serves 'weather'. Start one that has this agent.",
            "details": {"count": 0},
        },
    ],
}
AGENTS: Final = {
    "agents": [
        {
            "name": "weather",
            "description": "Answers questions about the weather.",
            "kind": "evented",
            "model": "anthropic:claude-sonnet-5-5",
            "tools": [
                {
                    "name": "forecast",
                    "description": "The forecast for a city.",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
                }
            ],
            "outputSchema": {"type": "string"},
            "queue": "durable.weather",
            "maxSteps": 20,
            "workers": 2,
        }
    ]
}


def example(status: int, value: Any) -> dict[int | str, dict[str, Any]]:
    """The documentation of an answer by an example."""
    return {status: {"content": {"application/json": {"example": value}}}}


def known(description: str, model: Any, **differing: Any) -> dict[int | str, dict[str, Any]]:
    """The documentation of a repeated request's answer."""
    content = {"application/json": {"example": {**RUN, **differing}}}
    return {200: {"model": model, "description": description, "content": content}}


class Documented(FastAPI):
    """An app whose OpenAPI document says what the app does: invalid input is 400, never FastAPI's own 422."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            self.openapi_schema = document
        return self.openapi_schema


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
