"""Chunks of tool calls: the arguments as they stream, the call, and its outcome."""

from __future__ import annotations

from typing import Literal

from durable.chunks.base import Chunk, ErrorInfo, Issue, Json, Wire


class ToolPayload(Wire):
    """Names the call within its step."""

    tool_call_id: str
    tool_name: str
    provider_executed: bool | None = None
    provider_metadata: dict[str, Json] | None = None


class ToolCallInputStreamingStart(Chunk):
    """The arguments of a call begin."""

    type: Literal["tool-call-input-streaming-start"] = "tool-call-input-streaming-start"
    payload: ToolPayload


class ToolCallDeltaPayload(Wire):
    """A piece of the arguments' JSON text."""

    tool_call_id: str
    tool_name: str | None = None
    args_text_delta: str


class ToolCallDelta(Chunk):
    """More of a call's arguments. Neighbours may have been merged."""

    type: Literal["tool-call-delta"] = "tool-call-delta"
    payload: ToolCallDeltaPayload


class ToolCallEndPayload(Wire):
    """Names the call."""

    tool_call_id: str


class ToolCallInputStreamingEnd(Chunk):
    """The arguments of a call have ended."""

    type: Literal["tool-call-input-streaming-end"] = "tool-call-input-streaming-end"
    payload: ToolCallEndPayload


class ToolCallPayload(ToolPayload):
    """`args` is missing when the model's JSON was broken."""

    args: Json = None


class ToolCall(Chunk):
    """The model calls a tool."""

    type: Literal["tool-call"] = "tool-call"
    payload: ToolCallPayload


class Approval(Wire):
    """What somebody outside said of a call. `id` is the call's; `actor` is who."""

    id: str
    approved: bool
    reason: str | None = None
    actor: str | None = None


class ToolResultPayload(ToolCallPayload):
    """What the tool returned, as JSON. `approval` is there when the call was approved."""

    result: Json
    is_error: bool | None = None
    approval: Approval | None = None


class ToolResult(Chunk):
    """A call has ended with a value."""

    type: Literal["tool-result"] = "tool-result"
    payload: ToolResultPayload


class ToolErrorPayload(ToolCallPayload):
    """Why there is no value."""

    error: ErrorInfo


class ToolError(Chunk):
    """A call has ended without a value."""

    type: Literal["tool-error"] = "tool-error"
    payload: ToolErrorPayload


class ToolOutputPayload(Wire):
    """Something that a tool said while it was running. With `taskId`, the run of a sub-agent, it is a chunk of that."""

    output: Json
    tool_call_id: str
    tool_name: str | None = None
    task_id: str | None = None


class ToolOutput(Chunk):
    """A running tool speaks."""

    type: Literal["tool-output"] = "tool-output"
    payload: ToolOutputPayload


class StepOutputPayload(Wire):
    """`output` is the `step-finish` of the sub-agent's run `taskId`."""

    output: Json
    tool_call_id: str
    tool_name: str
    task_id: str


class StepOutput(Chunk):
    """A step of a sub-agent's run has ended."""

    type: Literal["step-output"] = "step-output"
    payload: StepOutputPayload


class ToolCallApprovalPayload(ToolCallPayload):
    """`resumeSchema` is the JSON schema of the answer, as text; `suspendPayload` is what the tool says of it.
    `questionId` names the question: its answer may tell it. `issues` tell what was wrong with the answer
    before."""

    question_id: str | None = None
    resume_schema: str
    suspend_payload: Json = None
    issues: list[Issue] | None = None


class ToolCallApproval(Chunk):
    """A call waits to be approved."""

    type: Literal["tool-call-approval"] = "tool-call-approval"
    payload: ToolCallApprovalPayload


class ToolCallSuspendedPayload(ToolCallPayload):
    """`suspendPayload` is what the tool says of it; `resumeSchema` is the JSON schema of the answer, as text.
    `questionId` names the question: its answer may tell it. `issues` tell what was wrong with the answer
    before."""

    question_id: str | None = None
    suspend_payload: Json = None
    resume_schema: str
    issues: list[Issue] | None = None


class ToolCallSuspended(Chunk):
    """A call waits for data from outside."""

    type: Literal["tool-call-suspended"] = "tool-call-suspended"
    payload: ToolCallSuspendedPayload


class ToolCallDecidedPayload(ToolPayload):
    """What was decided: `approve`, `resume`, or `fail` when nobody answered in time. `args` are the edited ones.
    `questionId` names the question that was answered."""

    question_id: str | None = None
    decision: str
    args: Json = None
    actor: str | None = None


class ToolCallDecided(Chunk):
    """A call that waited was answered, and goes on."""

    type: Literal["tool-call-decided"] = "tool-call-decided"
    payload: ToolCallDecidedPayload


class ToolOutputDeniedPayload(ToolCallPayload):
    """`approval` tells why, and by whom. `questionId` names the question that was answered."""

    question_id: str | None = None
    approval: Approval


class ToolOutputDenied(Chunk):
    """A call that waited was declined: it has ended, and the model is told."""

    type: Literal["tool-output-denied"] = "tool-output-denied"
    payload: ToolOutputDeniedPayload
