"""What is recorded of an attempt's tool calls: each one's start, and its outcome in the same step as its chunk."""

from __future__ import annotations

from dataclasses import replace

from pydantic_ai.messages import ToolReturnPart

from durable import ledger
from durable.chunks import (
    Approval,
    BackgroundTaskStarted,
    Chunk,
    ErrorInfo,
    TaskPayload,
    ToolError,
    ToolErrorPayload,
    ToolResult,
)
from durable.chunks.base import Json
from durable.errors import ToolResultInvalid
from durable.execution.failures import ToolFailure
from durable.probes import Point, Probe
from durable.translate import Translator, outcome_chunk
from durable.writer import Note, RunWriter


class CallRecord:
    """The tool calls of one attempt.

    Args:
        writer: Writes to the run's log, under the attempt's lease.
        translator: Knows which outcomes the log has.
        entries: The run's ledger.
        max_result_bytes: How large an entry may be.
        probe: Passed at each point.

    Attributes:
        max_result_bytes: As given.
        step: The step that is under way, from 1; 0 before the first.
        advanced: Whether this attempt has got the run on, by an outcome or otherwise.
        came_to: What the last call has come to, as the tool ended it. A background task makes but one.
        code: The code of the failure that was recorded last.
        outcomes: What calls of this step have come to in this attempt, or had before: the round, and its entry.
    """

    def __init__(
        self,
        writer: RunWriter,
        translator: Translator,
        entries: dict[str, bytes],
        max_result_bytes: int,
        probe: Probe,
    ) -> None:
        self.step = 0
        self.advanced = False
        self.came_to: ledger.Outcome | None = None
        self.code: str | None = None
        self.outcomes: dict[str, tuple[int, bytes]] = {}
        self._writer = writer
        self._translator = translator
        self._entries = entries
        self.max_result_bytes = max_result_bytes
        self._probe = probe
        self._failures: dict[str, tuple[int, ToolFailure, Json]] = {}

    def reason(self, error: BaseException) -> BaseException:
        """Why the run fails: the failure of a tool, if this is what it raised."""
        return next((failure for _, failure, _ in self._failures.values() if failure.__cause__ is error), error)

    def known(self, tool_call_id: str, round_: int) -> bytes | None:
        """The ledger entry of a call of this step."""
        return self._entries.get(ledger.key(self.step, tool_call_id, round_))

    def newest(self, tool_call_id: str) -> bytes | None:
        """The ledger entry of its last round."""
        found, round_ = None, 0
        while (entry := self.known(tool_call_id, round_)) is not None:
            found, round_ = entry, round_ + 1
        return found

    async def started(self, tool_call_id: str, round_: int, args: dict[str, Json] | None = None) -> None:
        """Enter a call as started, and wait until that is stored; `args` is what with, if that is not the model's."""
        self._probe(Point.TOOL_START_BEFORE)
        field = ledger.key(self.step, tool_call_id, round_)
        self._writer.note(Note(field=field, value=ledger.started(args), progress=False))
        await self._writer.flush()
        self._probe(Point.TOOL_START_AFTER)

    def ended(
        self,
        tool_call_id: str,
        round_: int,
        name: str,
        outcome: ledger.Outcome,
        entry: bytes,
        approval: Approval | None,
    ) -> None:
        """Record what a tool returned or told the model, with its chunk."""
        chunk = outcome_chunk(return_part(name, tool_call_id, outcome))
        if approval is not None and isinstance(chunk, ToolResult):
            chunk.payload.approval = approval
        self._record(tool_call_id, round_, chunk, entry)

    async def again(self, tool_call_id: str, round_: int) -> None:
        """A call raised, and is to be made again: it counts as never started."""
        self._writer.note(Note(field=ledger.key(self.step, tool_call_id, round_), value=ledger.AGAIN, progress=False))
        await self._writer.flush()

    async def delegated(self, tool_call_id: str, round_: int, task: ledger.Task, outcome: ledger.Outcome) -> str:
        """Record that a background task makes a call, with the chunk that tells of it. Returns the call's name in the
        ledger."""
        field = ledger.key(self.step, tool_call_id, round_)
        payload = TaskPayload(task_id=task.id, tool_name=task.tool, tool_call_id=tool_call_id)
        if outcome.task is not None:
            self._translator.recorded(tool_call_id)  # its result is told when it comes
        entry = self._entries[field] = ledger.encode(outcome)
        if outcome.task is not None:
            self.outcomes[tool_call_id] = round_, entry
        note = Note(field=field, value=entry)
        self._probe(Point.DELEGATED_BEFORE)
        self._writer.write(BackgroundTaskStarted(payload=payload), note)
        self.advanced = True
        await self._writer.flush()
        self._probe(Point.DELEGATED_AFTER)
        return field

    def has_outcome(self, tool_call_id: str) -> bool:
        """Whether the log has, or will have, what a call of this step came to."""
        return self._translator.has_outcome(tool_call_id)

    def denied(self, tool_call_id: str) -> None:
        """The log has the end of a call that was declined."""
        self._translator.recorded(tool_call_id)

    def told(self, tool_call_id: str, round_: int, entry: bytes) -> None:
        """Record what a call came to that the log has told already."""
        self._translator.recorded(tool_call_id)
        self.outcomes[tool_call_id] = round_, entry
        self._writer.note(Note(field=ledger.key(self.step, tool_call_id, round_), value=entry))
        self.advanced = True

    def failed(self, tool_call_id: str, round_: int, failure: ToolFailure, entry: bytes) -> None:
        """Record that a tool raised, or that nobody knows what it did."""
        self.code = failure.code
        name = type(failure.__cause__).__name__ if failure.__cause__ else None
        error = ErrorInfo(code=failure.code, message=failure.message)
        payload = ToolErrorPayload(
            tool_call_id=tool_call_id,
            tool_name=failure.tool_name,
            error=error.model_copy(update={"name": name}) if name else error,
        )
        self._record(tool_call_id, round_, ToolError(payload=payload), entry)

    def ends(self, tool_call_id: str, round_: int, failure: ToolFailure, aside: Json) -> None:
        """The failure of a call, and what it did beside. It ends the run, unless a hook makes something of it."""
        self._failures[tool_call_id] = round_, failure, aside

    def healed(self, tool_call_id: str, outcome: ledger.Outcome) -> None:
        """What a call came to with all hooks: recorded if it had failed."""
        failed = self._failures.pop(tool_call_id, None)
        if failed is None:
            return
        round_, _, aside = failed
        try:
            entry = ledger.encode(replace(outcome, aside=aside))
        except ToolResultInvalid:
            return  # the hook is asked again, as long as this step lasts
        if len(entry) <= self.max_result_bytes:
            self.outcomes[tool_call_id] = round_, entry
            self._writer.note(Note(field=ledger.key(self.step, tool_call_id, round_), value=entry))

    def _record(self, tool_call_id: str, round_: int, chunk: Chunk, entry: bytes) -> None:
        self._probe(Point.TOOL_END_BEFORE)
        self._translator.recorded(tool_call_id)
        self.outcomes[tool_call_id] = round_, entry
        field = ledger.key(self.step, tool_call_id, round_)
        self._writer.write(chunk, Note(field=field, value=entry))
        self.advanced = True
        self._probe(Point.TOOL_END_AFTER)


def return_part(name: str, tool_call_id: str, outcome: ledger.Outcome) -> ToolReturnPart:
    """What the model is told of an outcome that did not end the run."""
    if outcome.retry is not None:
        return ToolReturnPart(tool_name=name, content=outcome.retry, tool_call_id=tool_call_id, outcome="retried")
    if outcome.failed is not None:
        return ToolReturnPart(tool_name=name, content=outcome.failed, tool_call_id=tool_call_id, outcome="failed")
    return ToolReturnPart(tool_name=name, content=outcome.returned, tool_call_id=tool_call_id)
