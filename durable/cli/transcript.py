"""A run as somebody reads it in a terminal: text flows, all else is one line each.

Invariant: it is written as chunks come, and nothing that was written is taken back; what a lost worker tore is
announced as void instead. How the run ended is not told here: the one line about it is for whoever looks at the run.
"""

from __future__ import annotations

import shlex
from typing import Final, TypeAlias, get_args

from durable.chunks import (
    BackgroundTaskCancelled,
    BackgroundTaskCompleted,
    BackgroundTaskFailed,
    BackgroundTaskOutput,
    BackgroundTaskProgress,
    BackgroundTaskResumed,
    BackgroundTaskRunning,
    BackgroundTaskStarted,
    BackgroundTaskSuspended,
    Chunk,
    File,
    Finish,
    GoalChunk,
    IsTaskComplete,
    Json,
    ReasoningDelta,
    Source,
    Start,
    StepFinish,
    StepOutput,
    StepStart,
    TextDelta,
    ToolCall,
    ToolCallApproval,
    ToolCallDecided,
    ToolCallSuspended,
    ToolError,
    ToolOutput,
    ToolOutputDenied,
    ToolResult,
    TripwireChunk,
    Usage,
    Watch,
    from_wire,
)
from durable.cli.terminal import Terminal
from durable.cli.values import arguments, short
from durable.fold import Folder

_QUIET: Final = frozenset(
    {
        "abort",
        "error",
        "finish",
        "object",
        "object-result",
        "raw",
        "reasoning-end",
        "reasoning-signature",
        "reasoning-start",
        "redacted-reasoning",
        "response-metadata",
        "text-end",
        "text-start",
        "tool-call-delta",
        "tool-call-input-streaming-end",
        "tool-call-input-streaming-start",
    }
)
OfTask: TypeAlias = (
    BackgroundTaskCancelled
    | BackgroundTaskCompleted
    | BackgroundTaskFailed
    | BackgroundTaskOutput
    | BackgroundTaskProgress
    | BackgroundTaskResumed
    | BackgroundTaskRunning
    | BackgroundTaskStarted
    | BackgroundTaskSuspended
)
OF_TASKS: Final = get_args(OfTask)
_DECIDED: Final = {"approve": "approved", "resume": "resumed"}


