"""The ids of Celery tasks: the run's id for its first attempt, and `<run>.<attempt>` after it."""

from __future__ import annotations


def run_of_task(task_id: str) -> str:
    """The run that a task executes. Run ids have no dot."""
    return task_id.partition(".")[0]
