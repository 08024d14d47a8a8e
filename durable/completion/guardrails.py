"""Guardrails: functions that stop a run before the model is asked, or before its output is given out.

They fail closed: one that can't say, or does not in time, stops the run as well.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic_ai.messages import ModelMessage

from durable.chunks.base import Json
from durable.completion.context import JudgeContext, ask, failure, in_time, name_of
from durable.errors import GuardrailFailed
from durable.translate import to_json_value

log = logging.getLogger(__name__)


class Tripwire(Exception):
    """Returned or raised by a guardrail to stop the run.

    Args:
        reason: Why, for whoever may see the run.
        metadata: What else is to be known; anything that has a JSON form.
    """

    def __init__(self, reason: str, *, metadata: Mapping[str, Json] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.metadata = metadata

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.reason, self.metadata)

    def to_json(self) -> dict[str, Json]:
        """What is stored of it, and shown."""
        told: dict[str, Json] = {"reason": str(self.reason)}
        if self.metadata is not None:
            told["metadata"] = to_json_value(dict(self.metadata))
        return told


def _again(reason: str, metadata: Mapping[str, Json] | None) -> Tripwire:
    return Tripwire(reason, metadata=metadata)


InputGuardrail = Callable[[JudgeContext, Sequence[ModelMessage]], Tripwire | Awaitable[Tripwire | None] | None]
"""Is given the conversation that the run begins with, the user's message included."""
OutputGuardrail = Callable[[JudgeContext, Any], Tripwire | Awaitable[Tripwire | None] | None]
"""Is given the agent's output."""


async def guard(
    ctx: JudgeContext, guardrail: Callable[..., Any], subject: Any, seconds: float | None
) -> Tripwire | None:
    """Ask a guardrail.

    Args:
        ctx: What it may know.
        guardrail: What to ask.
        subject: What it looks at.
        seconds: How long it may take; None for no limit.

    Raises:
        GuardrailFailed: It raised, returned something else, or was late.
    """
    name = name_of(guardrail)
    try:
        said = await in_time(ctx, f"the guardrail {name}", ask(ctx, guardrail, subject), seconds)
    except Tripwire as tripped:
        return tripped
    except Exception as error:
        log.warning("run %s: the guardrail %s %s", ctx.run_id, name, failure(error))
        raise GuardrailFailed(f"The guardrail {name!r} {failure(error)}.") from error
    if said is None or isinstance(said, Tripwire):
        return said
    raise GuardrailFailed(f"The guardrail {name!r} returned neither None nor a Tripwire.")
