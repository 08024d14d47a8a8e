"""The door for people in the loop: the calls that wait for an answer, and the answers.

A call's id is the model's own and may hold any character, "/" included. In a path it is percent-encoded; one that is
not finds its call as well, as the verb is what follows the last "/". Which of the questions about the call is answered
stands in the query of a link, or in the body.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from starlette.convertors import Convertor, register_url_convertor

from durable.backend import Backend
from durable.decisions import Answer
from durable.errors import InvalidRequest
from durable.views import InboxPage, RunView

from .bodies import AnswerBody, ApproveBody, DeclineBody, ResumeBody, seconds_of
from .dependencies import TheBackend
from .documentation import INBOX, decided, errors, example
from .links import with_call_links
from .runs import as_json, look

router = APIRouter(prefix="/v1", tags=["people in the loop"])


class _AnyText(Convertor[str]):
    """A part of a path with whatever characters: `path` of Starlette does not match a line feed."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _AnyText())
_CALL: Final = "/runs/{run_id}/tool-calls/{call:text}"
Asked = Annotated[
    str | None, Query(alias="questionId", description="What is answered, as in the links of a call that waits.")
]


@router.post(
    f"{_CALL}/approve",
    response_model=RunView,
    summary="Approve a tool call",
    responses=example(200, decided("approve")) | errors(400, 404, 409, 410, 413, 503),
)
async def approve(
    run_id: str, call: str, backend: TheBackend, body: ApproveBody | None = None, asked: Asked = None
) -> Response:
    """The call is made, with the model's arguments or with those given here, which have to fit the tool's schema. The
    same answer again changes nothing; another one is refused, and told what was decided. A call may be asked about
    again: with `questionId`, an answer is never one to another question."""
    body = body or ApproveBody()
    answer = Answer(kind="approve", args=body.args, actor=body.actor)
    return await _answer(backend, run_id, call, answer, body, asked)


@router.post(
    f"{_CALL}/decline",
    response_model=RunView,
    summary="Decline a tool call",
    responses=example(200, decided("decline", reason="Only up to 100.")) | errors(400, 404, 409, 410, 413, 503),
)
async def decline(
    run_id: str, call: str, backend: TheBackend, body: DeclineBody | None = None, asked: Asked = None
) -> Response:
    """The call is not made. The model is told the reason, and goes on. Any call that waits can be declined."""
    body = body or DeclineBody()
    answer = Answer(kind="decline", reason=body.reason, actor=body.actor)
    return await _answer(backend, run_id, call, answer, body, asked)


@router.post(
    f"{_CALL}/resume",
    response_model=RunView,
    summary="Resume a suspended tool call",
    responses=example(200, decided("resume")) | errors(400, 404, 409, 410, 413, 503),
)
async def resume(run_id: str, call: str, backend: TheBackend, body: ResumeBody, asked: Asked = None) -> Response:
    """Gives a suspended tool the data that it waits for, which has to fit its schema; or is the result of a call that
    is executed elsewhere."""
    answer = Answer(kind="resume", data=body.data, actor=body.actor)
    return await _answer(backend, run_id, call, answer, body, asked)


@router.get(
    "/pending",
    response_model=InboxPage,
    summary="List the calls that wait",
    responses=example(200, INBOX) | errors(400, 503),
)
async def list_pending(
    backend: TheBackend,
    agent: Annotated[str, Query(max_length=128, description="Only calls of this agent's runs.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> Response:
    """The calls of all runs that wait for somebody, longest first: an inbox."""
    calls, following = await backend.decisions.page(agent=agent, limit=limit, cursor=cursor)
    page = InboxPage(pending=[with_call_links(call, call.run_id) for call in calls], next=following)
    return Response(page.model_dump_json(by_alias=True), media_type="application/json")


async def _answer(
    backend: Backend, run_id: str, call: str, answer: Answer, body: AnswerBody, linked: str | None
) -> Response:
    question = body.question_id
    if question is not None and linked not in {None, question}:
        raise InvalidRequest("The body names another question than the link.", field="questionId")
    idle = seconds_of(body.until_idle)
    if idle is not None:
        await backend.wait_for_tasks(run_id, idle)
    await backend.decide(run_id, call, answer, question=linked if question is None else question)
    return as_json(await look(backend, run_id))
