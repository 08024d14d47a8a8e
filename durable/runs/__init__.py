"""What a run is, and the runs of a deployment."""

from durable.runs.collection import WAKE_GRACE, Runs, cancelled_chunks
from durable.runs.record import NewRun, RunRecord, RunRequest, check_run_id, new_run_id

__all__ = ["WAKE_GRACE", "NewRun", "RunRecord", "RunRequest", "Runs", "cancelled_chunks", "check_run_id", "new_run_id"]
