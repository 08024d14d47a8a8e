"""Paths of the API. Invariant: a name or an id stays one segment, whatever characters it has."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from durable.errors import InvalidRequest

TASKS: Final = "/v1/background-tasks"
"""All background tasks."""


def run_path(run_id: str) -> str:
    """A run's own path."""
    return f"/v1/runs/{segment(run_id)}"


def task_path(task_id: str) -> str:
    """A background task's own path."""
    return f"{TASKS}/{segment(task_id)}"


def call_path(run_id: str, tool_call_id: str) -> str:
    """The path of a tool call, without what is to be done with it."""
    return f"{run_path(run_id)}/tool-calls/{segment(tool_call_id)}"


def file_path(run_id: str, file_id: str) -> str:
    """The path of a file of a run."""
    return f"{run_path(run_id)}/files/{segment(file_id)}"


def segment(value: str) -> str:
    """One segment of a path; a name that would lead elsewhere is refused here."""
    if value in {"", ".", ".."}:
        raise InvalidRequest("A name or an id must not be empty, or made of dots.")
    try:
        return quote(value, safe="")
    except UnicodeEncodeError as error:
        raise InvalidRequest("A name or an id must be text that UTF-8 can hold.") from error
