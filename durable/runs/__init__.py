"""What a run is, and the runs of a deployment."""

from durable.runs.collection import WAKE_GRACE, Runs, cancelled_chunks
from durable.runs.record import (
    BUDGET_REACHED,
    RETRYING,
    NewRun,
    RunRecord,
    RunRequest,
    check_policy,
    check_run_id,
    new_run_id,
)

__all__ = [
    "BUDGET_REACHED",
    "NewRun",
    "RETRYING",
    "RunRecord",
    "RunRequest",
    "Runs",
    "WAKE_GRACE",
    "cancelled_chunks",
    "check_policy",
    "check_run_id",
    "new_run_id",
]
