"""What the routes are given."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from durable.backend import Backend

from .closing import Closing


def backend(request: Request) -> Backend:
    """The run layer of this process."""
    found: Backend = request.app.state.backend
    return found


def closing(request: Request) -> Closing:
    """Whether this server is about to stop."""
    found: Closing = request.app.state.closing
    return found


TheBackend = Annotated[Backend, Depends(backend)]
TheClosing = Annotated[Closing, Depends(closing)]
