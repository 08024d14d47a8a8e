"""What a tool call does to its run beside what it returns: it uses tokens, and it enqueues messages.

It is recorded with the call's outcome, and done again where the outcome is replayed; once, whichever of the calls that
run at a time it is recorded with.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from typing import Any

import orjson
from pydantic import TypeAdapter
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.run import AgentRun
from pydantic_ai.usage import RunUsage

from durable.chunks.base import Json

_USAGE = TypeAdapter(RunUsage)


class Asides:
    """What the calls of one attempt do beside."""

    def __init__(self) -> None:
        self.recorded: set[str] = set()
        """The enqueued messages that are recorded with some call, or with a checkpoint."""

    def begin(self, ctx: RunContext[Any]) -> Aside:
        """A call is about to be made."""
        return Aside(ctx, self)

    def enqueued(self, run: AgentRun[Any, Any]) -> list[Json]:
        """All messages that wait to be told to the model, as JSON."""
        return list(self.entries(run.pending_messages))

    def entries(self, enqueued: Iterable[Any], *, next_to_return: bool = False) -> Iterable[Json]:
        """Messages as JSON, but for those that no checkpoint can have either."""
        for pending in enqueued:
            try:
                messages = ModelMessagesTypeAdapter.dump_python(pending.messages, mode="json")
                orjson.dumps(messages)
            except (ValueError, TypeError):
                continue
            self.recorded.add(pending.enqueue_id)
            parts = next_to_return and getattr(pending, "_tool_call", None) is not None
            yield {
                "id": pending.enqueue_id,
                "priority": pending.priority,
                "parts": parts,
                "messages": messages,
            }

    def replay(self, ctx: RunContext[Any], aside: Any) -> None:
        """Do again what a call did beside."""
        if aside and "usage" in aside:
            ctx.usage.incr(_USAGE.validate_python(aside["usage"]))
        if aside:
            self.enqueue(ctx, aside.get("enqueued", ()))

    def enqueue(self, run: RunContext[Any] | AgentRun[Any, Any], entries: Iterable[Any]) -> None:
        """Enqueue messages again, under the ids that they had."""
        for entry in entries:
            content: list[Any] = ModelMessagesTypeAdapter.validate_python(entry["messages"])
            if entry["parts"]:
                content = [part for message in content for part in message.parts]
            enqueue_id = run.enqueue(*content, priority=entry["priority"])
            for pending in run.pending_messages or ():
                if pending.enqueue_id == enqueue_id:
                    pending.enqueue_id = entry["id"]
            self.recorded.add(entry["id"])


class Aside:
    """What one call does beside.

    Attributes:
        ctx: To call the tool with. Its usage is a copy: what the calls beside it use is not this call's.
    """

    def __init__(self, ctx: RunContext[Any], asides: Asides) -> None:
        self._outer = ctx
        self._asides = asides
        self._before = copy(ctx.usage)
        self._others = {pending.enqueue_id for pending in ctx.pending_messages or ()}
        self.ctx = replace(ctx, usage=copy(ctx.usage))

    def settle(self) -> Json:
        """The tool has ended: what it used is the run's. What it did, as JSON; None when it did nothing."""
        used = self.ctx.usage - self._before
        self._outer.usage.incr(used)
        mine = [pending for pending in self._outer.pending_messages or () if self._is_mine(pending)]
        aside: dict[str, Json] = {
            "usage": _USAGE.dump_python(used, mode="json", exclude_defaults=True),
            "enqueued": list(self._asides.entries(mine, next_to_return=True)),
        }
        return {name: value for name, value in aside.items() if value} or None

    def _is_mine(self, pending: Any) -> bool:
        call = getattr(pending, "_tool_call", None)  # of what is told next to a call's return
        others = pending.enqueue_id in self._others or pending.enqueue_id in self._asides.recorded
        return not others and (call is None or call[0] == self._outer.tool_call_id)
