"""Tool calls and their outcomes as chunks, from the message parts that carry them.

The message of a `tool-error` holds only what was written for the model to read (a tool's own words, a validation
report); never an exception's text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from durable.chunks import (
    ErrorInfo,
    ToolCall,
    ToolCallPayload,
    ToolError,
    ToolErrorPayload,
    ToolResult,
    ToolResultPayload,
)
from durable.translate.metadata import with_metadata
from durable.translate.values import to_args, to_json_value

_ERRORS = {
    "retried": ("tool_retry", "The call has to be made again."),
    "failed": ("tool_failed", "The tool failed."),
    "denied": ("tool_denied", "The call was denied."),
    "interrupted": ("tool_interrupted", "The call was interrupted."),
}


def call_chunk(part: Any, *, provider_executed: bool = False) -> ToolCall:
    """The `tool-call` of a `ToolCallPart` or `NativeToolCallPart`. `args` is unset when the model's JSON is broken."""
    fields: dict[str, Any] = {"tool_call_id": part.tool_call_id, "tool_name": part.tool_name, **with_metadata(part)}
    if (args := to_args(part.args)) is not None:
        fields["args"] = args
    if provider_executed:
        fields["provider_executed"] = True
    return ToolCall(payload=ToolCallPayload(**fields))


def outcome_chunk(part: Any, *, provider_executed: bool = False) -> ToolResult | ToolError:
    """The `tool-result` or `tool-error` of a tool's return part.

    Args:
        part: A `ToolReturnPart`, `NativeToolReturnPart`, or the `RetryPromptPart` of earlier releases.
        provider_executed: True when the provider, not this process, ran the tool.
    """
    fields: dict[str, Any] = {"tool_call_id": part.tool_call_id, "tool_name": part.tool_name or ""}
    if provider_executed:
        fields["provider_executed"] = True
    outcome = outcome_of(part)
    if outcome == "success":
        return ToolResult(payload=ToolResultPayload(**fields, result=to_json_value(part.content)))
    code, default = _ERRORS.get(outcome, _ERRORS["failed"])
    message = _words(part.content) or default
    return ToolError(payload=ToolErrorPayload(**fields, error=ErrorInfo(code=code, message=message)))


def outcome_of(part: Any) -> str:
    """Pydantic AI's name of the outcome; a part that has none is a success, or a retry by its kind."""
    if part.part_kind == "retry-prompt":
        return "retried"
    return str(getattr(part, "outcome", "success"))


def _words(content: object) -> str:
    """The reason as a sentence: a text as it is, a validation report without the values it complains about."""
    if isinstance(content, str):
        return content
    if isinstance(content, Iterable) and not isinstance(content, dict | bytes):
        problems = [_problem(item) for item in content if isinstance(item, dict) and "msg" in item]
        return "; ".join(problems)
    return ""


def _problem(detail: dict[str, Any]) -> str:
    where = ".".join(str(step) for step in detail.get("loc", ()))
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])
