"""Chance with a seed, so that what went wrong can be made to go wrong again."""

from __future__ import annotations

import random


def seeded(seed: int | str) -> random.Random:
    """A source of chance; the same seed gives the same."""
    return random.Random(seed)
