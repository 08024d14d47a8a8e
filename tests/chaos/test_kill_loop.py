"""The kill loop in its short form: half a minute of faults, on real workers, an API and a Redis."""

from __future__ import annotations

import os
from typing import Final

import pytest

from tests.chaos.kill_loop import KillLoop, Plan

SEED: Final = int(os.environ.get("SEED", "1"))
FLOOR: Final = {
    "runs": 35,
    "kills": 12,
    "takeovers": 15,
    "zombies": 2,
    "writes refused": 1,
    "redis kills": 2,
    "API restarts": 1,
    "observers": 45,
    "reconnects": 30,
    "decisions": 20,
    "answers refused": 5,
    "tasks": 10,
    "task takeovers": 1,
}


@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_whatever_is_killed_every_run_ends_and_its_log_is_one() -> None:
    async with KillLoop(Plan(seconds=28, seed=SEED, stuck=30, floor=FLOOR)) as loop:
        verdict = await loop.run()
    assert verdict.faults == []
