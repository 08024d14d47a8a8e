"""The door for agents: which there are."""

from __future__ import annotations

from fastapi import APIRouter, Response

from durable.views import AgentPage

from .dependencies import TheBackend
from .documentation import AGENTS, errors, example

router = APIRouter(prefix="/v1", tags=["agents"])


@router.get("/agents", response_model=AgentPage, summary="List agents", responses=example(200, AGENTS) | errors(503))
async def list_agents(backend: TheBackend) -> Response:
    """All agents that were ever announced, with the number of live workers that serve each."""
    announced = await backend.announcements.all()
    live = await backend.announcements.workers()
    views = [
        item.view.model_copy(update={"workers": sum(worker.serves(item.name, item.queue) for worker in live)})
        for item in announced
    ]
    return Response(AgentPage(agents=views).model_dump_json(by_alias=True), media_type="application/json")
