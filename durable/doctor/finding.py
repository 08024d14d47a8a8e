"""What the doctor tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """Something that must not be.

    Attributes:
        run_id: The run.
        check: Which rule is broken, for programs.
        message: What is so instead. Equal as long as nothing changes.
    """

    run_id: str
    check: str
    message: str
