"""The door for budgets: raising one that a run has used up."""

from __future__ import annotations

from fastapi import APIRouter, Response

from durable.views import RunView

from .bodies import RaiseBody
from .dependencies import TheBackend
from .documentation import NEW_RUN, errors, example
from .runs import as_json, look

router = APIRouter(prefix="/v1", tags=["runs"])


@router.post(
    "/runs/{run_id}/resume",
    response_model=RunView,
    summary="Raise a budget that a run has used up",
    responses=example(200, {**NEW_RUN, "attempt": 1, "lastSeq": 12, "budget": {"maxTokens": 40_000}})
    | errors(400, 404, 409, 410, 413, 503),
)
async def raise_budget(run_id: str, body: RaiseBody, backend: TheBackend) -> Response:
    """For a run that is suspended with the reason `budget_reached`: it goes on. What is given is what the run may use
    in all from now on, so it has to be more than it has used. The same again changes nothing."""
    await backend.raise_budget(run_id, body)
    return as_json(await look(backend, run_id))
