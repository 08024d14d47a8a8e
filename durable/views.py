"""What callers are told of runs, chunks and agents: the JSON objects of the API, as models.

The API writes these models and the client reads them, so both sides share one definition; it needs nothing
but pydantic. An optional field that has no value is absent on the wire, and fields that this version does not
know survive.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, PlainSerializer, ValidationError

from durable.chunks import UnknownChunk, from_wire
from durable.chunks.base import Chunk, ErrorInfo, Issue, Json, Usage, Wire


def _absent(value: object) -> bool:
    return value is None


def _to_utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


def read_chunk(value: Json) -> Chunk:
    """A chunk as a reader takes it: one whose payload this version can't read is kept as it is, not refused.

    Raises:
        ValueError: It is not a JSON object with a `type`, or its envelope is broken.
    """
    if isinstance(value, Chunk):
        return value
    try:
        return from_wire(value)
    except ValidationError:
        return UnknownChunk.model_validate(value)


Moment = Annotated[AwareDatetime, AfterValidator(_to_utc)]
AnyChunk = Annotated[Chunk, BeforeValidator(read_chunk), PlainSerializer(lambda chunk: chunk.to_wire())]
# Lambdas, because a serialiser with a return type would replace the model's own schema in OpenAPI.
WithoutNulls = PlainSerializer(
    lambda value: None if value is None else value.model_dump(mode="json", by_alias=True, exclude_none=True)
)


class RunStatus(StrEnum):
    """The states of a run. The last three are ends: such a run never changes again."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether a run in this state has ended."""
        return self in _ENDS


_ENDS = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})


class PendingCall(Wire):
    """A tool call that waits for an answer from outside.

    Attributes:
        tool_call_id: Names the call within the run.
        question_id: Names what is asked about the call: it may be asked about again.
        tool_name: The tool.
        args: What the model called it with.
        kind: What it waits for: `approval`, `resume` (data, with which the tool is called again), `external` (its
            result).
        payload: What the tool said when it suspended.
        resume_schema: JSON schema of the answer.
        issues: What was wrong with the answer before, by the tool's own validation.
        since: When it began to wait.
        expires_at: When it is decided without an answer.
        on_expiry: How it is decided then.
        run_id: The run whose call it is, when that is another one: what this run has started.
        links: Paths of the answers that it takes, by verb; with `run_id` that of its `run`, too.
    """

    run_id: str | None = Field(None, exclude_if=_absent)
    tool_call_id: str
    question_id: str | None = Field(None, exclude_if=_absent)
    tool_name: str
    args: Json = Field(None, exclude_if=_absent)
    kind: str | None = Field(None, exclude_if=_absent)
    payload: Json = Field(None, exclude_if=_absent)
    resume_schema: dict[str, Json] | None = Field(None, exclude_if=_absent)
    issues: list[Issue] | None = Field(None, exclude_if=_absent)
    since: Moment | None = Field(None, exclude_if=_absent)
    expires_at: Moment | None = Field(None, exclude_if=_absent)
    on_expiry: str | None = Field(None, exclude_if=_absent)
    links: dict[str, str] | None = Field(None, exclude_if=_absent)


class InboxCall(PendingCall):
    """A tool call that waits, in a list over all runs."""

    run_id: str
    agent: str


class InboxPage(Wire):
    """Calls that wait, longest first. `next` is the cursor of the following page, or null at the end."""

    pending: list[InboxCall]
    next: str | None = None


class DecisionView(Wire):
    """An answer that a tool call has had.

    Attributes:
        tool_call_id: Names the call within the run.
        question_id: Names the question about the call that was answered.
        tool_name: The tool.
        decision: `approve`, `decline`, `resume`, or `fail`: nobody answered in time, and the run failed.
        reason: Why it was declined.
        actor: Who answered; `deadline` when nobody did in time.
        at: When.
    """

    tool_call_id: str
    question_id: str | None = Field(None, exclude_if=_absent)
    tool_name: str
    decision: str
    reason: str | None = Field(None, exclude_if=_absent)
    actor: str | None = Field(None, exclude_if=_absent)
    at: Moment


class BudgetView(Wire):
    """What a run may use, in all, and what it has used. Its tokens are in its `usage`.

    Attributes:
        max_tokens: Tokens that it may use.
        max_seconds: Seconds that it may be executed.
        seconds_used: Seconds that it was executed, as far as it is stored: up to what it last completed.
        reached: The budget that it has used up: `max_tokens` or `max_seconds`.
    """

    max_tokens: int | None = Field(None, exclude_if=_absent)
    max_seconds: float | None = Field(None, exclude_if=_absent)
    seconds_used: float | None = Field(None, exclude_if=_absent)
    reached: str | None = Field(None, exclude_if=_absent)


