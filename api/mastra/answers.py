"""Answers to the calls of a run, and where in its log they are told.

An answer that is sent again is the answer that was given: it has the same place in the log.
"""

from __future__ import annotations

from durable.backend import Backend
from durable.chunks.base import Json
from durable.decisions import Answer
from durable.errors import AlreadyDecided, AmbiguousCall, InvalidRequest, RunEnded, UnknownCall
from durable.runs import RunRecord

from .repeats import Repeats

WAITS = "!"
"""Marks what a call waits for as long as it does."""
OPEN = "The calls that wait are named by toolCallId: give one of these."


async def answered(
    backend: Backend, record: RunRecord, call: str, answer: Answer, *, run_id: str = "", question: str | None = None
) -> int:
    """Answer a call; the cursor before the chunk that tells of it. For a call below the run, which is told elsewhere,
    it is where the run's log ended before.

    Args:
        backend: The run layer.
        record: The run.
        call: The call.
        answer: The answer.
        run_id: The run below it whose call it is, if that is known.
        question: Which of its questions is answered. Default: the last one.

    Raises:
        DurableError: as `Backend.decide` does.
    """
    try:
        await backend.decide(run_id or record.run_id, call, answer, question=question)
    except (AlreadyDecided, InvalidRequest):
        # The call may have been asked something else since: this is then the answer to what it was asked before.
        if await _given(backend, run_id or record.run_id, call, answer) is None:
            raise
    given = None if run_id else await _given(backend, record.run_id, call, answer)
    if given is None or given.seq is None:
        same = Repeats(backend, "answer", record.run_id, call, answer.digest())
        return int(await same.first(str(record.last_seq)))
    return given.seq - 1


async def _given(backend: Backend, run_id: str, call: str, answer: Answer) -> Answer | None:
    try:
        return await backend.decisions.given(run_id, call, answer)
    except UnknownCall:
        return None


async def resumed(backend: Backend, record: RunRecord, call: str | None, data: Json) -> int:
    """Give a call what it waits for; the cursor before the chunk that tells of it.

    The same request within a few seconds is for what the first one was for: what the run asks next is nothing that its
    sender has seen.

    Args:
        backend: The run layer.
        record: The run.
        call: The call; the only one that waits when None.
        data: What it waits for. Of a call that waits to be approved: `approved`, and perhaps `reason`.

    Raises:
        AmbiguousCall: Several calls wait.
        DurableError: as `Backend.decide` does.
    """
    same = Repeats(backend, "resume", record.run_id, call, data)
    meant = await same.known() or await _meant(backend, record, call)
    if meant.split(" ", 1)[0].endswith(WAITS):
        meant = await same.first(meant)
    kind, run_id, question, call = meant.split(" ", 3)
    answer = _answer(kind.removesuffix(WAITS), data)
    return await answered(backend, record, call, answer, run_id=run_id, question=question or None)


async def _meant(backend: Backend, record: RunRecord, call: str | None) -> str:
    """What a call waits for, in which run below this one, which of its questions that is, and the call."""
    [view] = await backend.views([record])
    waiting = {each.tool_call_id: each for each in view.pending or []}
    [own] = await backend.decisions.calls([record.run_id])
    if call is None:
        if len(waiting) > 1:
            raise AmbiguousCall(OPEN, issues=[{"field": "toolCallId", "message": OPEN}])
        given = [each for each in own if each.answer is not None]
        newest = max(given, key=lambda each: each.answer.at or 0 if each.answer else 0, default=None)
        call = next(iter(waiting), None if newest is None else newest.tool_call_id)
    if call is None:
        raise RunEnded("The run has ended, and no call of it has waited.") if view.ended else UnknownCall
    if call in waiting:
        asked = waiting[call]
        return f"{asked.kind}{WAITS} {asked.run_id or ''} {asked.question_id or ''} {call}"
    kind = next((each.question.kind for each in own if each.tool_call_id == call), "")
    return f"{kind}   {call}"


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
