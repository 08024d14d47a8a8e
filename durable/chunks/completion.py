"""Chunks that judge a run: a guardrail that tripped, whether the task is complete, how far the goal is."""

from __future__ import annotations

from typing import Literal

from durable.chunks.base import Chunk, Json, Wire
from durable.chunks.lifecycle import VoidRange


class TripwirePayload(Wire):
    """`processorId` is the guardrail. `void` and `withheld` are what no longer counts of an output that it stopped."""

    reason: str
    metadata: Json | None = None
    processor_id: str
    void: VoidRange | None = None
    withheld: list[str] | None = None


class TripwireChunk(Chunk):
    """A guardrail has stopped the run; `finish` with reason `tripwire` follows."""

    type: Literal["tripwire"] = "tripwire"
    payload: TripwirePayload


class ScorerResult(Wire):
    """What one scorer, or a judge, says. `errored` when it could not say: it then counts as not passed."""

    score: float
    passed: bool
    reason: str | None = None
    scorer_id: str
    scorer_name: str
    duration: int
    errored: bool | None = None


class IsTaskCompletePayload(Wire):
    """`duration` is in ms."""

    iteration: int
    passed: bool
    results: list[ScorerResult]
    duration: int
    timed_out: bool
    reason: str | None = None
    max_iteration_reached: bool
    suppress_feedback: bool


class IsTaskComplete(Chunk):
    """The model was done, and the agent's scorers have judged what it came to."""

    type: Literal["is-task-complete"] = "is-task-complete"
    payload: IsTaskCompletePayload


class GoalPayload(Wire):
    """`duration` is in ms. `toolCallId` is what a paused goal is resumed by, and `questionId` names this pause.
    `pending`: the judge is being asked."""

    objective: str
    iteration: int
    max_runs: int
    passed: bool
    status: Literal["active", "paused", "done"]
    results: list[ScorerResult]
    reason: str | None = None
    paused_reason: str | None = None
    waiting_for_user: bool | None = None
    judge_failed: bool | None = None
    duration: int
    timed_out: bool
    max_runs_reached: bool
    suppress_feedback: bool
    should_continue: bool | None = None
    tool_call_id: str | None = None
    question_id: str | None = None
    pending: bool | None = None


class GoalChunk(Chunk):
    """The model was done, and the goal's judge is being asked, or has said how far it got."""

    type: Literal["goal"] = "goal"
    payload: GoalPayload