class RunView(Wire):
    """One run.

    Attributes:
        run_id: Its id.
        agent: The name of the agent that it executes.
        status: Its state.
        reason: Why it waits, or how it ended.
        attempt: The current or last attempt, from 1; 0 before the first.
        last_seq: The seq of its newest chunk; 0 when it has none.
        created_at: When it was submitted.
        started_at: When its first attempt began.
        finished_at: When it ended.
        usage: The tokens that it used.
        output: What the agent returned, when it completed.
        error: Why it failed, or was cancelled.
        pending: The calls that wait for an answer.
        decisions: The answers that calls of it have had, in the order in which they were given; the newest 500.
        budget: What it may use, if that is limited.
        tripwire: What a guardrail said that has stopped it: `reason`, `processorId`, `metadata`.
        metadata: What its caller attached to it.
        retry_of: The ended run that it repeats.
        parent_run_id: The run that it belongs to.
        thread_id: The conversation that it belongs to.
        links: Paths of what can be asked of it, by name.
    """

    run_id: str
    agent: str
    status: RunStatus
    reason: str | None = Field(None, exclude_if=_absent)
    attempt: int = 0
    last_seq: int = 0
    created_at: Moment
    started_at: Moment | None = Field(None, exclude_if=_absent)
    finished_at: Moment | None = Field(None, exclude_if=_absent)
    usage: Annotated[Usage | None, WithoutNulls] = Field(None, exclude_if=_absent)
    output: Json = Field(None, exclude_if=_absent)
    error: Annotated[ErrorInfo | None, WithoutNulls] = Field(None, exclude_if=_absent)
    pending: list[PendingCall] | None = Field(None, exclude_if=_absent)
    decisions: list[DecisionView] | None = Field(None, exclude_if=_absent)
    budget: BudgetView | None = Field(None, exclude_if=_absent)
    tripwire: dict[str, Any] | None = Field(None, exclude_if=_absent)
    metadata: dict[str, Any] | None = Field(None, exclude_if=_absent)
    retry_of: str | None = Field(None, exclude_if=_absent)
    parent_run_id: str | None = Field(None, exclude_if=_absent)
    thread_id: str | None = Field(None, exclude_if=_absent)
    links: dict[str, str] | None = Field(None, exclude_if=_absent)

    @property
    def ended(self) -> bool:
        """Whether the run has ended. An ended run never changes."""
        return self.status.ended

    def to_wire(self) -> dict[str, Json]:
        """The JSON object as the API sends it."""
        return self.model_dump(mode="json", by_alias=True)


class TaskStatus(StrEnum):
    """The states of a background task. The last four are ends."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def ended(self) -> bool:
        """Whether a task in this state has ended."""
        return self not in {TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUSPENDED}


class TaskView(Wire):
    """A tool call that is made in the background, or a run of a sub-agent.

    Attributes:
        task_id: Its id: that of the run that makes the call.
        status: Its state.
        tool_name: The tool.
        tool_call_id: The model's id for the call.
        run_id: The run that has started it.
        agent: The agent that executes it: that run's own, or the sub-agent.
        args: What the call is made with.
        disposition: `deferred`: its run goes on meanwhile. `awaited`: the call waits for it.
        queue: The Celery queue of its workers.
        attempt: The current or last attempt, from 1; 0 before the first.
        retries_used: How often it was made again because the tool raised.
        reason: Why it waits: `no_worker`, `retrying`, `limit_reached` (as many are executed as may be), `decision`.
        result: What the call returned, when it completed; not in lists.
        error: Why it failed.
        pending: Its calls that wait for an answer.
        created_at: When it was started.
        started_at: When its first attempt began.
        completed_at: When it ended.
        links: Paths of what can be asked of it, by name.
    """

    task_id: str
    status: TaskStatus
    tool_name: str
    tool_call_id: str
    run_id: str
    agent: str
    args: Json = Field(None, exclude_if=_absent)
    disposition: str
    queue: str
    attempt: int = 0
    retries_used: int = 0
    reason: str | None = Field(None, exclude_if=_absent)
    result: Json = Field(None, exclude_if=_absent)
    error: Annotated[ErrorInfo | None, WithoutNulls] = Field(None, exclude_if=_absent)
    pending: list[PendingCall] | None = Field(None, exclude_if=_absent)
    created_at: Moment
    started_at: Moment | None = Field(None, exclude_if=_absent)
    completed_at: Moment | None = Field(None, exclude_if=_absent)
    links: dict[str, str] | None = Field(None, exclude_if=_absent)

    def to_wire(self) -> dict[str, Json]:
        """The JSON object as the API sends it."""
        return self.model_dump(mode="json", by_alias=True)


class TaskPage(Wire):
    """Background tasks, newest first. `next` is the cursor of the following page, or null at the end."""

    tasks: list[TaskView]
    next: str | None = None


class RunPage(Wire):
    """Runs, newest first. `next` is the cursor of the following page, or null at the end."""

    runs: list[RunView]
    next: str | None = None


class ChunkPage(Wire):
    """A piece of a run's log.

    Attributes:
        run_id: The run.
        chunks: Chunks in order, without a gap.
        next: The cursor to go on from: the seq of the last chunk here, or what was asked for when none is.
        final: True when the run's last chunk is here or before it: nothing will follow.
    """

    run_id: str
    chunks: list[AnyChunk]
    next: int
    final: bool


class MessageView(Wire):
    """One message of a run's conversation.

    Attributes:
        role: `system`, `user`, `assistant` (the model), or `tool` (what its calls came to).
        content: Text; a list of text and other user content where there is more than text.
        tool_calls: What the model called, as in the payload of `tool-call`.
        tool_results: What the calls came to, as in the payload of `tool-result` or `tool-error`.
    """

    role: str
    content: str | list[Json] = ""
    tool_calls: list[dict[str, Json]] | None = Field(None, exclude_if=_absent)
    tool_results: list[dict[str, Json]] | None = Field(None, exclude_if=_absent)


class MessagePage(Wire):
    """A run's conversation, oldest message first."""

    messages: list[MessageView]


