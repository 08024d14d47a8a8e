"""What a tool call waits for when it can't go on by itself: an approval, data, or a result from outside.

A call that waits holds nothing. It is stored before it is announced, so that an answer may come from anywhere at once.
"""

from __future__ import annotations

import sys
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred

from durable.chunks.base import Issue, Json
from durable.errors import ConfigurationError
from durable.schemas import check_schema

Kind = Literal["approval", "resume", "external", "task"]
OnExpiry = Literal["decline", "approve", "fail", "cancel"]

MARK: Final = "durable"
"""The entry of a tool's, or of a deferral's, metadata that is ours."""
APPROVAL_SCHEMA: Final[dict[str, Json]] = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["approved"],
}
LONGEST_WAIT: Final = 10 * 365 * 86_400
"""Seconds until a deadline, at most."""
ANYTHING: Final[dict[str, Json]] = {}


class Suspension(BaseModel):
    """What a call waits for.

    Attributes:
        kind: `approval`: to be allowed. `resume`: data, with which the tool is called again. `external`: its result.
            `task`: that of its background task.
        payload: What the tool wants to be known.
        schema_: JSON schema of the answer.
        expires_in: Seconds after which it is answered by itself.
        on_expiry: How.
        announced: Whether observers were told. Not yet, while the agent's own handlers are asked.
        model: Where the type of the answer is found, `module:name`, if it can be.
        issues: What was wrong with the answer before: it is asked again.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    payload: Json = None
    schema_: dict[str, Json] = Field(default_factory=dict)
    expires_in: float | None = Field(None, gt=0, le=LONGEST_WAIT)
    on_expiry: OnExpiry = "decline"
    announced: bool = True
    model: str | None = None
    issues: list[Issue] | None = None

    def again(self, issues: list[Issue]) -> Suspension:
        """The same question once more, after an answer that was none."""
        return self.model_copy(update={"issues": issues})

    def deferral(self) -> ApprovalRequired | CallDeferred:
        """What Pydantic AI's loop understands of it."""
        metadata = None if self.payload is None else {"payload": self.payload}
        return CallDeferred(metadata) if self.kind in {"external", "task"} else ApprovalRequired(metadata)


class ToolSuspended(ApprovalRequired):
    """Raised by a tool that waits for data: made by `suspend`."""

    def __init__(self, suspension: Suspension) -> None:
        super().__init__({"payload": suspension.payload})
        self.suspension = suspension

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.suspension,)


class RunSuspended(BaseException):
    """Raised inside an attempt when nothing is left to do until somebody answers. Not an error: no hook may heal it.

    Args:
        reason: Why the run waits, as callers see it.
        turn_ended: Whether it has ended its turn: the model is done.
    """

    def __init__(self, reason: str = "decision", *, turn_ended: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.turn_ended = turn_ended


def suspend(
    payload: Json = None,
    *,
    resume_schema: Any = None,
    expires_in: float | None = None,
    on_expiry: OnExpiry = "decline",
) -> ToolSuspended:
    """To be raised by a tool that can't go on before somebody says something: `raise suspend({"question": …})`.

    The run waits, holding nothing. When the data comes, the tool is called again from its start, and
    `resume_data(ctx)` returns it.

    Args:
        payload: What whoever answers needs to know. Anything that has a JSON form.
        resume_schema: Of the data: a type that Pydantic knows, or a JSON schema (draft 2020-12) that refers to nothing
            outside of itself and whose patterns need no backtracking. Default: anything.
        expires_in: Seconds after which the call is answered by itself. Default: the tool's, else never.
        on_expiry: How: `decline` (the model is told), `fail` (the run fails) or `cancel` (the run is cancelled).
            `approve` calls the tool again without data.

    Raises:
        ConfigurationError: The payload has no JSON form, the schema is none, or `expires_in` is not a time to come.
    """
    try:
        suspension = Suspension(
            kind="resume",
            payload=TypeAdapter(Any).dump_python(payload, mode="json"),
            schema_=_schema(resume_schema),
            model=_name_of(resume_schema),
            expires_in=expires_in,
            on_expiry=on_expiry,
        )
    except ConfigurationError:
        raise
    except (ValidationError, ValueError, TypeError) as error:
        raise ConfigurationError(
            "suspend() was given a payload without a JSON form, or a deadline in the past."
        ) from error
    return ToolSuspended(suspension)


def _schema(given: Any) -> dict[str, Json]:
    if given is None:
        return ANYTHING
    try:
        schema = given if isinstance(given, dict) else TypeAdapter(given).json_schema()
        check_schema(schema)
    except Exception as error:
        raise ConfigurationError(
            "resume_schema is neither a type that Pydantic knows nor a JSON schema that answers can be checked with."
        ) from error
    return schema


def _name_of(given: Any) -> str | None:
    """Where a type is found again, also by a later process; None when it is not."""
    if not isinstance(given, type):
        return None
    name = f"{given.__module__}:{given.__qualname__}"
    return name if type_of(name) is given else None


def type_of(name: str | None) -> Any:
    """The type of that name, if its module is there; None otherwise. Nothing is imported because of a stored name."""
    module, _, path = (name or "").partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def read_deferral(error: ApprovalRequired | CallDeferred, options: dict[str, Any]) -> Suspension:
    """What a tool that raised waits for.

    Args:
        error: What it raised.
        options: The `durable` entry of the tool's metadata: `expires_in` and `on_expiry`, unless it says so itself.

    Raises:
        ConfigurationError: The options do not fit.
    """
    if isinstance(error, ToolSuspended):
        found = error.suspension
        if found.expires_in is None and "expires_in" in options:
            return _checked(found.model_dump() | _limits(options))
        return found
    metadata = dict(error.metadata or {})
    options = options | dict(metadata.pop(MARK, None) or {})
    external = isinstance(error, CallDeferred)
    return _checked(
        {
            "kind": "external" if external else "approval",
            "payload": TypeAdapter(Any).dump_python(metadata, mode="json") or None,
            "schema_": ANYTHING if external else APPROVAL_SCHEMA,
            **_limits(options),
        }
    )


def _limits(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("expires_in", "on_expiry") if name in options}


def _checked(values: dict[str, Any]) -> Suspension:
    try:
        return Suspension.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError("A tool's expires_in or on_expiry is not valid.") from error
