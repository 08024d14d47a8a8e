"""What the log has beyond the last checkpoint: what an earlier attempt said before it stopped.

A new attempt starts from the checkpoint. It must not say again what stands in the log for good (calls and outcomes of
the checkpoint's step, and that step's end), and it must declare void what is torn: a model response that was never
completed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from durable.chunks import (
    BackgroundTaskStarted,
    Chunk,
    Start,
    StepFinish,
    StepStart,
    ToolCall,
    ToolError,
    ToolResult,
    VoidRange,
)
from durable.journal import read
from durable.store import Store


@dataclass
class Tail:
    """The log beyond a checkpoint.

    Attributes:
        begun: Whether the log tells that the run has started; not looked for where there is a checkpoint, or no log.
        called: Calls of the checkpoint's step that the log has.
        settled: Calls of the checkpoint's step whose outcome the log has.
        step_finished: Whether the log has the end of that step.
        torn: The seqs of a model response that was begun after it and never completed.
    """

    begun: bool = True
    called: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    step_finished: bool = False
    torn: VoidRange | None = None

    @classmethod
    async def read(cls, store: Store, run_id: str, after: int, last_seq: int) -> Tail:
        """Read the log from a checkpoint's seq to its end.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        tail = cls(begun=after > 0)
        async for chunk in _chunks(store, run_id, after):
            match chunk:
                case StepStart():
                    # From here on all belongs to responses that no checkpoint has.
                    tail.torn = VoidRange.model_validate({"from": chunk.seq, "to": last_seq})
                    break
                case Start():
                    tail.begun = True
                case ToolCall():
                    tail.called.add(chunk.payload.tool_call_id)
                case ToolResult() | ToolError() | BackgroundTaskStarted():
                    tail.settled.add(chunk.payload.tool_call_id)
                case StepFinish():
                    tail.step_finished = True
        return tail


async def _chunks(store: Store, run_id: str, after: int) -> AsyncIterator[Chunk]:
    while entries := await read(store, run_id, after, limit=200):
        for entry in entries:
            for chunk in entry.chunks():
                yield chunk
        after = entries[-1].last