class Transcript:
    """Writes one run to a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        """Begins with the first chunk that it is shown."""
        self._terminal = terminal
        self._folder = Folder()
        self._flowing = ""  # the part whose text was written last
        self._open_line = False
        self._step = ("", "step")  # the message of the step that was begun last, and how the step is called
        self._attempt = 0

    def show(self, chunk: Chunk) -> None:
        """Write the next chunk."""
        self._folder.add(chunk)
        self._show_attempt(chunk)
        match chunk:
            case TextDelta():
                self._flow(chunk.payload.id, chunk.payload.text, "")
            case ReasoningDelta():
                self._flow(chunk.payload.id, chunk.payload.text, "dim italic")
            case StepStart() | StepFinish() | Start() | Finish() | Watch():
                self._show_frame(chunk)
            case ToolCall() | ToolResult() | ToolError() | ToolOutput() | StepOutput():
                self._show_tool(chunk)
            case ToolCallApproval() | ToolCallSuspended() | ToolCallDecided() | ToolOutputDenied():
                self._show_wait(chunk)
            case TripwireChunk() | IsTaskComplete() | GoalChunk():
                self._show_verdict(chunk)
            case _ if isinstance(chunk, OF_TASKS):
                self._show_task(chunk)
            case Source() | File():
                self._show_reference(chunk)
            case _ if chunk.type not in _QUIET:
                self._line(f"  · {chunk.type}", "dim")
            case _:
                pass

    def close(self) -> None:
        """End the line that is open, if one is."""
        if self._open_line:
            self._terminal.line("")
        self._open_line = False
        self._flowing = ""

    def _show_frame(self, chunk: Chunk) -> None:
        match chunk:
            case Start():
                self._line(f"● {chunk.payload.id}", "bold")
            case StepStart():
                self._step = (chunk.payload.message_id, _name_of(chunk.payload.step_id))
                self._line(f"┌ {self._step[1]}", "dim")
            case StepFinish():
                begun, name = self._step
                # The seq is what `--after` takes. A reader who came later has not seen how the step is called.
                step = name if chunk.payload.message_id in {begun, None} else "step"
                self._line(f"└ {step} finished ({chunk.seq}){_tokens(chunk.payload.output.usage)}", "dim")
            case Watch():
                state = chunk.payload.workflow_state
                self._line(f"◦ {state.status}{_because(state.reason)}", "dim")
            case _:
                self.close()

    def _show_verdict(self, chunk: TripwireChunk | IsTaskComplete | GoalChunk) -> None:
        match chunk:
            case TripwireChunk():
                void = "; what the model said last no longer counts" if chunk.payload.void is not None else ""
                self._line(f"✗ stopped by {chunk.payload.processor_id}: {chunk.payload.reason}{void}", "red")
            case IsTaskComplete():
                complete = "complete" if chunk.payload.passed else "not complete"
                self._line(f"◇ the task is {complete}{_because(chunk.payload.reason)}", "magenta")
            case GoalChunk() if chunk.payload.pending:
                self._line("◇ the goal is being judged", "dim")
            case GoalChunk():
                why = chunk.payload.paused_reason or chunk.payload.reason
                self._line(f"◇ the goal is {chunk.payload.status}{_because(why)}", "magenta")

    def _show_attempt(self, chunk: Chunk) -> None:
        """Whatever a new attempt writes first: say that it goes on, and what it declares void."""
        news = f"attempt {chunk.attempt} goes on from here" if chunk.attempt > self._attempt > 0 else ""
        self._attempt = max(self._attempt, chunk.attempt)
        if isinstance(chunk, StepStart) and chunk.payload.void is not None:
            void = "that response was cut off and no longer counts; it comes again"
            news = f"{news}: {void}" if news else void
        if news:
            self._line(f"↻ {news}", "yellow")

    def _show_tool(self, chunk: ToolCall | ToolResult | ToolError | ToolOutput | StepOutput) -> None:
        name = chunk.payload.tool_name or self._folder.calls[chunk.payload.tool_call_id].tool_name or "tool"
        match chunk:
            case ToolCall():
                self._line(f"  → {name}({arguments(chunk.payload.args)})", "cyan")
            case ToolResult():
                self._line(f"  ← {name}: {short(chunk.payload.result)}", "green")
            case ToolError():
                error = chunk.payload.error
                self._line(f"  ✗ {name}: {error.code}: {error.message}", "red")
            case ToolOutput() | StepOutput() if chunk.payload.task_id is not None:
                self._show_nested(name, chunk.payload.task_id, chunk.payload.output)
            case ToolOutput():
                self._line(f"  … {name}: {short(chunk.payload.output)}", "dim cyan")

    def _show_nested(self, name: str, task: str, output: Json) -> None:
        """What a sub-agent says and calls; its own commands show the rest."""
        try:
            inner = from_wire(output)
        except ValueError:  # not as this version knows it
            return
        match inner:
            case TextDelta():
                self._flow(f"{task} {inner.payload.id}", inner.payload.text, "dim")
            case ToolCall():
                self._line(f"    → {name}: {inner.payload.tool_name}({arguments(inner.payload.args)})", "dim cyan")
            case ToolResult():
                self._line(f"    ← {name}: {inner.payload.tool_name}: {short(inner.payload.result)}", "dim green")
            case StepFinish():
                self._line(f"    └ {name}: a step finished{_tokens(inner.payload.output.usage)}", "dim")
            case _:
                pass

    def _show_wait(self, chunk: ToolCallApproval | ToolCallSuspended | ToolCallDecided | ToolOutputDenied) -> None:
        call, name, asked = chunk.payload.tool_call_id, chunk.payload.tool_name, chunk.payload.question_id
        match chunk:
            case ToolCallApproval():
                what = f"approval of {name}({arguments(chunk.payload.args)})"
                self._ask(what, chunk, how_to_answer(chunk.run_id, call, asked, "approve"))
            case ToolCallSuspended():
                what = f"an answer to {name}({arguments(chunk.payload.args)})"
                self._ask(what, chunk, how_to_answer(chunk.run_id, call, asked, "resume"))
            case ToolCallDecided() if chunk.payload.decision == "fail":
                self._line(f"  ✗ {name}: nobody answered in time", "red")
            case ToolCallDecided():
                edited = "" if chunk.payload.args is None else f", as {name}({arguments(chunk.payload.args)})"
                verb = _DECIDED.get(chunk.payload.decision, chunk.payload.decision)
                self._line(f"  ✓ {name}: {verb}{_by(chunk.payload.actor)}{edited}", "green")
            case ToolOutputDenied():
                said = chunk.payload.approval
                reason = f": {said.reason}" if said.reason else ""
                self._line(f"  ✗ {name}: declined{_by(said.actor)}{reason}", "yellow")

    def _show_reference(self, chunk: Source | File) -> None:
        if isinstance(chunk, Source):
            self._line(f"  ⌁ source: {chunk.payload.title} {chunk.payload.url or ''}".rstrip(), "dim")
        else:
            told = chunk.payload.file_id
            fetch = f"  durable file {chunk.run_id} {told}" if told else ""
            self._line(f"  ⌁ file: {chunk.payload.filename or chunk.payload.mime_type}{fetch}", "dim")

    def _show_task(self, chunk: OfTask) -> None:
        if isinstance(chunk, BackgroundTaskProgress):
            self._line(f"⇣ waits for {len(chunk.payload.task_ids)} background tasks", "dim")
            return
        task = f"{chunk.payload.tool_name} in the background"
        match chunk:
            case BackgroundTaskStarted():
                self._line(f"  ⇢ {task}: task {chunk.payload.task_id}", "cyan")
            case BackgroundTaskRunning():
                self._line(f"  ⇢ {task} is executed", "dim cyan")
            case BackgroundTaskResumed():
                self._line(f"  ⇢ {task} goes on", "dim cyan")
            case BackgroundTaskOutput():
                said = (chunk.payload.payload or {}).get("payload") or {}
                self._line(f"  … {task}: {short(said.get('output'))}", "dim cyan")
            case BackgroundTaskSuspended():
                self._line(f"  ? {task} waits:  durable tasks show {chunk.payload.task_id}", "bold yellow")
            case BackgroundTaskCompleted():
                self._line(f"  ⇠ {task} has ended: {short(chunk.payload.result)}", "green")
            case BackgroundTaskFailed():
                error = chunk.payload.error
                self._line(f"  ✗ {task}: {error.code}: {error.message}", "red")
            case BackgroundTaskCancelled():
                self._line(f"  ✗ {task} was cancelled", "yellow")

    def _ask(self, what: str, chunk: ToolCallApproval | ToolCallSuspended, command: str) -> None:
        payload, issues = chunk.payload.suspend_payload, chunk.payload.issues or []
        wrong = "; ".join(f"{issue.field} {issue.message}" for issue in issues)
        more = ("" if payload is None else f", {short(payload)}") + (f", again, as {wrong}" if wrong else "")
        self._line(f"  ? waits for {what}{more}:  {command}", "bold yellow")

    def _flow(self, part: str, text: str, style: str) -> None:
        if not text:
            return
        if self._flowing != part:
            self.close()
        self._flowing = part
        self._open_line = not text.endswith("\n")
        self._terminal.write(text, style)

    def _line(self, text: str, style: str) -> None:
        self.close()
        self._terminal.line(text.replace("\n", " "), style)


def how_to_answer(run_id: str, call: str, question: str | None, verb: str) -> str:
    """The command that answers a question about a call, and no later one."""
    names = f"{shlex.quote(run_id)} {shlex.quote(call)}"
    options = "" if question is None else f" --question {shlex.quote(question)}"
    options += " --data JSON" if verb == "resume" else ""
    # An id may look like an option.
    dashed = "-" in {run_id[:1], call[:1]}
    return f"durable {verb}{options} -- {names}" if dashed else f"durable {verb} {names}{options}"


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _name_of(step_id: str) -> str:
    """How a step is called: `step 3` for `step-3`."""
    number = step_id.rpartition("-")[2]
    return f"step {number}" if number.isdecimal() else "step"


def _by(actor: str | None) -> str:
    return f" by {actor}" if actor else ""


def _tokens(usage: Usage) -> str:
    return f", {usage.input_tokens} tokens in, {usage.output_tokens} out" if usage.total_tokens else ""
