"""Serving the app in this process."""

from __future__ import annotations

import copy
import logging
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from durable.agents import check_agents
from durable.settings import Settings

from .app import create_app

_PROBES: Final = frozenset({"/healthz", "/readyz"})


class Telling(logging.Filter):
    """Keeps out of the access log what tells nobody anything: questions after this process's health, as long as it is
    well, and if it is to be quiet all that went well."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__()
        self._quiet = quiet

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written. Its arguments are client, method, path, HTTP version and status."""
        match record.args:
            case (_, _, str(path), _, int(status)):
                return status >= 400 or not (self._quiet or path in _PROBES)
            case _:
                return True


def _log_config(*, quiet: bool) -> dict[str, Any]:
    """Uvicorn's own, with the filter."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"telling": {"()": Telling, "quiet": quiet}}
    config["loggers"]["uvicorn.access"]["filters"] = ["telling"]
    return config


def serve(settings: Settings, app: FastAPI | None = None, *, quiet: bool = False) -> None:
    """Serve until told to stop. Blocks.

    Args:
        settings: Of this process.
        app: Default: the API.
        quiet: Log only requests that failed.

    Raises:
        ConfigurationError: The agents that it shall host can't be imported.
    """
    check_agents(settings.agents)
    uvicorn.run(
        app or create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=_log_config(quiet=quiet),
        # Streams end by themselves when the server is told to stop; whatever still hangs then is cut.
        timeout_graceful_shutdown=5,
        server_header=False,
        date_header=False,
    )
