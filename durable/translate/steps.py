"""What a step amounted to: text, tool calls, tool results, usage and why the model stopped.

Built from the model's response, whether it was just streamed or comes back from a checkpoint, so both give the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai.messages import ModelResponse, NativeToolCallPart, NativeToolReturnPart, TextPart, ToolCallPart
from pydantic_ai.usage import UsageBase

from durable.chunks import FinishReason, Json, StepFinishOutput, StepResult, ToolCall, ToolError, ToolResult, Usage
from durable.translate.outcomes import call_chunk, outcome_chunk

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_call": "tool-calls",
    "error": "error",
}


@dataclass(slots=True)
class Step:
    """One model response and the outcomes of the tools that it called."""

    text: str = ""
    calls: list[Json] = field(default_factory=list)
    results: list[Json] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(input_tokens=0, output_tokens=0, total_tokens=0))
    reason: FinishReason = "unknown"
    raw_reason: str | None = None

    @classmethod
    def of(cls, response: ModelResponse) -> Step:
        """The step of a response, without outcomes but for the provider's own tools."""
        step = cls(usage=usage_of(response.usage), reason=_reason(response), raw_reason=_raw_reason(response))
        for part in response.parts:
            match part:
                case TextPart():
                    step.text += part.content
                case ToolCallPart():
                    step.calls.append(_wire(call_chunk(part)))
                case NativeToolCallPart():
                    step.calls.append(_wire(call_chunk(part, provider_executed=True)))
                case NativeToolReturnPart():
                    step.settle(outcome_chunk(part, provider_executed=True))
                case _:
                    pass
        return step

    def settle(self, outcome: ToolResult | ToolError) -> None:
        """Add the outcome of a call. The first one of a call stays."""
        value = _wire(outcome)
        if isinstance(outcome, ToolError):
            value["isError"] = True
        if all(known["toolCallId"] != value["toolCallId"] for known in self.results):
            self.results.append(value)

    def withhold(self, calls: Collection[str]) -> None:
        """Tell neither the text nor these calls."""
        self.text = ""
        self.calls = [call for call in self.calls if call["toolCallId"] not in calls]
        self.results = [found for found in self.results if found["toolCallId"] not in calls]

    def result(self, *, is_continued: bool) -> StepResult:
        """How it ended, as `step-finish` and `finish` tell it."""
        fields: dict[str, Any] = {"reason": self.reason, "is_continued": is_continued}
        if self.raw_reason is not None:
            fields["raw_reason"] = self.raw_reason
        return StepResult(**fields)

    def output(self) -> StepFinishOutput:
        """What it produced, as `step-finish` tells it."""
        fields: dict[str, Any] = {"text": self.text, "usage": self.usage}
        if self.calls:
            fields["tool_calls"] = self.calls
        return StepFinishOutput(**fields)

    def summary(self) -> Json:
        """The entry in the `steps` of `finish`."""
        return {
            "text": self.text,
            "toolCalls": self.calls,
            "toolResults": self.results,
            "usage": self.usage.model_dump(by_alias=True, exclude_unset=True),
            "finishReason": self.reason,
        }


def usage_of(usage: UsageBase) -> Usage:
    """Pydantic AI's usage as ours. Counts that the provider did not report stay unset."""
    fields = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    reasoning = getattr(usage, "output_reasoning_tokens", 0) or usage.details.get("reasoning_tokens")
    if reasoning is not None:
        fields["reasoning_tokens"] = reasoning
    if usage.cache_read_tokens:
        fields["cached_input_tokens"] = usage.cache_read_tokens
    if usage.cache_write_tokens:
        fields["cache_creation_input_tokens"] = usage.cache_write_tokens
    return Usage(**fields)


def own_usage(used: Mapping[str, int]) -> dict[str, Any]:
    """Our usage, by the names of its fields, as Pydantic AI counts it: the way back."""
    names = {
        "input_tokens": "input_tokens",
        "output_tokens": "output_tokens",
        "cached_input_tokens": "cache_read_tokens",
        "cache_creation_input_tokens": "cache_write_tokens",
    }
    found: dict[str, Any] = {own: used[name] for name, own in names.items() if used.get(name)}
    if used.get("reasoning_tokens"):
        found["details"] = {"reasoning_tokens": used["reasoning_tokens"]}
    return found


def _reason(response: ModelResponse) -> FinishReason:
    """Why the model stopped. A response that only says it is complete, and calls tools, stopped for the tools."""
    given = response.finish_reason
    complete = getattr(response, "state", "complete") == "complete"
    if given in (None, "stop") and complete and any(isinstance(part, ToolCallPart) for part in response.parts):
        return "tool-calls"
    if given is None:
        return "stop" if complete else "unknown"
    return _REASONS.get(given, "other")


def _raw_reason(response: ModelResponse) -> str | None:
    raw = (response.provider_details or {}).get("finish_reason")
    return raw if isinstance(raw, str) else None


def _wire(chunk: ToolCall | ToolResult | ToolError) -> dict[str, Json]:
    value: dict[str, Json] = chunk.payload.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return value
