"""What callers send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool

from durable.budgets import Raise
from durable.chunks import Wire
from durable.decisions import LONGEST_ACTOR, LONGEST_REASON
from durable.runs import OnBusy, RunRequest, read_until_idle
from durable.runs.record import Include, MaxSeconds, MaxTokens, OnBudget
from durable.runs.terms import ActiveTools, ClientTools, OnClientTools, OutputMode

MAX_METADATA_KEYS = 50
LONGEST_IDLE_MS = 10 * 365 * 86_400_000


class Idle(Wire):
    """For how long a run waits for its background tasks."""

    model_config = ConfigDict(extra="forbid")

    max_idle_ms: Annotated[int, Field(description="Milliseconds in a row.", ge=1, le=LONGEST_IDLE_MS)]


UntilIdle = Annotated[
    StrictBool | Idle | None,
    Field(description="Whether to go on when background tasks end after the turn: for 5 minutes in a row, or so long."),
]


def seconds_of(until_idle: bool | Idle | None) -> float | None:  # noqa: FBT001 - it is the value itself
    """For how many seconds a run waits; None when it does not."""
    return read_until_idle(until_idle.max_idle_ms / 1000 if isinstance(until_idle, Idle) else until_idle)


class SubmitBody(Wire):
    """What a run is asked to do: a prompt, or messages that end with the user's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "What is the weather in Basel?"},
                {
                    "messages": [
                        {"role": "user", "content": "Hello"},
                        {"role": "assistant", "content": "Hello! How can I help?"},
                        {"role": "user", "content": "What is the weather in Basel?"},
                    ],
                    "runId": "order-4711-support",
                    "metadata": {"customer": "c-42"},
                    "modelSettings": {"temperature": 0.2},
                    "maxSteps": 10,
                },
            ]
        },
    )

    prompt: Annotated[str | list[Any] | None, Field(description="Text, or Pydantic AI user content.")] = None
    messages: Annotated[
        list[Any] | None,
        Field(
            description="`{role, content}` or Pydantic AI messages. The last one is the user's.",
            max_length=10_000,
        ),
    ] = None
    run_id: Annotated[str | None, Field(description="The caller's own id: 1 to 128 of `A-Z a-z 0-9 _ -`.")] = None
    metadata: Annotated[
        dict[str, Any] | None, Field(description="Attached to the run.", max_length=MAX_METADATA_KEYS)
    ] = None
    model_settings: Annotated[dict[str, Any] | None, Field(description="Pydantic AI model settings.")] = None
    usage_limits: Annotated[dict[str, Any] | None, Field(description="Pydantic AI usage limits.")] = None
    max_steps: Annotated[int | None, Field(description="Model requests, at most.", ge=1, le=1000)] = None
    retries: Annotated[
        int | None,
        Field(description="How often in a row it is tried again when the model's provider fails.", ge=0, le=100),
    ] = None
    deps: Annotated[Any, Field(description="JSON for the agent's dependencies.")] = None
    require_tool_approval: Annotated[
        bool | str | None,
        Field(description="Whether every tool call has to be approved, or the agent's policy that tells which."),
    ] = None
    max_tokens: Annotated[MaxTokens | None, Field(description="Tokens that it may use, in all.")] = None
    max_seconds: Annotated[
        MaxSeconds | None, Field(description="Seconds that it may be executed, over all attempts.")
    ] = None
    on_budget: Annotated[
        OnBudget | None, Field(description="Whether reaching a budget suspends the run, the default, or ends it.")
    ] = None
    step_seconds: Annotated[
        MaxSeconds | None, Field(description="Seconds that a model request and its tools may take.")
    ] = None
    thread_id: Annotated[
        str | None, Field(description="The conversation to go on with: 1 to 128 of `A-Z a-z 0-9 _ -`.")
    ] = None
    resource_id: Annotated[str | None, Field(description="Whose conversation it is; the same each time.")] = None
    on_busy: Annotated[
        OnBusy | None,
        Field(description="Whether to wait for the conversation's other runs (`queue`, default) or to be refused."),
    ] = None

    background: Annotated[
        Literal[False] | None, Field(description="`false`: all tool calls are made in the run, none in the background.")
    ] = None
    until_idle: UntilIdle = None
    instructions: Annotated[str | None, Field(description="In place of the agent's own instructions.")] = None
    active_tools: Annotated[
        ActiveTools | None, Field(description="Of the agent's tools, only these are given to the model.")
    ] = None
    output_schema: Annotated[
        dict[str, Any] | None,
        Field(description="JSON schema of an object: what the run returns, in place of the agent's output type."),
    ] = None
    output_mode: Annotated[
        OutputMode | None, Field(description="How the model is asked for that: by a `tool` (default), or otherwise.")
    ] = None
    client_tools: Annotated[ClientTools | None, Field(description="Tools that the caller executes.")] = None
    on_client_tools: Annotated[
        OnClientTools | None,
        Field(description="Whether a call of one waits for its result (`suspend`, default), or the run ends with it."),
    ] = None
    client_tool_seconds: Annotated[
        MaxSeconds | None, Field(description="Seconds that such a call waits, before it is declined.")
    ] = None
    include: Annotated[
        list[Include] | None,
        Field(description="Types of chunks that are only written on request: `raw`, `watch`.", max_length=10),
    ] = None

    def request(self) -> RunRequest:
        """The run's request, as it is stored."""
        names = set(RunRequest.model_fields) & self.model_fields_set
        idle = seconds_of(self.until_idle)
        waits = {} if idle is None else {"max_idle": idle}
        return RunRequest(**{name: getattr(self, name) for name in names}, **waits)


