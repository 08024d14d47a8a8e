"""The programs' agent, in a worker that is broken on purpose as `CHAOS_SABOTAGE` says."""

from __future__ import annotations

import os

from tests.chaos import sabotage
from tests.chaos.programs import program

__all__ = ["program"]

sabotage.apply(os.environ.get("CHAOS_SABOTAGE", ""))
