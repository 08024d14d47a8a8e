"""The routes of agents: which there are, and what is known of each without its code.

An agent's instructions are its owner's, and are not told.
"""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response

from durable.announcements import Announcement
from durable.views import ToolView

from ..dependencies import TheBackend

router = APIRouter(prefix="/agents")

Partial = Annotated[bool, Query(description="Without the schemas of tools.")]


@router.get("")
async def list_agents(backend: TheBackend, *, partial: Partial = False) -> Response:
    """All agents that were ever announced, by name."""
    announced = await backend.announcements.all()
    return as_json({each.name: {"id": each.name, **_told(each, partial=partial)} for each in announced})


@router.get("/{agent}")
async def get_agent(agent: str, backend: TheBackend) -> Response:
    """One of them."""
    return as_json(_told(await backend.announcements.get(agent), partial=False))


def as_json(value: Any) -> Response:
    """A value as a response."""
    return Response(orjson.dumps(value, option=orjson.OPT_UTC_Z), media_type="application/json")


def tool_of(tool: ToolView, *, partial: bool = False) -> dict[str, Any]:
    """A tool in this protocol's words: its schema is JSON as text."""
    told: dict[str, Any] = {"id": tool.name, "description": tool.description or ""}
    if not partial:
        told["inputSchema"] = orjson.dumps({"json": tool.parameters or {}}).decode()
    return {**told, "requireApproval": bool(tool.requires_approval)}


def _told(announced: Announcement, *, partial: bool) -> dict[str, Any]:
    view = announced.view
    provider, _, model = (view.model or "").rpartition(":")
    return {
        "name": view.name,
        "description": view.description or "",
        "instructions": "",
        "tools": {tool.name: tool_of(tool, partial=partial) for tool in view.tools},
        "agents": {},
        "workflows": {},
        "skills": [],
        "workspaceTools": [],
        "browserTools": [],
        "hasBrowser": False,
        "inputProcessors": [],
        "outputProcessors": [],
        "provider": provider,
        "modelId": model,
        "supportsMemory": True,
        "defaultOptions": {},
        "defaultGenerateOptionsLegacy": {},
        "defaultStreamOptionsLegacy": {},
        "source": "code",
        "hasDraft": False,
    }
