"""Serving the app in this process."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from durable.settings import Settings

from .app import create_app


def serve(settings: Settings, app: FastAPI | None = None) -> None:
    """Serve until told to stop. Blocks.

    Args:
        settings: Of this process.
        app: Default: the API.
    """
    uvicorn.run(
        app or create_app(settings),
        host=settings.host,
        port=settings.port,
        # Streams end by themselves when the server is told to stop; whatever still hangs then is cut.
        timeout_graceful_shutdown=5,
        server_header=False,
        date_header=False,
    )
