"""The ledger: what became of each tool call, so that nothing completed is done again.

A call is known by its step, its round and its id: each answer from outside to a call that waited begins a new round.
Before a tool's body runs, `started` is written and awaited; its outcome is
written in the same step as its chunk. An entry that cannot be read is an error of its own (`LedgerCorrupt`): taken for
bad arguments, it would make the model ask again, and the tool would act twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic import ConfigDict, TypeAdapter
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import ToolReturn, ToolReturnContent, ToolReturnPart
from pydantic_ai.tools import ToolDenied

from durable import exact_json
from durable.chunks.base import Json
from durable.errors import LedgerCorrupt, ToolResultInvalid
from durable.suspension import Suspension

STARTED: Final = b'{"kind":"started"}'
AGAIN: Final = b'{"kind":"again"}'
"""A call that raised, and is to be made again as if it had never been started."""

_MESSAGE: Final = "durable-message-"

_RETURN: TypeAdapter[Any] = TypeAdapter(ToolReturn)
# As Pydantic AI shows bytes to the model.
_CONTENT: TypeAdapter[Any] = TypeAdapter(
    ToolReturnContent, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
)


@dataclass(frozen=True)
class Raised:
    """A failure that ended the run, unless a hook has made a result of it.

    Attributes:
        code: Stable.
        message: In our own words.
        name: The exception's class. Its text is not kept: it may hold anything.
    """

    code: str
    message: str
    name: str


@dataclass(frozen=True)
class Task:
    """The background task that makes a call.

    Attributes:
        id: Of the task.
        tool: The tool.
    """

    id: str
    tool: str


@dataclass(frozen=True)
class Outcome:
    """How a tool call ended.

    Attributes:
        value: What it returned.
        retry: What it told the model to do better (`ModelRetry`).
        failed: What it told the model that went wrong (`ToolFailed`).
        raised: How it failed.
        healed: Whether hooks have made this of a failure: they are not asked again.
        aside: What it did to its run beside, as JSON.
        suspended: What it waits, or waited, for.
        args: What it was made with before it waited, if the agent's own code had changed that.
        task: The background task that makes it meanwhile. `value` stands for its result until that is told.
        denied: Why it was declined. Not stored: the answer is.
    """

    value: Any = None
    retry: str | None = None
    failed: str | None = None
    raised: Raised | None = None
    healed: bool = False
    aside: Json = None
    suspended: Suspension | None = None
    args: dict[str, Json] | None = None
    task: Task | None = None
    denied: str | None = None

    @property
    def told(self) -> str | None:
        """What the model is told in place of a result; None when there is one."""
        return next((each for each in (self.retry, self.failed, self.denied) if each is not None), None)

    @property
    def returned(self) -> Any:
        """The result itself, also where the tool said more to the model (`ToolReturn`)."""
        return getattr(self.value, "return_value", self.value)

    def replay(self) -> Any:
        """Return, or raise, what the tool did; but for a failure that ended the run."""
        if self.retry is not None:
            raise ModelRetry(self.retry)
        if self.failed is not None:
            raise ToolFailed(self.failed)
        return self.value if self.denied is None else ToolDenied(self.denied)


def key(step: int, tool_call_id: str, round_: int = 0) -> str:
    """The call's name in the ledger. Models may use an id again in another step.

    Args:
        step: The step, from 1.
        tool_call_id: The model's id for the call.
        round_: How many answers from outside it has had.
    """
    return f"{step}+{round_}:{tool_call_id}" if round_ else f"{step}:{tool_call_id}"


def answer_key(step: int, tool_call_id: str, round_: int) -> str:
    """The name of the answer that ended the call's wait in a round."""
    return f"{step}!{round_}:{tool_call_id}"


def answer_to(field: str) -> str:
    """The name of the answer that ended the wait of the call that has this name."""
    place, _, call = field.partition(":")
    step, _, round_ = place.partition("+")
    return answer_key(int(step), call, int(round_ or 0))


def judgement(name: str) -> str:
    """The name, as of a call, of a verdict on the run: of a guardrail, a scorer or a goal's judge."""
    return f"durable-{name}"


def is_judgement(field: str) -> bool:
    """Whether a name in the ledger is that of a verdict on the run."""
    return field.partition(":")[2].startswith(judgement(""))


def message_key(number: int, message_id: str) -> str:
    """The name of a message that somebody has left for the run's model, as of an answer.

    Args:
        number: Messages are told in this order.
        message_id: Its sender's name for it.
    """
    return answer_key(0, f"{_MESSAGE}{message_id}", number)


