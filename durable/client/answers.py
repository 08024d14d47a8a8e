"""Reading what a server answers: its objects, its errors as classes of `durable.errors`, its wish to be left alone.

Invariant: whatever comes back, the caller sees a `DurableError` or the object asked for, and never an error of the
HTTP library.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from durable.chunks.base import Json
from durable.errors import DurableError, InvalidRequest, RunUnsuccessful, ServerUnreachable

Model = TypeVar("Model", bound=BaseModel)

# The server, or what stands before it, may answer otherwise in a moment.
PASSING: Final = frozenset({429, 502, 503, 504})

_FOREIGN = "The server answered with status {status}, and not in the form of this API."


def _tree(root: type[DurableError]) -> Iterator[type[DurableError]]:
    yield root
    for branch in root.__subclasses__():
        # What `result()` raises tells of a run's end; no answer of a server stands for it.
        if branch is not RunUnsuccessful:
            yield from _tree(branch)


_BY_CODE: Final = {cls.code: cls for cls in reversed(list(_tree(DurableError)))}


def read(response: httpx.Response, model: type[Model]) -> Model:
    """The object that a response, read to its end, carries.

    Raises:
        DurableError: The server refused; the class is that of its code.
        ServerUnreachable: What answered does not speak this API.
    """
    if not response.is_success:
        raise error_of(response)
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        # Its text would repeat the input.
        raise ServerUnreachable(_FOREIGN.format(status=response.status_code)) from error


def error_of(response: httpx.Response) -> DurableError:
    """The error that a response, read to its end, stands for. A code without a class is kept on a `DurableError`."""
    told = _told(response)
    code, message, details = told.get("code"), told.get("message"), told.get("details")
    if not isinstance(code, str):
        return ServerUnreachable(_FOREIGN.format(status=response.status_code))
    error = _BY_CODE.get(code, DurableError)(message if isinstance(message, str) else None)
    error.code = code
    if details is not None:
        error.details = details if isinstance(details, dict) else {"details": details}
    return error


def _told(response: httpx.Response) -> dict[str, Json]:
    try:
        body = from_json(response.content)
    except ValueError:
        return {}
    told = body.get("error") if isinstance(body, dict) else None
    return told if isinstance(told, dict) else {}


def failure_of(error: httpx.RequestError, server: str) -> DurableError:
    """What a request without an answer stands for; `InvalidRequest` when it could not even be sent."""
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        return InvalidRequest("The request can't be sent: a header or the URL is not valid.")
    if isinstance(error, httpx.TimeoutException):
        return ServerUnreachable(f"The server at {server} does not answer in time.")
    return ServerUnreachable(f"The server at {server} can't be reached.")


def retry_after(response: httpx.Response) -> float:
    """For how many seconds the server wants to be left alone; 0 if it does not say."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    # A date without a zone is UTC, as HTTP dates are.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
