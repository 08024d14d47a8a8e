"""The routes of runs: begin one, follow it, answer its calls."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/agents/{agent}")
