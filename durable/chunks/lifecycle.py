"""Chunks that frame a run: its start, its steps and its end."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from durable.chunks.base import Chunk, ErrorInfo, Json, StepResult, Usage, Wire


class StartPayload(Wire):
    """`id` is the agent's name."""

    id: str
    message_id: str


class Start(Chunk):
    """The run begins. Written once, by the first attempt."""

    type: Literal["start"] = "start"
    payload: StartPayload


class VoidRange(Wire):
    """The range of seqs, both ends included, whose model output no longer counts."""

    from_: int = Field(alias="from")
    to: int


class StepStartPayload(Wire):
    """`void` tells that an earlier attempt's model response was torn; see the wire format."""

    step_id: str
    message_id: str
    started_at: int
    request: dict[str, Json]
    warnings: list[Json] | None = None
    void: VoidRange | None = None


class StepStart(Chunk):
    """A model request begins."""

    type: Literal["step-start"] = "step-start"
    payload: StepStartPayload


class StepFinishOutput(Wire):
    """What one step produced."""

    text: str | None = None
    usage: Usage
    tool_calls: list[Json] | None = None


class StepFinishPayload(Wire):
    """`metadata` is open."""

    message_id: str | None = None
    step_result: StepResult
    output: StepFinishOutput
    metadata: dict[str, Json]


class StepFinish(Chunk):
    """A step has ended: its model response and all tools that it called."""

    type: Literal["step-finish"] = "step-finish"
    payload: StepFinishPayload


class TurnOutput(Wire):
    """What a turn produced. `object` is the validated output when it is not text."""

    text: str
    usage: Usage
    steps: list[Json]
    object: Json | None = None


class FinishPayload(Wire):
    """`maxStepsReached` or `budgetReached` is set when the step limit or a budget, not the model, ended the turn."""

    output: TurnOutput
    step_result: StepResult
    max_steps_reached: bool | None = None
    budget_reached: Literal["max_tokens", "max_seconds"] | None = None


class Finish(Chunk):
    """A turn has ended. With `final` in the envelope, so has the run."""

    type: Literal["finish"] = "finish"
    payload: FinishPayload


class ErrorPayload(Wire):
    """Why the run failed."""

    error: ErrorInfo


class Error(Chunk):
    """The run failed; `finish` with reason `error` follows."""

    type: Literal["error"] = "error"
    payload: ErrorPayload


class AbortPayload(Wire):
    """Why, and by whom the run was cancelled, as far as they said so."""

    reason: str | None = None
    actor: str | None = None


class Abort(Chunk):
    """The run was cancelled; `finish` with reason `abort` follows."""

    type: Literal["abort"] = "abort"
    payload: AbortPayload


class WorkflowState(Wire):
    """As in the record of the run. `attempt` is the one that it is in, or was in last; 0 before the first."""

    status: Literal["queued", "running", "suspended", "completed", "failed", "cancelled"]
    reason: str | None = None
    attempt: int


class WatchPayload(Wire):
    """`eventTimestamp` is in ms since 1970."""

    workflow_state: WorkflowState
    event_timestamp: int


class Watch(Chunk):
    """The state of the run has changed. Only told when it is asked for; written in the same step as the change."""

    type: Literal["watch"] = "watch"
    payload: WatchPayload


class UserMessagePayload(Wire):
    """`content` is a text, or Pydantic AI user content; `messageId` is its sender's name for it."""

    message_id: str
    content: Json
    actor: str | None = None


class UserMessage(Chunk):
    """The model is told, with its next request, what somebody has sent since the run began."""

    type: Literal["user-message"] = "user-message"
    payload: UserMessagePayload


class BudgetReachedPayload(Wire):
    """Which budget, how much it was, and how much the run has used: tokens, or seconds."""

    budget: Literal["max_tokens", "max_seconds"]
    limit: int | float
    used: int | float


class BudgetReached(Chunk):
    """The run has used up a budget, and waits until that is raised."""

    type: Literal["budget-reached"] = "budget-reached"
    payload: BudgetReachedPayload


class BudgetRaisedPayload(Wire):
    """What the run may use from now on, and who says so."""

    max_tokens: int | None = None
    max_seconds: float | None = None
    actor: str | None = None


class BudgetRaised(Chunk):
    """A budget that the run has used up was raised, and it goes on."""

    type: Literal["budget-raised"] = "budget-raised"
    payload: BudgetRaisedPayload
