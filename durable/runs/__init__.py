"""What a run is, and the runs of a deployment."""

from durable.runs.collection import WAKE_GRACE, Runs, cancelled_chunks
from durable.runs.record import (
    BACKGROUND,
    BUDGET_REACHED,
    RETRYING,
    TASK,
    THREAD_BUSY,
    NewRun,
    OnBusy,
    Parent,
    RunRecord,
    RunRequest,
    ToolCallRequest,
    check_policy,
    check_run_id,
    check_terms,
    check_thread_id,
    new_run_id,
    read_until_idle,
)
from durable.runs.terms import ClientTool, OnClientTools, OutputMode

__all__ = [
    "BACKGROUND",
    "BUDGET_REACHED",
    "ClientTool",
    "NewRun",
    "OnBusy",
    "OnClientTools",
    "OutputMode",
    "Parent",
    "TASK",
    "ToolCallRequest",
    "RETRYING",
    "RunRecord",
    "RunRequest",
    "Runs",
    "THREAD_BUSY",
    "WAKE_GRACE",
    "cancelled_chunks",
    "check_policy",
    "check_run_id",
    "check_terms",
    "check_thread_id",
    "new_run_id",
    "read_until_idle",
]