class ThreadMessageView(MessageView):
    """One message of a thread.

    Attributes:
        id: The same at every reading, once its run has ended.
        run_id: The run that it belongs to.
    """

    id: str
    run_id: str


class ThreadMessagePage(Wire):
    """A part of a thread's conversation.

    Attributes:
        messages: In the order that was asked for.
        next: The cursor of the next page; None when this is the last.
    """

    messages: list[ThreadMessageView]
    next: str | None = None


class ModelMessagePage(Wire):
    """A run's conversation as Pydantic AI's own message JSON, oldest message first."""

    messages: list[dict[str, Json]]


class ThreadModelMessagePage(ModelMessagePage):
    """A part of a thread's conversation as Pydantic AI's own message JSON, in the order that was asked for."""

    next: str | None = None


class Fact(Wire):
    """Something that is so.

    Attributes:
        code: What kind of fact, for programs.
        message: The fact as a sentence.
        details: Its figures and moments.
    """

    code: str
    message: str
    details: dict[str, Json] | None = Field(None, exclude_if=_absent)


class Diagnosis(Wire):
    """Why a run stands where it stands.

    Attributes:
        run_id: The run.
        agent: The name of its agent.
        status: Its state.
        reason: Why it makes no progress, for programs; `executing` when it does, the state itself when it has ended.
        summary: The same as one sentence.
        facts: What else there is to know, the most telling first.
    """

    run_id: str
    agent: str
    status: RunStatus
    reason: str
    summary: str
    facts: list[Fact]


class ToolView(Wire):
    """A tool of an agent. `parameters` is a JSON schema; `requires_approval` is told of one whose calls all need it."""

    name: str
    description: str | None = Field(None, exclude_if=_absent)
    parameters: dict[str, Any] | None = Field(None, exclude_if=_absent)
    requires_approval: bool | None = Field(None, exclude_if=_absent)


class AgentView(Wire):
    """An agent that can be asked for runs.

    Attributes:
        name: Its name in the path of the API.
        description: What it is for.
        kind: `evented` (workers execute its runs) or `durable` (the process that took the request does).
        model: The model's name.
        tools: The tools that are known before a run.
        output_schema: JSON schema of its output.
        queue: The queue that its workers read.
        max_steps: Model requests in one run, at most, unless the caller says otherwise.
        workers: How many live workers serve it now; none told is unknown.
    """

    name: str
    description: str | None = Field(None, exclude_if=_absent)
    kind: str | None = Field(None, exclude_if=_absent)
    model: str | None = Field(None, exclude_if=_absent)
    tools: list[ToolView] = Field(default_factory=list)
    output_schema: dict[str, Any] | None = Field(None, exclude_if=_absent)
    queue: str | None = Field(None, exclude_if=_absent)
    max_steps: int | None = Field(None, exclude_if=_absent)
    workers: int | None = Field(None, exclude_if=_absent)


class AgentPage(Wire):
    """All agents, by name."""

    agents: list[AgentView]
