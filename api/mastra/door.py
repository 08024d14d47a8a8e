"""The door put together: an app of its own, mounted under `/api`, since its errors have a shape of their own.

It has no state: the run layer of the process is that of the app that mounts it.
"""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from starlette.datastructures import State

from . import agents, background, decisions, problems, refused, runs, signals, suspended, threads, tools

MODULES: Final = (agents, tools, runs, decisions, suspended, threads, signals, background, refused)
"""One for each subject. `refused` is the last: it answers what no other does."""


def create_door(state: State) -> FastAPI:
    """Make the app.

    Args:
        state: That of the app that mounts it, with the `backend` of the process.
    """
    door = FastAPI(openapi_url=None, redirect_slashes=False)
    door.state = state
    problems.install(door)
    for module in MODULES:
        door.include_router(module.router)
    return door
