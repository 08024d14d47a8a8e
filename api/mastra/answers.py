"""Answers to the calls of a run, and where in its log they are told.

An answer that is sent again is the answer that was given: it has the same place in the log.
"""

from __future__ import annotations

from durable.backend import Backend
from durable.chunks.base import Json
from durable.decisions import Answer
from durable.errors import AlreadyDecided, AmbiguousCall, InvalidRequest, RunEnded, UnknownCall
from durable.runs import RunRecord

OPEN = "The calls that wait are named by toolCallId: give one of these."


async def answered(backend: Backend, record: RunRecord, call: str, answer: Answer) -> int:
    """Answer a call; the cursor before the chunk that tells of it. For a call below the run, which is told elsewhere,
    it is where the run's log ended before.

    Raises:
        DurableError: as `Backend.decide` does.
    """
    try:
        await backend.decide(record.run_id, call, answer)
    except (AlreadyDecided, InvalidRequest):
        # The call may have been asked something else since: this is then the answer to what it was asked before.
        if not await _was_given(backend, record, call, answer):
            raise
    try:
        given = await backend.decisions.given(record.run_id, call, answer)
    except UnknownCall:
        given = None
    return record.last_seq if given is None or given.seq is None else given.seq - 1


async def _was_given(backend: Backend, record: RunRecord, call: str, answer: Answer) -> bool:
    try:
        return await backend.decisions.given(record.run_id, call, answer) is not None
    except UnknownCall:
        return False


async def resumed(backend: Backend, record: RunRecord, call: str | None, data: Json) -> int:
    """Give a call what it waits for; the cursor before the chunk that tells of it.

    Args:
        backend: The run layer.
        record: The run.
        call: The call; the only one that waits when None.
        data: What it waits for. Of a call that waits to be approved: `approved`, and perhaps `reason`.

    Raises:
        AmbiguousCall: Several calls wait.
        DurableError: as `Backend.decide` does.
    """
    [view] = await backend.views([record])
    waiting = {each.tool_call_id: each.kind for each in view.pending or []}
    [own] = await backend.decisions.calls([record.run_id])
    kinds = {each.tool_call_id: each.question.kind for each in own} | waiting
    if call is None:
        if len(waiting) > 1:
            raise AmbiguousCall(OPEN, issues=[{"field": "toolCallId", "message": OPEN}])
        given = [each for each in own if each.answer is not None]
        newest = max(given, key=lambda each: each.answer.at or 0 if each.answer else 0, default=None)
        call = next(iter(waiting), None if newest is None else newest.tool_call_id)
    if call is None:
        raise RunEnded("The run has ended, and no call of it has waited.") if view.ended else UnknownCall
    return await answered(backend, record, call, _answer(kinds.get(call), data))


def _answer(kind: str | None, data: Json) -> Answer:
    """The answer that data is to what is asked."""
    if kind != "approval":
        return Answer(kind="resume", data=data)
    match data:
        case {"approved": True, **rest} if not rest.keys() - {"reason"}:
            return Answer(kind="approve")
        case {"approved": False, **rest} if not rest.keys() - {"reason"} and isinstance(rest.get("reason"), str | None):
            return Answer(kind="decline", reason=rest.get("reason"))
    raise InvalidRequest("This call waits for approval: {approved, reason?}.", field="resumeData")
