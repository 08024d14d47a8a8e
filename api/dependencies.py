"""What the routes are given."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from durable.backend import Backend


async def backend(request: Request) -> Backend:
    """The run layer of this process. Asynchronous, since FastAPI sends any other dependency through a thread."""
    found: Backend = request.app.state.backend
    return found


TheBackend = Annotated[Backend, Depends(backend)]
