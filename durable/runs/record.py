"""A run as values: what is asked for, and what is known of it."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import ConfigDict, Field

from durable import exact_json
from durable.chunks.base import Json, Wire
from durable.errors import InvalidRequest
from durable.runs.terms import (
    ActiveTools,
    ClientTools,
    OnClientTools,
    OutputMode,
    check_client_tools,
    check_output,
    check_tool_choice,
)
from durable.views import RunStatus, RunView

RETRYING: Final = "retrying"
"""The reason of a queued run whose model's provider failed, until it is tried again."""
BUDGET_REACHED: Final = "budget_reached"
"""The reason of a run that has used up a budget: suspended until that is raised, or ended by it."""
OnBudget = Literal["suspend", "end"]
MaxTokens = Annotated[int, Field(ge=1, le=10**15)]
MaxSeconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400)]
THREAD_BUSY: Final = "thread_busy"
"""The reason of a queued run that waits for another run of its thread."""
BACKGROUND: Final = "background"
"""The reason of a run that waits for its background tasks."""
TASK: Final = "task"
"""The kind of a run that makes one tool call of another one, in the background."""
LONGEST_IDLE: Final = 300.0
"""Seconds for which a run waits for its background tasks, unless it says otherwise."""
OnBusy = Literal["queue", "reject"]
Include = Literal["raw", "watch"]
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


class ToolCallRequest(Wire):
    """A tool call that a run makes, instead of asking a model.

    Attributes:
        tool_name: The tool.
        tool_call_id: The model's id for the call.
        args: What the model called it with.
        idempotency_key: That of the call, in whatever run it is made.
        approved: Whether somebody has allowed it.
        unasked: Whether it has yet to be settled if it may be made: no model has called it in another run.
        retries: How often it is made again when the tool raises.
        retry_seconds: The longest first pause before that; it doubles each time.
    """

    model_config = ConfigDict(extra="forbid")

    tool_name: str
    tool_call_id: str
    args: dict[str, Json]
    idempotency_key: str
    approved: bool = False
    unasked: bool = False
    retries: int = 0
    retry_seconds: float = 1.0