def is_message(field: str) -> bool:
    """Whether a name in the ledger is that of a message for the model."""
    return is_answer(field) and field.partition(":")[2].startswith(_MESSAGE)


def message_id(field: str) -> str:
    """Its sender's name for the message that has this name."""
    return field.partition(":")[2].removeprefix(_MESSAGE)


def order(field: str) -> tuple[int, int]:
    """The step and the round that a name in the ledger belongs to."""
    step, _, round_ = field.partition(":")[0].replace("!", "+").partition("+")
    return int(step), int(round_ or 0)


def is_answer(field: str) -> bool:
    """Whether a name in the ledger is that of an answer from outside."""
    return "!" in field.partition(":")[0]


def step_of(field: str) -> int:
    """The step that a name in the ledger belongs to."""
    return int(field.partition(":")[0].partition("!")[0].partition("+")[0])


def started(args: dict[str, Json] | None = None) -> bytes:
    """The entry of a call that is about to be made; `args` is what with, if the agent's own code has changed that."""
    return STARTED if args is None else exact_json.dumps({"kind": "started", "args": args})


def args_of(entry: bytes) -> dict[str, Json] | None:
    """What a call was made with, by its entry, if the agent's own code had changed that before.

    Raises:
        LedgerCorrupt: It is no entry.
    """
    if not entry.startswith((b'{"kind":"started",', b'{"kind":"suspended",')):
        return None
    try:
        found: dict[str, Json] | None = exact_json.loads(entry).get("args")
    except ValueError as error:
        raise LedgerCorrupt from error
    return found


def encode(outcome: Outcome) -> bytes:
    """The entry that records an outcome.

    Raises:
        ToolResultInvalid: The value has no JSON form.
    """
    more: dict[str, Json] = {"aside": outcome.aside} if outcome.aside else {}
    if outcome.healed:
        more["healed"] = True
    if outcome.args is not None:
        more["args"] = outcome.args
    if outcome.task is not None:
        more["task"] = [outcome.task.id, outcome.task.tool]
    if outcome.retry is not None:
        return orjson.dumps({"kind": "retry", "message": outcome.retry, **more})
    if outcome.failed is not None:
        return orjson.dumps({"kind": "failed", "message": outcome.failed, **more})
    if outcome.raised is not None:
        raised = outcome.raised
        return orjson.dumps({"kind": "raised", "failure": [raised.code, raised.message, raised.name], **more})
    if outcome.suspended is not None:
        return exact_json.dumps(
            {"kind": "suspended", "for": outcome.suspended.model_dump(mode="json", exclude_none=True), **more}
        )
    kind, adapter = (b"tool-return", _RETURN) if isinstance(outcome.value, ToolReturn) else (b"content", _CONTENT)
    try:
        data: bytes = adapter.dump_json(outcome.value)
        if kind == b"content" and _as_seen(_CONTENT.validate_json(data)) != _as_seen(outcome.value):
            # NaN and the like: JSON has no such values. What the model sees of them is text.
            data = orjson.dumps(_as_seen(outcome.value))
    except Exception as error:
        raise ToolResultInvalid from error
    end = b"," + orjson.dumps(more)[1:] if more else b"}"
    return b'{"kind":"%b","value":%b%b' % (kind, data, end)


def _as_seen(value: Any) -> str:
    """What the model is told of a value."""
    return ToolReturnPart(tool_name="", content=value, tool_call_id="").model_response_str()


def decode(entry: bytes) -> Outcome | None:
    """The outcome that an entry records; None for a call that was started and never ended.

    Raises:
        LedgerCorrupt: It is no entry.
    """
    try:
        fields = exact_json.loads(entry)
        aside, healed = fields.get("aside"), bool(fields.get("healed"))
        match fields["kind"]:
            case "started" | "again":
                return None
            case "retry":
                return Outcome(retry=fields["message"], healed=healed, aside=aside)
            case "failed":
                return Outcome(failed=fields["message"], healed=healed, aside=aside)
            case "raised":
                code, message, name = fields["failure"]
                return Outcome(raised=Raised(code, message, name), aside=aside)
            case "suspended":
                waits = Suspension.model_validate(fields["for"])
                return Outcome(suspended=waits, aside=aside, args=fields.get("args"))
            case "tool-return" | "content" as kind:
                adapter = _RETURN if kind == "tool-return" else _CONTENT
                value = adapter.validate_python(fields["value"])
                task = Task(*fields["task"]) if "task" in fields else None
                return Outcome(value=value, healed=healed, aside=aside, task=task)
    except Exception as error:
        raise LedgerCorrupt from error
    raise LedgerCorrupt
