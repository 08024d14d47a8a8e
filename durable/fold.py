"""What a log adds up to: its text, its reasoning, its tool calls and its end.

Invariant: a chunk that a later `step-start` or `tripwire` declared void does not count. Void is the model's output in
the range (text, reasoning, sources, files, steps, and calls without a recorded outcome); a recorded tool outcome always
counts. A chunk that comes twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from durable.chunks import (
    Approval,
    Chunk,
    Error,
    ErrorInfo,
    File,
    Finish,
    FinishReason,
    Json,
    ObjectChunk,
    ObjectResult,
    ReasoningDelta,
    Source,
    StepOutput,
    StepStart,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallInputStreamingStart,
    ToolError,
    ToolOutput,
    ToolOutputDenied,
    ToolResult,
    TripwireChunk,
    Usage,
    VoidRange,
    from_wire,
)


@dataclass(slots=True)
class FoldedCall:
    """A tool call, as far as the log tells.

    Attributes:
        tool_call_id: Names the call within the run.
        tool_name: The tool; empty until it is told.
        seq: The chunk that first spoke of the call.
        args_text: The JSON text of the arguments, as far as it has streamed.
        args: The arguments, once they are complete.
        outputs: What the tool said while it was running.
        nested: What the run of a sub-agent adds up to that is told in this one's log.
        result: What the tool returned.
        error: Why there is no result.
        denied: Who declined the call, and why, if somebody did.
        ended: Whether an outcome is recorded.
    """

    tool_call_id: str
    tool_name: str
    seq: int
    args_text: str = ""
    args: Json = None
    outputs: list[Json] = field(default_factory=list)
    nested: Folder | None = None
    result: Json = None
    error: ErrorInfo | None = None
    denied: Approval | None = None
    ended: bool = False


def void_range(chunk: Chunk) -> VoidRange | None:
    """The range that this chunk declares void, if it does."""
    return chunk.payload.void if isinstance(chunk, StepStart | TripwireChunk) else None


class Folder:
    """Takes the chunks of one run in order, one by one, and tells at any time what counts.

    Attributes:
        last_seq: The newest chunk that was taken; 0 before any.
        calls: The tool calls that count, by their id, in the order in which they began.
        sources: The citations that count.
        files: The files that count.
        error: Why the run failed, if it did.
        reason: How the last turn ended; None while it goes on.
        usage: The tokens of the last turn; None while it goes on.
        object: The validated output of the last turn, when it is not text.
        partial: That output as far as it has streamed in the step under way, or the last one; None before any of it.
        final: Whether the run's last chunk was taken.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        self.calls: dict[str, FoldedCall] = {}
        self.sources: list[Source] = []
        self.files: list[File] = []
        self.error: ErrorInfo | None = None
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.object: Json = None
        self.partial: Json = None
        self.final = False
        self._text: list[tuple[int, str]] = []
        self._reasoning: list[tuple[int, str]] = []
        self._steps: list[int] = []

    @property
    def text(self) -> str:
        """All text that counts, of all steps, in order."""
        return "".join(text for _, text in self._text)

    @property
    def reasoning(self) -> str:
        """All reasoning that counts, of all steps, in order."""
        return "".join(text for _, text in self._reasoning)

    @property
    def steps(self) -> int:
        """How many model requests count."""
        return len(self._steps)

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk. One that was taken before is skipped; types that do not matter here are, too."""
        if chunk.seq and chunk.seq <= self.last_seq:
            return
        self.last_seq = max(chunk.seq, self.last_seq)
        self.final = self.final or bool(chunk.final)
        match chunk:
            case TextDelta():
                self._text.append((chunk.seq, chunk.payload.text))
            case ReasoningDelta():
                self._reasoning.append((chunk.seq, chunk.payload.text))
            case Source():
                self.sources.append(chunk)
            case File():
                self.files.append(chunk)
            case ToolCallInputStreamingStart() | ToolCall() | ToolCallDelta() | ToolOutput() | StepOutput():
                self._add_to_call(chunk)
            case ToolResult() | ToolError() | ToolOutputDenied():
                self._end_call(chunk)
            case _:
                self._add_frame(chunk)

    def _add_frame(self, chunk: Chunk) -> None:
        match chunk:
            case StepStart():
                if chunk.payload.void is not None:
                    self._void(chunk.payload.void)
                self._steps.append(chunk.seq)
                self.partial = None  # whatever is void of it, is so by a step that begins anew
                self.reason = None
            case TripwireChunk():
                self._void_output(chunk)
            case ObjectChunk():
                self.partial = chunk.object
            case ObjectResult():
                self.object = self.partial = chunk.object
            case Error():
                self.error = chunk.payload.error
            case Finish():
                self.reason = chunk.payload.step_result.reason
                self.usage = chunk.payload.output.usage
                self.object = chunk.payload.output.object
            case _:  # of no weight here, or of a type that this version does not know
                pass

    def _call(self, chunk: Chunk, tool_call_id: str, tool_name: str | None) -> FoldedCall:
        call = self.calls.get(tool_call_id)
        if call is None:
            call = self.calls[tool_call_id] = FoldedCall(tool_call_id, tool_name or "", chunk.seq)
        call.tool_name = tool_name or call.tool_name
        return call

    def _add_to_call(
        self, chunk: ToolCallInputStreamingStart | ToolCall | ToolCallDelta | ToolOutput | StepOutput
    ) -> None:
        call = self._call(chunk, chunk.payload.tool_call_id, chunk.payload.tool_name)
        match chunk:
            case ToolCall():
                call.args = chunk.payload.args
            case ToolCallDelta():
                call.args_text += chunk.payload.args_text_delta
            case StepOutput() | ToolOutput() if chunk.payload.task_id is not None:
                call.nested = call.nested or Folder()
                with suppress(ValueError):  # not as this version knows it
                    call.nested.add(from_wire(chunk.payload.output))
            case ToolOutput():
                call.outputs.append(chunk.payload.output)
            case _:
                pass

    def _end_call(self, chunk: ToolResult | ToolError | ToolOutputDenied) -> None:
        call = self._call(chunk, chunk.payload.tool_call_id, chunk.payload.tool_name)
        call.ended = True
        if chunk.payload.args is not None:
            call.args = chunk.payload.args
        match chunk:
            case ToolResult():
                call.result = chunk.payload.result
            case ToolError():
                call.error = chunk.payload.error
            case ToolOutputDenied():
                call.denied = chunk.payload.approval

    def _void_output(self, chunk: TripwireChunk) -> None:
        """An output that a guardrail has stopped does not count, whether it was text or a call."""
        self.partial = None
        if chunk.payload.void is not None:
            self._void(chunk.payload.void)
        for call in chunk.payload.withheld or ():
            self.calls.pop(call, None)

    def _void(self, void: VoidRange) -> None:
        def counts(seq: int) -> bool:
            return not void.from_ <= seq <= void.to

        self._text = [piece for piece in self._text if counts(piece[0])]
        self._reasoning = [piece for piece in self._reasoning if counts(piece[0])]
        self._steps = [seq for seq in self._steps if counts(seq)]
        self.sources = [source for source in self.sources if counts(source.seq)]
        self.files = [file for file in self.files if counts(file.seq)]
        self.calls = {key: call for key, call in self.calls.items() if call.ended or counts(call.seq)}


def fold_text(chunks: Iterable[Chunk]) -> str:
    """The text of a run, given its chunks in order: what counts, of all steps."""
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    return folder.text
