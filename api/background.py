"""The door to background tasks: list, look, follow all of them, cancel, resume."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from durable.backend import Backend
from durable.decisions import Answer
from durable.views import TaskPage, TaskStatus, TaskView

from .bodies import CancelBody, ResumeBody, seconds_of
from .dependencies import TheBackend
from .documentation import CANCELLED_TASK, RESUMED_TASK, TASK, TASK_STREAM, TASKS, errors, example
from .links import linked_task
from .sse import HEARTBEAT_SECONDS, feed_stream

router = APIRouter(prefix="/v1/background-tasks", tags=["background tasks"])

Agent = Annotated[str, Query(max_length=128, description="Only tasks that this agent executes.")]
OfRun = Annotated[str, Query(max_length=128, description="Only what this run has started, its sub-agents included.")]


@router.get(
    "",
    response_model=TaskPage,
    summary="List background tasks",
    responses=example(200, TASKS) | errors(400, 503),
)
async def list_tasks(
    backend: TheBackend,
    status: Annotated[TaskStatus | None, Query(description="Only tasks in this state.")] = None,
    agent: Agent = "",
    run: OfRun = "",
    tool_name: Annotated[str, Query(alias="toolName", max_length=256, description="Only calls of this tool.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=160, description="`next` of the page before.")] = None,
) -> Response:
    """Newest first, without their results. Runs of sub-agents are among them with `run` only: else they are with all
    runs."""
    found, following = await backend.tasks.page(
        status=status, agent=agent, run=run, tool=tool_name, limit=limit, cursor=cursor
    )
    page = TaskPage(tasks=[linked_task(view) for view in found], next=following)
    return Response(page.model_dump_json(by_alias=True), media_type="application/json")


@router.get(
    "/stream",
    summary="Follow background tasks",
    response_class=StreamingResponse,
    responses=TASK_STREAM | errors(400, 404, 410, 503),
)
async def stream_tasks(
    backend: TheBackend,
    agent: Agent = "",
    run: OfRun = "",
    task: Annotated[str, Query(max_length=128, description="Only this task, to its end.")] = "",
) -> Response:
    """Server-Sent Events: the tasks that are being executed, as `background-task-running`, and from then on what
    becomes of tasks. There is no cursor: who comes back is told anew what is being executed."""
    if task and (await backend.tasks.get(task)).status.ended:
        return Response(status_code=204)
    return feed_stream(backend.feed.pages(agent=agent, run=run, task=task, silence=HEARTBEAT_SECONDS))


@router.get(
    "/{task_id}",
    response_model=TaskView,
    summary="Look at a background task",
    responses=example(200, TASK) | errors(404, 410, 503),
)
async def get_task(task_id: str, backend: TheBackend) -> Response:
    """Its state, and when it has ended its result or error. Its log is that of the run with the same id."""
    return await _look(backend, task_id)


@router.post(
    "/{task_id}/cancel",
    status_code=202,
    response_model=TaskView,
    summary="Cancel a background task",
    responses=example(202, CANCELLED_TASK)
    | {200: {**example(200, CANCELLED_TASK)[200], "description": "It is cancelled already."}}
    | errors(400, 404, 409, 410, 413, 503),
)
async def cancel_task(task_id: str, backend: TheBackend, body: CancelBody | None = None) -> Response:
    """The model is told that it was cancelled; its run goes on."""
    body = body or CancelBody()
    await backend.tasks.record(task_id)
    requested = await backend.cancel(task_id, reason=body.reason, actor=body.actor)
    return await _look(backend, task_id, 202 if requested else 200)


@router.post(
    "/{task_id}/resume",
    response_model=TaskView,
    summary="Resume a background task",
    responses=example(200, RESUMED_TASK) | errors(400, 404, 409, 410, 413, 503),
)
async def resume_task(task_id: str, body: ResumeBody, backend: TheBackend) -> Response:
    """Gives the call of a suspended task the data that it waits for. It can be approved or declined, too: by the links
    of the call that waits."""
    if (idle := seconds_of(body.until_idle)) is not None:
        await backend.wait_for_tasks(task_id, idle)
    answer = Answer(kind="resume", data=body.data, actor=body.actor)
    await backend.resume_task(task_id, answer, question=body.question_id)
    return await _look(backend, task_id)


async def _look(backend: Backend, task_id: str, status: int = 200) -> Response:
    view = linked_task(await backend.tasks.get(task_id))
    return Response(view.model_dump_json(by_alias=True), status, media_type="application/json")
