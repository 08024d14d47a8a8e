"""How an attempt ends its run: what its record, its log, its thread and its parent are told of that.

Nothing is written here: an ending is a value, and is written in one step.
"""

from __future__ import annotations

import logging
from typing import Any

import orjson
from pydantic_core import to_json

from durable import ledger
from durable.chunks import AbortPayload, Chunk, Error, ErrorInfo, ErrorPayload, FinishReason, ObjectResult
from durable.conversation import Conversation
from durable.definition import AgentDefinition
from durable.errors import ToolResultInvalid
from durable.execution.turn import CLIENT_TOOLS, MISSING, Turn, TurnEnd, last_text
from durable.outputs import output_fields, output_type_of
from durable.runs import BUDGET_REACHED, RunRecord, RunRequest, cancelled_chunks
from durable.runs.reports import Report
from durable.threads import exchange
from durable.translate import to_json_value
from durable.translate.steps import usage_of
from durable.views import RunStatus
from durable.writer import Ending

log = logging.getLogger(__name__)


class Endings:
    """The endings that one attempt may come to: each with the last chunks of the log.

    Args:
        definition: The agent.
        record: The run.
        request: What it is asked to do.
        given: What it was given.
        turn: What it has done.
        parent: Words what the run is told that has started this one, if one has.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        record: RunRecord,
        request: RunRequest,
        given: Conversation,
        turn: Turn,
        parent: Report | None,
    ) -> None:
        self._request = request
        self._definition = definition
        self._run_id = record.run_id
        self._thread_id = record.thread_id
        self._given = given
        self._turn = turn
        self._parent = parent

    def completed(self, end: TurnEnd, *, withheld: bool = False) -> tuple[Ending, list[Chunk]]:
        """The turn has ended; `withheld` when nobody has judged what the model said last."""
        if isinstance(end.output, ledger.Outcome):
            return self._made(end.output)
        text, extra = "" if withheld else last_text(self._turn.messages), {}
        told: list[Chunk] = []
        fields: dict[str, bytes | str] = {} if end.reason is None else {"reason": end.reason}
        if end.tripped is not None:
            fields = {"reason": "tripwire", "tripwire": orjson.dumps(end.tripped.told)}
            fields.update(self._report(ledger.Outcome(failed="A guardrail has stopped it.")))
            return self._ending(RunStatus.COMPLETED, fields), [self._last("tripwire")]
        budget = None if end.budget is None else end.budget.budget
        if end.output is MISSING:
            limit = "max_steps" if budget is None else BUDGET_REACHED
            fields["reason"] = CLIENT_TOOLS if end.reason == CLIENT_TOOLS else limit
            fields["output"] = orjson.dumps(to_json_value(text))
        else:
            if isinstance(end.output, str):
                text = end.output
            else:
                extra["output"] = end.output
                told = [ObjectResult(object=to_json_value(end.output))]
            fields.update(output_fields(output_type_of(self._definition.agent, self._request), end.output))
        finish = self._turn.translator.finish(
            reason="tool-calls" if end.reason == CLIENT_TOOLS else None,
            usage=self._turn.usage,
            text=text,
            max_steps_reached=end.limited,
            budget_reached=budget,
            **extra,
        )
        outcome = ledger.Outcome(value=to_json_value(extra.get("output", text)))
        if self._parent is not None and len(ledger.encode(outcome)) > self._turn.record.max_result_bytes:
            return self.failed(self._too_much())
        fields.update(self._report(outcome))
        return self._ending(RunStatus.COMPLETED, fields, end.heard), [*told, finish.model_copy(update={"final": True})]

    def failed(self, error: ErrorInfo, outcome: ledger.Outcome | None = None) -> tuple[Ending, list[Chunk]]:
        """It has failed; of a background task, `outcome` is what the model is told of that."""
        chunks: list[Chunk] = [Error(payload=ErrorPayload(error=error)), self._last("error")]
        fields = {"error": error.model_dump_json(exclude_none=True), **self._report(outcome, error)}
        return self._ending(RunStatus.FAILED, fields), chunks

    def cancelled(self, asked: AbortPayload) -> tuple[Ending, list[Chunk]]:
        """It was cancelled; `asked` is what was said then."""
        abort, _ = cancelled_chunks(asked)
        return self._ending(RunStatus.CANCELLED, self._report(None)), [abort, self._last("abort")]

    def said(self, *, whole: bool) -> dict[str, bytes]:
        """What the run adds to its thread, as a field of its record."""
        if self._thread_id is None:
            return {}
        try:
            return {"said": exchange(self._run_id, self._given, self._turn.messages, whole=whole)}
        except Exception as error:  # noqa: BLE001 - as with the last checkpoint
            log.warning("run %s: its thread can't have its messages: %s", self._run_id, type(error).__name__)
            return {}

    def _made(self, outcome: ledger.Outcome) -> tuple[Ending, list[Chunk]]:
        """The end of a background task: its call has come to something."""
        message = outcome.told if outcome.raised is None else outcome.raised.message
        if message is not None:
            default = "tool_denied" if outcome.denied is not None else "tool_failed"
            return self.failed(ErrorInfo(code=self._turn.record.code or default, message=message), outcome)
        value = to_json_value(outcome.returned)
        finish = self._turn.translator.finish(reason="stop", usage=self._turn.usage, text="", output=value)
        fields = {"output": to_json(value), **self._report(outcome)}
        return self._ending(RunStatus.COMPLETED, fields), [finish.model_copy(update={"final": True})]

    def _report(self, outcome: ledger.Outcome | None, error: ErrorInfo | None = None) -> dict[str, bytes]:
        """What the run that has started this one is told of its end, as fields of the record."""
        if self._parent is None:
            return {}
        usage = usage_of(self._turn.usage)
        if error is not None:
            return self._parent.failed(error, outcome, usage)
        return self._parent.cancelled(usage) if outcome is None else self._parent.completed(outcome, usage)

    def _too_much(self) -> ErrorInfo:
        """Why the run of an agent fails that another one has asked: its output is the result of a call."""
        name, most = self._definition.name, self._turn.record.max_result_bytes
        return ErrorInfo(code=ToolResultInvalid.code, message=f"The agent {name!r} returned more than {most} bytes.")

    def _last(self, reason: FinishReason) -> Chunk:
        finish = self._turn.translator.finish(reason=reason, usage=self._turn.usage, text="")
        return finish.model_copy(update={"final": True})

    def _ending(self, status: RunStatus, fields: dict[str, Any], heard: int | None = None) -> Ending:
        usage = usage_of(self._turn.usage).model_dump_json(by_alias=True, exclude_none=True)
        try:
            messages = self._turn.stored.encode_end(self._turn.messages)
        except Exception as error:  # noqa: BLE001 - the run ends all the same, with the conversation of its checkpoints
            log.warning("run %s: its last messages can't be stored: %s", self._run_id, type(error).__name__)
            messages = b""
        fields = {"usage": usage, **fields, **self.said(whole=status is not RunStatus.FAILED)}
        return Ending(status, messages, fields, closed=status is RunStatus.COMPLETED, heard=heard)
