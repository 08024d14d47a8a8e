"""Errors on the wire: one JSON shape with a stable code. The one place where errors become HTTP statuses.

What goes out never repeats what came in, and never tells how the server failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable.errors import (
    AlreadyDecided,
    AmbiguousCall,
    BudgetNotReached,
    DurableError,
    InvalidRequest,
    RequestTooLarge,
    RunConflict,
    RunEnded,
    RunExpired,
    StoreUnavailable,
    ThreadBusy,
    ThreadConflict,
    UnknownAgent,
    UnknownCall,
    UnknownFile,
    UnknownRun,
    UnknownThread,
)
from durable.execution.failures import places

log = logging.getLogger(__name__)

STATUSES: Final[dict[type[DurableError], int]] = {
    RequestTooLarge: 413,
    InvalidRequest: 400,
    UnknownAgent: 404,
    UnknownRun: 404,
    UnknownFile: 404,
    UnknownCall: 404,
    UnknownThread: 404,
    RunExpired: 410,
    RunConflict: 409,
    RunEnded: 409,
    AlreadyDecided: 409,
    AmbiguousCall: 409,
    BudgetNotReached: 409,
    ThreadBusy: 409,
    ThreadConflict: 409,
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
        {"field": _field(issue), "message": issue["msg"][:200]}
        for issue in error.errors()[:20]
        if issue["type"] != "value_error"
    ]
    return problem(400, InvalidRequest.code, "The request is not valid.", {"issues": issues} if issues else None)


def _field(issue: dict[str, Any]) -> str:
    """Where the fault lies. The name of a field that we don't know is the caller's own text."""
    known = issue["loc"][1:-1] if issue["type"] == "extra_forbidden" else issue["loc"][1:]
    return ".".join(str(part) for part in known)[:200]


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = _CODES.get(error.status_code, "error")
    message = str(error.detail) if error.status_code != 500 else "The server failed."
    return problem(error.status_code, code, message, **dict(error.headers or {}))


def _failed() -> Response:
    return problem(500, DurableError.code, "The server failed.")


class Unexpected:
    """ASGI middleware: answers an error that nobody foresaw.

    A handler for `Exception` would answer as well, but Starlette then raises the error again, and the server writes its
    text, which may be anything, to the log.

    Args:
        app: What is behind it.
        answer: Makes the answer.
    """

    def __init__(self, app: ASGIApp, answer: Callable[[], Response] = _failed) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("unexpected %s at %s", type(error).__name__, places(error))  # noqa: TRY400 - see above
            if not started:
                await self._answer()(scope, receive, send)


def install(app: FastAPI) -> None:
    """Answer every error of the app in the one shape."""
    app.add_exception_handler(DurableError, _durable_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Unexpected)
