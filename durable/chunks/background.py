"""Chunks of background tasks, in the log of the run that started them."""

from __future__ import annotations

from typing import Final, Literal

from durable.chunks.base import Chunk, Json, Wire

TASK_ENDS: Final = frozenset({"background-task-completed", "background-task-failed", "background-task-cancelled"})
"""The types of the chunks that tell of the end of a task."""


class TaskPayload(Wire):
    """Names the task, and the call that it makes. A sub-agent's task is a run: `taskId` is its id."""

    task_id: str
    tool_name: str
    tool_call_id: str


class BackgroundTaskStarted(Chunk):
    """A call goes on in the background, as a task of its own."""

    type: Literal["background-task-started"] = "background-task-started"
    payload: TaskPayload


class TaskOfRunPayload(TaskPayload):
    """`runId` is the run that started the task; moments are ISO 8601."""

    run_id: str
    agent_id: str


class TaskRunningPayload(TaskOfRunPayload):
    """`args` are the call's."""

    started_at: str
    args: Json = None


class BackgroundTaskRunning(Chunk):
    """A worker has begun with the task."""

    type: Literal["background-task-running"] = "background-task-running"
    payload: TaskRunningPayload


class BackgroundTaskResumed(Chunk):
    """The task goes on after it was suspended."""

    type: Literal["background-task-resumed"] = "background-task-resumed"
    payload: TaskRunningPayload


class TaskProgressPayload(Wire):
    """Tasks that the run waits for, and for how long: `elapsedMs` counts from the moment when it began to."""

    task_ids: list[str]
    running_count: int
    elapsed_ms: int


class BackgroundTaskProgress(Chunk):
    """The run has nothing left to do but to wait for its tasks."""

    type: Literal["background-task-progress"] = "background-task-progress"
    payload: TaskProgressPayload


class TaskOutputPayload(TaskOfRunPayload):
    """`payload` is the `tool-output` chunk that the tool wrote, `{type, payload}`."""

    payload: Json


class BackgroundTaskOutput(Chunk):
    """The task's tool speaks. Not all that it says is here: its own log has it."""

    type: Literal["background-task-output"] = "background-task-output"
    payload: TaskOutputPayload


class TaskCompletedPayload(TaskOfRunPayload):
    """`isError` when the tool told the model that it failed."""

    result: Json
    completed_at: str
    is_error: bool | None = None


class BackgroundTaskCompleted(Chunk):
    """The task has ended with a value."""

    type: Literal["background-task-completed"] = "background-task-completed"
    payload: TaskCompletedPayload


class TaskError(Wire):
    """Why a task failed."""

    code: str
    message: str


class TaskFailedPayload(TaskOfRunPayload):
    """Why there is no value. A task that took too long has the code `tool_timeout`."""

    error: TaskError
    completed_at: str


class BackgroundTaskFailed(Chunk):
    """The task has ended without a value."""

    type: Literal["background-task-failed"] = "background-task-failed"
    payload: TaskFailedPayload


class TaskCancelledPayload(TaskOfRunPayload):
    """Nothing more is known."""

    completed_at: str


class BackgroundTaskCancelled(Chunk):
    """The task was cancelled."""

    type: Literal["background-task-cancelled"] = "background-task-cancelled"
    payload: TaskCancelledPayload


class TaskSuspendedPayload(TaskOfRunPayload):
    """`suspendPayload.pending` are the task's calls that wait for an answer, to be given to the run `taskId`."""

    args: Json = None
    suspend_payload: Json = None
    suspended_at: str


class BackgroundTaskSuspended(Chunk):
    """The task waits for an answer from outside."""

    type: Literal["background-task-suspended"] = "background-task-suspended"
    payload: TaskSuspendedPayload
