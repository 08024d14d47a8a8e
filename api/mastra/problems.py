"""Errors as this protocol's client reads them: `{"error": "<text>", "issues"?: [{"field", "message"}]}`.

The client sends a request again when it is answered with 5xx. So what would fail again is never a 5xx: only a store
that does not answer is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from durable.chunks.base import Json
from durable.errors import DurableError

from ..problems import Unexpected, status_of

INVALID: Final = "Invalid request body"
MOST_ISSUES: Final = 20
NAMES: Final = {
    "outputSchema": "structuredOutput.schema",
    "outputMode": "structuredOutput.jsonPromptInjection",
    "modelSettings.tool_choice": "toolChoice",
}
"""Fields of a run's request, by their names in this protocol where these are others."""


class Refused(Exception):
    """A request that this door does not do.

    Args:
        status: HTTP status, 4xx.
        message: Why, for whoever reads it.
        issues: Field and reason, where fields are the matter.
    """

    def __init__(self, status: int, message: str, issues: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.issues = [{"field": field[:200], "message": text[:200]} for field, text in issues or []]


def refuse(*issues: tuple[str, str]) -> Refused:
    """A body with fields that can't be honoured: field and reason of each."""
    return Refused(400, INVALID, list(issues))


def asks_nothing(value: Json) -> bool:
    """Whether a field's value asks for nothing, so that there is nothing to refuse."""
    return value is None or value is False or value in ("", [], {})


def problem(
    status: int, message: str, issues: list[dict[str, str]] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as a response."""
    body: dict[str, Any] = {"error": message}
    if issues:
        body["issues"] = issues[:MOST_ISSUES]
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return problem(error.status, error.message, error.issues)


async def _durable_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, DurableError):
        raise error
    status = status_of(error)
    if status == 500:
        raise error  # nobody foresaw it here
    field, issues = error.details.get("field"), list(error.details.get("issues", []))
    if field is not None:
        issues.append({"field": NAMES.get(str(field), str(field)), "message": error.message})
    return problem(status, error.message, issues, {"Retry-After": "1"} if status == 503 else None)


async def _invalid(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    issues = [
        {"field": ".".join(str(part) for part in issue["loc"][1:])[:200], "message": str(issue["msg"])[:200]}
        for issue in error.errors()
    ]
    return problem(400, INVALID, issues)


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return problem(error.status_code, str(error.detail), headers=error.headers)


def _failed() -> Response:
    return problem(500, "The server failed.")


def install(door: FastAPI) -> None:
    """Answer every error of the door in its shape."""
    door.add_exception_handler(Refused, _refused)
    door.add_exception_handler(DurableError, _durable_error)
    door.add_exception_handler(RequestValidationError, _invalid)
    door.add_exception_handler(HTTPException, _http_error)
    door.add_middleware(Unexpected, answer=_failed)
