"""Errors on the wire: one JSON shape with a stable code. The one place where errors become HTTP statuses.

What goes out never repeats what came in, and never tells how the server failed.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from durable.errors import (
    DurableError,
    InvalidRequest,
    RequestTooLarge,
    RunConflict,
    RunEnded,
    RunExpired,
    StoreUnavailable,
    UnknownAgent,
    UnknownRun,
)

log = logging.getLogger(__name__)

STATUSES: Final[dict[type[DurableError], int]] = {
    RequestTooLarge: 413,
    InvalidRequest: 400,
    UnknownAgent: 404,
    UnknownRun: 404,
    RunExpired: 410,
    RunConflict: 409,
    RunEnded: 409,
    StoreUnavailable: 503,
}

_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: RequestTooLarge.code, 400: InvalidRequest.code}


def problem(status: int, code: str, message: str, details: Any = None, **headers: str) -> Response:
    """An error as a response."""
    error: dict[str, Any] = {"code": code, "message": message}
    if details:
        error["details"] = details
    return Response(orjson.dumps({"error": error}), status, headers, media_type="application/json")


def status_of(error: DurableError) -> int:
    """The HTTP status of an error: its class's, or that of the nearest class above it; 500 for none."""
    return next((STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES), 500)


async def _durable_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, DurableError):
        raise error
    status = status_of(error)
    if status == 500:
        log.error("unexpected %s", type(error).__name__)
        return problem(500, DurableError.code, "The server failed.")
    headers = {"Retry-After": "1"} if status == 503 else {}
    return problem(status, error.code, error.message, error.details, **headers)


async def _invalid(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    # A problem names the field and what is wrong with it. Its input stays here.
    issues = [
        {"field": ".".join(str(part) for part in issue["loc"][1:])[:200], "message": issue["msg"][:200]}
        for issue in error.errors()[:20]
        if issue["type"] != "value_error"
    ]
    return problem(400, InvalidRequest.code, "The request is not valid.", {"issues": issues} if issues else None)


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = _CODES.get(error.status_code, "error")
    message = str(error.detail) if error.status_code != 500 else "The server failed."
    return problem(error.status_code, code, message, **dict(error.headers or {}))


async def _unexpected(_: Request, error: Exception) -> Response:
    log.error("unexpected %s", type(error).__name__)
    return problem(500, DurableError.code, "The server failed.")


def install(app: FastAPI) -> None:
    """Answer every error of the app in the one shape."""
    app.add_exception_handler(DurableError, _durable_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
