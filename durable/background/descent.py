"""The calls of what a run has started, and of what that has started: they wait for the same people as its own.

Invariant: a call is only ever found below the run that was asked for, and an answer goes to one call or to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final, cast

from durable.decisions import Call, Decisions
from durable.errors import AmbiguousCall
from durable.store import Store, text
from durable.trees.places import DEEPEST

_AT_ONCE: Final = 500

Found = tuple[str, Call]
"""A call, and the run that it is one of."""


class Descent:
    """What is below runs.

    Args:
        store: Where they are.
        decisions: Their calls.
    """

    def __init__(self, store: Store, decisions: Decisions) -> None:
        self._store = store
        self._decisions = decisions

    async def waiting(self, run_ids: Sequence[str]) -> list[list[Found]]:
        """For each run, the calls below it that wait for an answer, those that waited first ahead.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        below = await self._below(run_ids, ended=False)
        found = await self._calls(list(chain.from_iterable(below)))
        return [
            sorted(
                ((child, call) for child in children for call in found[child] if call.answer is None),
                key=lambda each: (each[1].since, each[0], each[1].tool_call_id),
            )
            for children in below
        ]

    async def place(self, run_id: str, tool_call_id: str, question: str | None) -> str | None:
        """The run below this one that an answer is for: that of the call that waits, else of the one that has waited;
        None when no call is meant.

        Args:
            run_id: The run whose call it is not.
            tool_call_id: The call.
            question: What it is asked, or was asked last. Default: whatever that is.

        Raises:
            AmbiguousCall: Several calls may be meant; `details` name them.
            StoreUnavailable: Redis does not answer.
        """
        [children] = await self._below([run_id], ended=True)
        found = await self._calls(children)
        meant = [
            (child, call)
            for child in children
            for call in found[child]
            if call.tool_call_id == tool_call_id and question in {None, call.question_id}
        ]
        meant = [each for each in meant if each[1].answer is None] or meant
        if len(meant) > 1:
            raise AmbiguousCall(candidates=[{"runId": child, **call.named} for child, call in meant])
        return meant[0][0] if meant else None

    async def _below(self, run_ids: Sequence[str], *, ended: bool) -> list[list[str]]:
        """For each run, all that it has started, and what these have; with those that have `ended`, or without."""
        found: list[list[str]] = [[] for _ in run_ids]
        level = [(place, run_id) for place, run_id in enumerate(run_ids)]
        for _ in range(DEEPEST):
            children = await self._children([run_id for _, run_id in level])
            level = [
                (place, child)
                for (place, _), states in zip(level, children, strict=True)
                for child, state in states.items()
                if ended or state == "live"
            ]
            for place, child in level:
                found[place].append(child)
            if not level:
                break
        return found

    async def _children(self, run_ids: Sequence[str]) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for start in range(0, len(run_ids), _AT_ONCE):
            async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
                for run_id in run_ids[start : start + _AT_ONCE]:
                    pipe.hgetall(self._store.keys.children(run_id))
                rows = cast("list[dict[bytes, bytes]]", await pipe.execute())
            found += [{text(child): text(state) for child, state in row.items()} for row in rows]
        return found

    async def _calls(self, run_ids: Sequence[str]) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {}
        for start in range(0, len(run_ids), _AT_ONCE):
            some = run_ids[start : start + _AT_ONCE]
            found.update(zip(some, await self._decisions.calls(some), strict=True))
        return found
