"""What this protocol has and this server has not: a plain answer, where silence would look like a fault."""

from __future__ import annotations

from fastapi import APIRouter

from .problems import Refused

router = APIRouter()
_ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@router.api_route("/agents/{agent}/{route:path}", methods=_ANY)
async def agents(agent: str, route: str) -> None:  # noqa: ARG001 - they tell that the path is one of an agent
    """Networks, legacy forms, and all that is no route."""
    raise Refused(404, "This server has no such route for agents: networks and legacy routes are not supported.")


@router.api_route("/workflows", methods=_ANY)
@router.api_route("/workflows/{route:path}", methods=_ANY)
async def workflows(route: str = "") -> None:  # noqa: ARG001 - as above
    """Workflows."""
    raise Refused(404, "This server has no workflows.")


@router.api_route("/{route:path}", methods=_ANY)
async def others(route: str) -> None:  # noqa: ARG001 - as above
    """Everything else."""
    raise Refused(404, "This server has no such route.")
