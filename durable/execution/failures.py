"""Why a run failed, in words that may be shown: a stable code and a message without the exception's own text.

An exception's text may hold a prompt, a key or a customer's data. It is therefore never passed on; the code, the kind
of the exception and, for providers, the HTTP status are enough to act on.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelHTTPError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)

from durable.chunks import ErrorInfo
from durable.errors import ConfigurationError, DurableError


class ToolFailure(Exception):
    """A tool raised, or returned what can't be recorded; ends the run.

    Attributes:
        code: `tool_failed` or `tool_result_invalid`.
        name: The class of what it raised.
    """

    def __init__(self, tool_name: str, code: str, message: str, name: str = "ToolFailure") -> None:
        super().__init__(message)
        self.tool_name = tool_name
        self.code = code
        self.message = message
        self.name = name


def describe(error: BaseException) -> ErrorInfo:
    """The error as an observer may see it."""
    name = type(error).__name__
    match error:
        case ToolFailure():
            return ErrorInfo(code=error.code, message=error.message, name=error.name)
        case DurableError():
            return ErrorInfo(code=error.code, message=error.message, name=name)
        case UsageLimitExceeded():
            return ErrorInfo(code="usage_limit_exceeded", message="The run reached a usage limit.", name=name)
        case ModelHTTPError():
            message = f"The model's provider answered with HTTP status {error.status_code}."
            return ErrorInfo(code="model_error", message=message, name=name)
        case ModelAPIError():
            return ErrorInfo(code="model_error", message="The model's provider could not be used.", name=name)
        case UnexpectedModelBehavior():
            message = "The model did not answer in a way that the agent accepts."
            return ErrorInfo(code="model_misbehaved", message=message, name=name)
        case UserError():
            return ErrorInfo(code="agent_misconfigured", message="The agent is not set up correctly.", name=name)
        case ExceptionGroup() if error.exceptions:
            return describe(error.exceptions[-1])
        case _:
            return ErrorInfo(code="internal_error", message=f"The run ended with {name}.", name=name)


def of_deps(error: Exception) -> ConfigurationError:
    """The dependencies could not be made."""
    return ConfigurationError(f"The agent's dependencies could not be made: {type(error).__name__}.")


def places(error: BaseException) -> str:
    """Where an error was raised, for the log: files and lines, no values and no texts."""
    return " < ".join(_places(error))


def _places(error: BaseException) -> Iterator[str]:
    for frame in reversed(traceback.extract_tb(error.__traceback__)[-4:]):
        yield f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
