"""What a run tells the run that has started it: chunks for that one's log, and what the call came to.

They are written in the same script as the change that they tell of, so that an end is told once, and never lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from durable import exact_json, ledger
from durable.chunks import (
    BackgroundTaskCancelled,
    BackgroundTaskCompleted,
    BackgroundTaskFailed,
    BackgroundTaskOutput,
    BackgroundTaskResumed,
    BackgroundTaskRunning,
    BackgroundTaskSuspended,
    Chunk,
    TaskCancelledPayload,
    TaskCompletedPayload,
    TaskError,
    TaskFailedPayload,
    TaskOutputPayload,
    TaskRunningPayload,
    TaskSuspendedPayload,
    Usage,
    encode_body,
)
from durable.chunks.base import ErrorInfo, Json
from durable.runs.record import RunRecord
from durable.translate import to_json_value

CANCELLED = "The background task was cancelled."


class Report:
    """What one run tells its parent.

    Args:
        record: The run.
        args: What its call was made with.
    """

    def __init__(self, record: RunRecord, args: Json = None) -> None:
        _, _, call = record.fields["parentCall"].decode().split(" ", 2)
        self._args = args
        self._names: dict[str, Any] = {
            "task_id": record.run_id,
            "tool_name": record.fields["toolName"].decode(),
            "tool_call_id": call,
            "run_id": record.parent_run_id,
            "agent_id": record.agent,
        }

    def running(self, *, again: bool) -> Chunk:
        """It is executed; `again` after it was suspended."""
        payload = TaskRunningPayload(**self._names, started_at=_now(), args=self._args)
        return BackgroundTaskResumed(payload=payload) if again else BackgroundTaskRunning(payload=payload)

    def output(self, chunk: Chunk) -> Chunk:
        """Its tool speaks."""
        said = chunk.model_dump(mode="json", by_alias=True, exclude_unset=True, include={"type", "payload"})
        return BackgroundTaskOutput(payload=TaskOutputPayload(**self._names, payload=said))

    def suspended(self, pending: Sequence[Json]) -> dict[str, bytes]:
        """It waits. Returns fields of its record."""
        payload = TaskSuspendedPayload(
            **self._names, args=self._args, suspend_payload={"pending": list(pending)}, suspended_at=_now()
        )
        return {"told": encode_body(BackgroundTaskSuspended(payload=payload))}

    def completed(self, outcome: ledger.Outcome, usage: Usage | None = None) -> dict[str, bytes]:
        """It has ended, and this is what the model is told. Returns fields of its record."""
        told = outcome.told
        value = outcome.returned if told is None else told
        payload = TaskCompletedPayload(
            **self._names,
            result=to_json_value(value),
            completed_at=_now(),
            **({} if told is None else {"is_error": True}),
        )
        return self._ended(BackgroundTaskCompleted(payload=payload), outcome, usage)

    def failed(
        self, error: ErrorInfo, outcome: ledger.Outcome | None = None, usage: Usage | None = None
    ) -> dict[str, bytes]:
        """It has failed; `outcome` is what the model is told of that. Returns fields of its record."""
        told = TaskError(code=error.code, message=error.message)
        payload = TaskFailedPayload(**self._names, error=told, completed_at=_now())
        raised = ledger.Raised(error.code, error.message, error.name or "ToolFailure")
        return self._ended(BackgroundTaskFailed(payload=payload), outcome or ledger.Outcome(raised=raised), usage)

    def cancelled(self, usage: Usage | None = None) -> dict[str, bytes]:
        """It was cancelled. Returns fields of its record."""
        payload = TaskCancelledPayload(**self._names, completed_at=_now())
        return self._ended(BackgroundTaskCancelled(payload=payload), ledger.Outcome(failed=CANCELLED), usage)

    def _ended(self, chunk: Chunk, outcome: ledger.Outcome, usage: Usage | None) -> dict[str, bytes]:
        if outcome.denied is not None:
            outcome = ledger.Outcome(failed=outcome.denied)
        entry: dict[str, Json] = {"entry": exact_json.loads(ledger.encode(outcome))}
        if usage is not None:
            entry["usage"] = usage.model_dump(mode="json", exclude_none=True)
        return {"told": encode_body(chunk), "outcome": exact_json.dumps({"kind": "outcome", "data": entry})}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