class RunRequest(Wire):
    """What a run is asked to do, as it is stored. Exactly one of `prompt`, `messages` and `tool_call` is given.

    Attributes:
        prompt: Text, or Pydantic AI user content as JSON.
        messages: The conversation; the last message is the user's.
        message_history: Pydantic AI messages that came before `prompt`.
        model_settings: Pydantic AI model settings.
        usage_limits: Pydantic AI usage limits.
        max_steps: Model requests, at most; the agent's own limit when missing.
        retries: How often in a row it is tried again when the model's provider fails.
        deps: What the agent's `deps_factory` or `deps_type` is made from.
        max_tokens: Tokens that it may use, in all.
        max_seconds: Seconds that it may be executed, over all attempts; waiting does not count.
        on_budget: Whether reaching one of these suspends it, the default, or ends it.
        step_seconds: Seconds that a model request and the tools that it calls may take.
        require_tool_approval: Whether every tool call has to be approved, or the agent's policy that tells which.
        thread_id: The conversation that it goes on with.
        resource_id: Whose conversation that is.
        on_busy: Whether it waits for other runs of the conversation, or is refused when there are any; it waits when
            missing.
        background: False: no tool call of it goes on in the background.
        max_idle: The run goes on when its background tasks have ended, under its own id; it waits for them for so many
            seconds in a row. It does not wait when missing.
        include: Types of chunks that are only written where they are asked for.
        tool_call: A tool call to make, instead of asking a model: the run is a background task.
        instructions: In place of the agent's own instructions.
        active_tools: Of the agent's tools, only these are given to the model.
        output_schema: JSON schema of an object: the run's output, in place of the agent's output type.
        output_mode: How the model is asked for that: `tool` when missing.
        client_tools: Tools that the caller executes.
        on_client_tools: Whether a call of one waits for its result, as it does when missing, or ends the run.
        client_tool_seconds: How long such a call waits before it is declined; for ever when missing.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: Json = None
    messages: list[Json] | None = None
    message_history: list[Json] | None = None
    model_settings: dict[str, Json] | None = None
    usage_limits: dict[str, Json] | None = None
    max_steps: int | None = Field(None, ge=1, le=1000)
    retries: int | None = Field(None, ge=0, le=100)
    deps: Json = None
    require_tool_approval: bool | str | None = None
    max_tokens: MaxTokens | None = None
    max_seconds: MaxSeconds | None = None
    on_budget: OnBudget | None = None
    step_seconds: MaxSeconds | None = None
    thread_id: str | None = None
    resource_id: str | None = None
    on_busy: OnBusy | None = None
    background: bool | None = None
    max_idle: MaxSeconds | None = None
    include: list[Include] | None = None
    tool_call: ToolCallRequest | None = None
    instructions: str | None = None
    active_tools: ActiveTools | None = None
    output_schema: dict[str, Json] | None = None
    output_mode: OutputMode | None = None
    client_tools: ClientTools | None = None
    on_client_tools: OnClientTools | None = None
    client_tool_seconds: MaxSeconds | None = None

    def to_json(self) -> bytes:
        """The stored form."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()

    @property
    def call_args(self) -> Json:
        """What the call is made with for which a run was started."""
        return self.tool_call.args if self.tool_call is not None else {"prompt": self.prompt}

    def budgets(self) -> dict[str, str]:
        """Its budgets, as fields of the run's record: there they may be raised."""
        named = {"maxTokens": self.max_tokens, "maxSeconds": self.max_seconds}
        return {name: repr(value) for name, value in named.items() if value is not None}

    def digest(self, agent: str, metadata: Mapping[str, Json] | None) -> str:
        """A hash that is equal for equal requests, whatever the order of their fields."""
        value = [agent, self.model_dump(mode="json", exclude_none=True), metadata or {}]
        if self.tool_call is None:  # what comes over the wire has integers of 64 bits, at most
            return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
        return hashlib.sha256(exact_json.dumps(value, sort_keys=True)).hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """What the store knows of a run. Moments are ms since 1970."""

    run_id: str
    fields: Mapping[str, bytes]

    @property
    def status(self) -> RunStatus:
        return RunStatus(self._text("status"))

    @property
    def agent(self) -> str:
        return self._text("agent")

    @property
    def last_seq(self) -> int:
        return int(self._text("lastSeq"))

    @property
    def token(self) -> int:
        return int(self._text("token"))

    @property
    def created_ms(self) -> int:
        """When it was created; ms since 1970."""
        return int(self._text("createdAt"))

    @property
    def checkpoint_seq(self) -> int:
        """The log's last seq at the newest checkpoint; 0 without one."""
        return int(self.fields.get("checkpointSeq", b"0"))

    @property
    def claims(self) -> int:
        """How often it was claimed since it last got on."""
        return int(self.fields.get("claims", b"0"))

    @property
    def retries_used(self) -> int:
        """How often it was tried again since it last got on; a background task, in all."""
        return int(self.fields.get("retriesUsed", b"0"))

    @property
    def asked(self) -> bool:
        """Whether calls of it wait, or have waited, for an answer."""
        return "asked" in self.fields

    @property
    def decisions(self) -> int:
        """How many answers calls of it have had."""
        return int(self.fields.get("decisions", b"0"))

    @property
    def reason(self) -> str | None:
        return self._optional("reason")

    @property
    def max_tokens(self) -> int | None:
        """Tokens that it may use, in all."""
        return int(self._text("maxTokens")) if "maxTokens" in self.fields else None

    @property
    def max_seconds(self) -> float | None:
        """Seconds that it may be executed, in all."""
        return float(self._text("maxSeconds")) if "maxSeconds" in self.fields else None

    @property
    def seconds_used(self) -> float:
        """Seconds that it was executed, if that is limited, as far as it is stored."""
        return int(self.fields.get("msUsed", b"0")) / 1000

    @property
    def queue(self) -> str:
        return self._text("queue")

    @property
    def kind(self) -> str:
        """`evented` or `durable`, as its agent is; or `task`."""
        return self._text("kind")

    @property
    def parent_run_id(self) -> str | None:
        """The run that has started it."""
        return self._optional("parentRunId")

    @property
    def nested(self) -> bool:
        """Whether its chunks are told in the log of that run, too."""
        return "nested" in self.fields

    @property
    def parent_call_id(self) -> str | None:
        """The call of that run that it was started for."""
        return self._text("parentCall").split(" ", 2)[2] if "parentCall" in self.fields else None

    @property
    def limits(self) -> list[str]:
        """The names of the limits that it is under, as a background task."""
        return [limit.rpartition("=")[0] for limit in (self._optional("limits") or "").split()]

    @property
    def max_idle(self) -> float | None:
        """For how many seconds in a row it waits for its tasks, if somebody has said so since it was submitted."""
        return int(self.fields["maxIdle"]) / 1000 if "maxIdle" in self.fields else None

    @property
    def idles(self) -> bool:
        """Whether its turn has ended and it waits for its tasks, which it does for so long at most."""
        return self.status is RunStatus.SUSPENDED and "idleUntil" in self.fields

    @property
    def begat(self) -> bool:
        """Whether it has started others: tasks, or runs of sub-agents."""
        return "begat" in self.fields

    @property
    def cancel_requested(self) -> bool:
        return "cancelRequested" in self.fields

    def asks_for(self, digest: str) -> bool:
        """Whether it was created by a request with this digest."""
        return self._optional("requestHash") == digest

    @property
    def watched(self) -> int:
        """How many chunks of its log tell what became of it: they are no part of an attempt."""
        return int(self.fields.get("watched", b"0"))

    @property
    def voids(self) -> list[tuple[int, int]]:
        """The ranges of its chunks, both ends included, whose model output no longer counts."""
        ranges = (each.partition("-") for each in (self._optional("voids") or "").split())
        return [(int(first), int(last)) for first, _, last in ranges]

    @property
    def thread_id(self) -> str | None:
        return self._optional("threadId")

    @property
    def resource_id(self) -> str | None:
        """Whose conversation its thread is."""
        return self._optional("resourceId")

    @property
    def behind(self) -> bool:
        """Whether it waits for another run of its thread."""
        return "behind" in self.fields

    @property
    def limited(self) -> bool:
        """Whether it waits for a place under a limit, as whoever has just created it knows: it is woken when there is
        one. No record that is read later tells."""
        return "limited" in self.fields

    @property
    def given(self) -> int:
        """How many exchanges of its thread it is given as its history."""
        return int(self.fields.get("given", b"0"))

    @property
    def raised(self) -> list[str]:
        """How its budgets were raised: tokens and seconds, as stored; the last times."""
        return (self._optional("raised") or "").split(";")

    @property
    def taken(self) -> int:
        """How many checkpoints it has from the run that it repeats."""
        return int(self.fields.get("taken", b"0"))

    @property
    def taken_from(self) -> str | None:
        """The run in which the model made the calls of the last of these."""
        return self._optional("takenFrom")

    def json(self, name: str) -> Json:
        """A field that holds JSON; None when it is missing."""
        value = self.fields.get(name)
        return None if value is None else exact_json.loads(value)

    def view(self) -> RunView:
        """What callers are told of the run."""
        queued = self.status is RunStatus.QUEUED
        waits = RETRYING if queued and "notBefore" in self.fields else THREAD_BUSY if queued and self.behind else None
        values = {
            "runId": self.run_id,
            "agent": self.agent,
            "status": self.status,
            "reason": waits or self.reason,
            "attempt": self.token,
            "lastSeq": self.last_seq,
            "createdAt": self._moment("createdAt"),
            "startedAt": self._moment("startedAt"),
            "finishedAt": self._moment("finishedAt"),
            "usage": self.json("usage"),
            "output": self.json("output"),
            "error": self.json("error"),
            "budget": self._budget(),
            "tripwire": self.json("tripwire"),
            "metadata": self.json("metadata"),
            "retryOf": self._optional("retryOf"),
            "parentRunId": self._optional("parentRunId"),
            "threadId": self._optional("threadId"),
        }
        return RunView.model_validate({name: value for name, value in values.items() if value is not None})

    def _budget(self) -> dict[str, Any] | None:
        if self.max_tokens is None and self.max_seconds is None:
            return None
        reached = self.json("budget")
        values = {
            "maxTokens": self.max_tokens,
            "maxSeconds": self.max_seconds,
            "secondsUsed": None if self.max_seconds is None else self.seconds_used,
            "reached": reached and reached["budget"],
        }
        return {name: value for name, value in values.items() if value is not None}

    def _text(self, name: str) -> str:
        return self.fields[name].decode()

    def _optional(self, name: str) -> str | None:
        return self._text(name) if name in self.fields else None

    def _moment(self, name: str) -> datetime | None:
        value = self.fields.get(name)
        return None if value is None else datetime.fromtimestamp(int(value) / 1000, UTC)


