"""Which pages of other origins may call the API from a browser: those that the deployment names, none by default."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_HEADERS: Final = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Mastra-Client-Type")
"""What our own clients, a browser's `EventSource` and Mastra's client send."""


def allow_origins(app: FastAPI, origins: str) -> None:
    """Let pages of these origins call every route and read every answer, errors included.

    Args:
        app: The app; this has to be the last middleware that it is given, so that it is around all others.
        origins: `https://…,…`, or `*` for all; nothing for none.
    """
    named = [origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()]
    if named:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=named,
            allow_methods=["GET", "POST"],
            allow_headers=_HEADERS,
            expose_headers=["Location", "Retry-After"],
            max_age=3600,
        )
