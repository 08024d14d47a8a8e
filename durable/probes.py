"""Named points on the way of a run, where tests may stop a process as a crash would.

The points stand around everything that a crash can tear apart. In production a probe does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Point(StrEnum):
    """A place between two things that may not both happen."""

    CLAIM_BEFORE = "claim.before"
    CLAIM_AFTER = "claim.after"
    MODEL_BEFORE = "model.before"
    MODEL_AFTER = "model.after"
    APPEND_BEFORE = "append.before"
    APPEND_AFTER = "append.after"
    CHECKPOINT_BEFORE = "checkpoint.before"
    CHECKPOINT_AFTER = "checkpoint.after"
    TOOL_START_BEFORE = "tool-start.before"
    TOOL_START_AFTER = "tool-start.after"
    TOOL_END_BEFORE = "tool-end.before"
    TOOL_END_AFTER = "tool-end.after"
    ANNOUNCE_BEFORE = "announce.before"
    ANNOUNCE_AFTER = "announce.after"
    DELEGATE_BEFORE = "delegate.before"
    DELEGATE_AFTER = "delegate.after"
    DELEGATED_BEFORE = "delegated.before"
    DELEGATED_AFTER = "delegated.after"
    MIRROR_BEFORE = "mirror.before"
    MIRROR_AFTER = "mirror.after"
    SUSPEND_BEFORE = "suspend.before"
    SUSPEND_AFTER = "suspend.after"
    FINISH_BEFORE = "finish.before"
    FINISH_AFTER = "finish.after"
    RELEASE_BEFORE = "release.before"
    RELEASE_AFTER = "release.after"


Probe = Callable[[Point], None]


def silent(_: Point) -> None:
    """Let the run pass."""