@dataclass(frozen=True)
class Parent:
    """The call that a run is started for.

    Attributes:
        run_id: The run that makes it.
        token: Of the attempt that does.
        step: Its step.
        round: How many answers it has had.
        tool_call_id: The model's id for it.
        tool_name: The tool.
        disposition: `deferred`: that run goes on meanwhile. `awaited`: the call waits.
    """

    run_id: str
    token: int
    step: int
    round: int
    tool_call_id: str
    tool_name: str
    disposition: Literal["deferred", "awaited"]


@dataclass(frozen=True)
class NewRun:
    """A run to create.

    Attributes:
        agent: The agent's name.
        kind: `evented` or `durable`, as the agent is; or `task`.
        queue: The Celery queue that its workers read.
        request: What it is asked to do.
        retention: Seconds to keep it after its end.
        run_id: The caller's own id for it.
        idempotency_key: Makes the request safe to repeat without an own id.
        metadata: What its caller attaches to it.
        retry_of: The ended run from whose checkpoint it starts.
        parent: The call that it is started for.
        retention_failed: Seconds to keep it when it does not complete; as `retention` when None.
        nested: Whether its chunks are told in the log of the run that it was started by, too.
        limits: How many tasks may be executed at a time under each name.
        on_limit: `queue`: it waits for a place. Else it is not created.
    """

    agent: str
    kind: str
    queue: str
    request: RunRequest
    retention: int
    run_id: str | None = None
    idempotency_key: str | None = None
    metadata: Mapping[str, Json] | None = None
    retry_of: str | None = None
    parent: Parent | None = None
    retention_failed: int | None = None
    nested: bool = False
    limits: Mapping[str, int] | None = None
    on_limit: str = "queue"


