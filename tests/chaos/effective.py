"""What of a log counts, in a form that is equal for two runs that did the same.

Left out is what a later step declared void, what says only that a judge is being asked, outputs while they grow, and
what differs between any two runs: times, ids and how text was cut into deltas. Calls and outcomes of one step come in
the order of their ids: tools that run side by side end in any order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from durable.chunks import Chunk, ObjectChunk, ObjectResult
from durable.fold import void_range

_OUTCOMES: Final = frozenset({"tool-result", "tool-error"})
_DELTAS: Final = {"text-delta": "text", "reasoning-delta": "text", "tool-call-delta": "argsTextDelta"}
_OWN: Final = frozenset(
    {"startedAt", "completedAt", "suspendedAt", "since", "messageId", "timestamp", "id", "void", "duration"}
)
_WAITS: Final = ("tool-call-approval", "tool-call-suspended", "tool-call-decided", "tool-output-denied")
TASKS: Final = (
    "background-task-started",
    "background-task-running",
    "background-task-suspended",
    "background-task-resumed",
    "background-task-completed",
    "background-task-failed",
    "background-task-cancelled",
)
"""Chunks that tell of a background task, each time it happens."""
_SETTLED: Final = _OUTCOMES | {*TASKS}
"""Void is what the model has said. These are true also where they lie between that."""
_TASK: Final = re.compile("task-[0-9a-f]{40}")
_ANY_ORDER: Final = ("tool-call", *TASKS, *sorted(_OUTCOMES), *_WAITS)


def effective(chunks: Sequence[Chunk]) -> list[tuple[str, Any]]:
    """The type and payload of each chunk that counts."""
    void = _void(chunks)
    counting = [chunk for chunk in chunks if chunk.seq not in void or chunk.type in _SETTLED]
    found: list[tuple[str, Any]] = []
    settled: list[tuple[str, Any]] = []
    for chunk in counting:
        if isinstance(chunk, ObjectChunk):
            continue  # how often one is told depends on how its JSON came
        payload = _without({"object": chunk.object} if isinstance(chunk, ObjectResult) else chunk.to_wire()["payload"])
        if chunk.type in TASKS:
            del payload["taskId"]
            payload.pop("runId", None)
        if chunk.type == "goal" and "pending" in payload:
            continue  # each attempt that asks the judge says so
        if chunk.type in _ANY_ORDER:
            settled.append((chunk.type, payload))
            continue
        found += sorted(settled, key=lambda each: (_ANY_ORDER.index(each[0]), str(each[1]["toolCallId"])))
        settled = []
        text = _DELTAS.get(chunk.type)
        if text and found and found[-1][0] == chunk.type and _part(found[-1][1]) == _part(payload):
            found[-1][1][text] += payload[text]
        else:
            found.append((chunk.type, payload))
    return found + settled


def counted(chunks: Sequence[Chunk], kind: str) -> list[str]:
    """The ids of the calls whose chunks of a type count, in order."""
    void = _void(chunks)
    return [
        chunk.payload.tool_call_id
        for chunk in chunks
        if chunk.type == kind and (chunk.seq not in void or kind in _SETTLED)
    ]


def nameless(value: Any) -> Any:
    """A value in whose text no task has a name of its own."""
    return _TASK.sub("task", value) if isinstance(value, str) else value


def _void(chunks: Sequence[Chunk]) -> set[int]:
    ranges = [found for chunk in chunks if (found := void_range(chunk))]
    return {seq for found in ranges for seq in range(found.from_, found.to + 1)}


def _part(payload: dict[str, Any]) -> Any:
    return payload.get("toolCallId")


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        results = value.get("toolResults")
        if isinstance(results, list):
            value = {**value, "toolResults": sorted(results, key=lambda result: str(result["toolCallId"]))}
        return {name: _without(item) for name, item in value.items() if name not in _OWN}
    if isinstance(value, list):
        return [_without(item) for item in value]
    return nameless(value)