Actor = Annotated[str | None, Field(max_length=LONGEST_ACTOR, description="Who says so, for the log.")]
Reason = Annotated[str | None, Field(max_length=LONGEST_REASON)]
Question = Annotated[
    str | None,
    Field(description="What is answered, the `questionId` of a call that waits; what it was asked last, by default."),
]


class AnswerBody(Wire):
    """What all answers to calls have in common."""

    actor: Actor = None
    question_id: Question = None
    until_idle: UntilIdle = None


class RaiseBody(Raise):
    """What a run may use from now on, in all, and who says so."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"maxTokens": 40_000, "actor": "ada"}]})


class MessageBody(Wire):
    """What the model is told before its next request."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"content": "In Basel, not in Bern.", "messageId": "m-7", "actor": "ada"}]},
    )

    content: Annotated[str | list[Any], Field(description="Text, or Pydantic AI user content.")]
    message_id: Annotated[
        str | None, Field(description="An own id for it, which makes it safe to repeat: as a run id.")
    ] = None
    actor: Actor = None


class CancelBody(Wire):
    """Why a run is cancelled, and by whom."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "the user pressed stop"}]})

    reason: Reason = None
    actor: Actor = None


class ApproveBody(AnswerBody):
    """Lets a call be made: `args` in place of the model's arguments, if they are given."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"questionId": "1.0", "actor": "ada"},
                {"args": {"order": "4711", "amount": 100}, "actor": "ada"},
            ]
        },
    )

    args: Annotated[dict[str, Any] | None, Field(description="All arguments, as the tool's schema wants them.")] = None


class DeclineBody(AnswerBody):
    """Why a call is not made: the model is told."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"reason": "Only up to 100.", "actor": "ada", "questionId": "1.0"}]},
    )

    reason: Reason = None


class ResumeBody(AnswerBody):
    """What a call waits for: any JSON that fits its schema, null included."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"data": {"seat": "12A"}, "actor": "ada", "questionId": "1.0"}]},
    )

    data: Annotated[Any, Field(description="Data for the tool, or the result of a call that is executed elsewhere.")]