def check_policy(request: RunRequest, policies: Iterable[str]) -> None:
    """Refuse a request for an approval policy that its agent does not have.

    Raises:
        InvalidRequest: There is no policy of that name.
    """
    if isinstance(request.require_tool_approval, str) and request.require_tool_approval not in policies:
        raise InvalidRequest("The agent has no approval policy of this name.", field="requireToolApproval")


def check_terms(request: RunRequest) -> None:
    """Refuse a request whose terms are unfit for any agent.

    Raises:
        InvalidRequest: They are.
    """
    check_output(request.output_schema, request.output_mode)
    check_client_tools(request.client_tools, request.on_client_tools, request.client_tool_seconds)
    check_tool_choice(request.model_settings)


def check_include(include: Iterable[str] | None, *, raw: bool) -> None:
    """Refuse a request for chunks that nobody can write.

    Args:
        include: Types of chunks that are asked for.
        raw: Whether the events of the provider of the agent's model can be seen.

    Raises:
        InvalidRequest: One can't be written.
    """
    if not raw and "raw" in (include or ()):
        message = "Raw chunks are those of OpenAI's and Anthropic's models; this agent has another."
        raise InvalidRequest(message, field="include")


def read_until_idle(until_idle: bool | float | None) -> float | None:  # noqa: FBT001 - it is the value itself
    """For how many seconds in a row a run waits for its background tasks; None when it does not."""
    if until_idle is None or until_idle is False:
        return None
    return LONGEST_IDLE if until_idle is True else float(until_idle)


def check_thread(request: RunRequest) -> None:
    """Refuse what a request can't say of its thread.

    Raises:
        InvalidRequest: An id is not one; there is no thread to which the rest belongs; or history comes with it.
    """
    if request.thread_id is None:
        if request.resource_id is not None or request.on_busy is not None:
            raise InvalidRequest("resourceId and onBusy belong to a threadId.")
        return
    check_thread_id(request.thread_id)
    if request.resource_id is not None and not RUN_ID.fullmatch(request.resource_id):
        raise InvalidRequest("A resource id is 1 to 128 letters, digits, '_' or '-'.")
    if request.message_history:
        raise InvalidRequest("A run of a thread has the thread's history: give it no other.")


def check_thread_id(value: str) -> str:
    """The id, if it is one.

    Raises:
        InvalidRequest: It is not 1 to 128 of `A-Z a-z 0-9 _ -`.
    """
    if not RUN_ID.fullmatch(value):
        raise InvalidRequest("A thread id is 1 to 128 letters, digits, '_' or '-'.")
    return value


def new_run_id() -> str:
    """An unguessable run id of more than 128 random bits. A command line would take one with a leading '-' for an
    option."""
    found = secrets.token_urlsafe(17)
    return new_run_id() if found.startswith("-") else found


def check_run_id(value: str) -> str:
    """The id, if it is one.

    Raises:
        InvalidRequest: It is not 1 to 128 of `A-Z a-z 0-9 _ -`.
    """
    if not RUN_ID.fullmatch(value):
        raise InvalidRequest("A run id is 1 to 128 letters, digits, '_' or '-'.")
    return value
