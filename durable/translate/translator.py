"""The translator of one attempt at a run: it frames the steps, and hands each event to whom it concerns.

Invariant: a call has one `tool-call` and one outcome a step, whoever writes them. Events and parts that this version
does not know are passed over; nothing here raises because of what a model or a tool said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC
from typing import Any

from pydantic_ai.messages import (
    CustomEvent,
    FinalResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelResponse,
    OutputToolCallEvent,
    OutputToolResultEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    ToolCallPart,
    UnknownCustomEvent,
)
from pydantic_ai.usage import RunUsage

from durable.chunks import (
    Chunk,
    Finish,
    FinishPayload,
    FinishReason,
    ResponseMetadata,
    ResponseMetadataPayload,
    StepFinish,
    StepFinishPayload,
    StepResult,
    StepStart,
    StepStartPayload,
    ToolOutput,
    ToolOutputPayload,
    TurnOutput,
    VoidRange,
)
from durable.translate.objects import Objects, Shape
from durable.translate.outcomes import call_chunk, outcome_chunk
from durable.translate.parts import ResponseParts
from durable.translate.standing import Standing
from durable.translate.steps import Step, usage_of
from durable.translate.values import to_json_value

_MISSING: Any = object()


class Translator:
    """Turns what `agent.iter()` yields into chunks, in the order in which it is told.

    A step is: `begin_step`, the model's events, `response`, the tools' events, `end_step`. An attempt that goes on
    from a checkpoint calls `resume` first; if the checkpoint ends with a response, its step is open already.
    """

    def __init__(self, *, attempt: int = 1, clock: Callable[[], float] = time.time) -> None:
        """Make the translator of one attempt.

        Args:
            attempt: Number of the attempt, from 1. It is part of each part's id, so that two attempts at one
                response never share an id.
            clock: Seconds since 1970, for `startedAt`.
        """
        self._attempt = attempt
        self._clock = clock
        self._ids = 0
        self._parts = ResponseParts(self._next_id)
        self._standing = Standing()
        self._objects = Objects(Shape())
        self._steps: list[Step] = []
        self._current: Step | None = None
        self._message_id = ""
        self._called: set[str] = set()
        self._outputs: set[str] = set()
        self._settled: set[str] = set()

    @property
    def reason(self) -> FinishReason:
        """Why the model stopped last; `unknown` before it answered."""
        last = self._last_step()
        return last.reason if last else "unknown"

    def expect(self, shape: Shape) -> None:
        """Tell the output while it streams; called once, before any event."""
        self._objects = Objects(shape)

    def resume(self, messages: Iterable[ModelMessage], *, message_id: str) -> None:
        """Take over from a checkpoint. Tells nothing; the log has it all.

        Args:
            messages: The run's own messages so far, without the history that it was given.
            message_id: Of the last step, which is open if the messages end with its response.
        """
        self._message_id = message_id
        for message in messages:
            if isinstance(message, ModelResponse):
                self._keep_step()
                self._current = Step.of(message)
            elif self._current is not None:
                for part in message.parts:
                    if part.part_kind in ("tool-return", "retry-prompt") and getattr(part, "tool_name", None):
                        self._current.settle(outcome_chunk(part))
                self._keep_step()

    def called(self, tool_call_id: str) -> None:
        """The open step's log has the `tool-call` of this call already."""
        self._called.add(tool_call_id)

    def recorded(self, tool_call_id: str) -> None:
        """The outcome of this call of the open step is, or will be, written by somebody else."""
        self._settled.add(tool_call_id)

    def has_outcome(self, tool_call_id: str) -> bool:
        """Whether the outcome of this call of the open step is, or will be, written."""
        return tool_call_id in self._settled

    def begin_step(self, step: int, message_id: str, void: VoidRange | None = None) -> list[Chunk]:
        """A model request begins.

        Args:
            step: Number of the step within the run.
            message_id: Of the message that the model is about to write.
            void: The seqs of a torn response that this one replaces.
        """
        self._keep_step()
        self._parts = ResponseParts(self._next_id)
        self._standing = Standing()
        self._objects.begin()
        self._message_id = message_id
        self._called.clear()
        self._outputs.clear()
        self._settled.clear()
        fields: dict[str, Any] = {
            "step_id": f"step-{step}",
            "message_id": message_id,
            "started_at": int(self._clock() * 1000),
            "request": {},
        }
        if void is not None:
            fields["void"] = void
        return [StepStart(payload=StepStartPayload(**fields))]

    def begins_anew(self, event: object) -> bool:
        """Whether the event begins the response anew that is under way: `begin_again` has to come before it."""
        return self._standing.begins_anew(event)

    def begin_again(self, step: int, message_id: str, void: VoidRange, event: PartStartEvent) -> list[Chunk]:
        """The same model request, anew: what stands of the response is told again.

        Args:
            step: Number of the step within the run.
            message_id: Of the message that the model writes.
            void: The seqs of all that was said of it so far.
            event: The event that begins it anew.
        """
        standing = list(self._standing.before(event.index))
        chunks = self.begin_step(step, message_id, void)
        for index, part in standing:
            chunks += self.event(PartStartEvent(index=index, part=part))
            chunks += self.event(PartEndEvent(index=index, part=part))
        return chunks

    def event(self, event: object) -> list[Chunk]:
        """An event of a model request or of its tools. What this version does not know gives no chunk."""
        self._standing.take(event)
        match event:
            case PartDeltaEvent():
                return self._parts.delta(event.index, event.delta) + self._objects.event(event)
            case PartStartEvent():
                return self._parts.start(event.index, event.part) + self._objects.event(event)
            case PartEndEvent():
                return self._objects.event(event) + self._parts.end(event.index, event.part)
            case FinalResultEvent():
                return self._objects.event(event)
            case FunctionToolCallEvent() | OutputToolCallEvent():
                if isinstance(event, OutputToolCallEvent):
                    self._outputs.add(event.part.tool_call_id)
                return self._call(event.part)
            case FunctionToolResultEvent() | OutputToolResultEvent():
                return self._outcome(event)
            case CustomEvent():
                return self._custom(event)
            case _:
                return []

    def response(self, response: ModelResponse) -> list[Chunk]:
        """The model's response is complete: end what is still open, and tell what the provider says of it."""
        self._current = Step.of(response)
        chunks = self._parts.close(response.parts) + self._objects.end()
        timestamp = response.timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"timestamp": timestamp}
        if response.provider_response_id:
            fields["id"] = response.provider_response_id
        if response.model_name:
            fields["model_id"] = response.model_name
        return [*chunks, ResponseMetadata(payload=ResponseMetadataPayload(**fields))]

    def end_step(self, *, is_continued: bool) -> list[Chunk]:
        """The step has ended.

        Args:
            is_continued: True when another step follows.
        """
        step = self._current or Step()
        self._keep_step()
        payload = StepFinishPayload(
            message_id=self._message_id,
            step_result=step.result(is_continued=is_continued),
            output=step.output(),
            metadata={},
        )
        return [StepFinish(payload=payload)]

    @property
    def output_calls(self) -> list[str]:
        """The calls of the last step whose arguments are the output."""
        return sorted(self._outputs)

    def withhold(self) -> None:
        """The last step's output is not to be given out: `finish` does not tell it."""
        last = self._last_step()
        if last is not None:
            last.withhold(self._outputs)

    def finish(
        self,
        *,
        reason: FinishReason | None = None,
        usage: RunUsage,
        text: str,
        output: object = _MISSING,
        max_steps_reached: bool = False,
        budget_reached: str | None = None,
    ) -> Finish:
        """The turn has ended.

        Args:
            reason: Why; by default as the last step.
            usage: Of the whole run.
            text: The final text, empty if there is none.
            output: The validated output when it is not text.
            max_steps_reached: True when the step limit ended the turn.
            budget_reached: The budget that ended the turn, if one did.
        """
        self._keep_step()
        last = self._last_step()
        result: dict[str, Any] = {"reason": reason or self.reason, "is_continued": False}
        if last and last.raw_reason and last.reason == result["reason"]:
            result["raw_reason"] = last.raw_reason
        turn: dict[str, Any] = {"text": text, "usage": usage_of(usage)}
        turn["steps"] = [step.summary() for step in self._steps]
        if output is not _MISSING:
            turn["object"] = to_json_value(output)
        fields: dict[str, Any] = {"output": TurnOutput(**turn), "step_result": StepResult(**result)}
        if max_steps_reached:
            fields["max_steps_reached"] = True
        if budget_reached is not None:
            fields["budget_reached"] = budget_reached
        return Finish(payload=FinishPayload(**fields))

    def _call(self, part: ToolCallPart) -> list[Chunk]:
        if part.tool_call_id in self._called:
            return []
        self._called.add(part.tool_call_id)
        return [call_chunk(part)]

    def _outcome(self, event: FunctionToolResultEvent | OutputToolResultEvent) -> list[Chunk]:
        outcome = outcome_chunk(event.part)
        if self._current is not None:
            self._current.settle(outcome)
        call = event.part.tool_call_id
        if call in self._settled:
            return []
        self._settled.add(call)
        return [outcome]

    def _custom(self, event: CustomEvent) -> list[Chunk]:
        """What a tool says while it runs. Events that are not for frontends, or not of a tool, are kept inside."""
        if not event.tool_call_id or isinstance(event, UnknownCustomEvent) or not getattr(event, "ui", True):
            return []
        try:
            value = event.to_payload()
        except Exception:  # noqa: BLE001 - the user's own code may raise anything, and progress is not worth a run
            return []
        fields: dict[str, Any] = {"output": to_json_value(value), "tool_call_id": event.tool_call_id}
        if event.tool_name:
            fields["tool_name"] = event.tool_name
        return [ToolOutput(payload=ToolOutputPayload(**fields), metadata={"event": event.name})]

    def _keep_step(self) -> None:
        if self._current is not None:
            self._steps.append(self._current)
            self._current = None

    def _last_step(self) -> Step | None:
        return self._current or (self._steps[-1] if self._steps else None)

    def _next_id(self) -> str:
        self._ids += 1
        return f"a{self._attempt}p{self._ids}"
