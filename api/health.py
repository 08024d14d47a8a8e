"""Whether this process is up, and whether it can work."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from .dependencies import TheBackend
from .documentation import errors

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is this process up?")
async def healthz() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can this process work?", responses=errors(503))
async def readyz(backend: TheBackend) -> dict[str, Any]:
    """Redis answers. Also tells how many workers live."""
    await backend.store.ping()
    return {"status": "ok", "workers": len(await backend.announcements.workers())}
