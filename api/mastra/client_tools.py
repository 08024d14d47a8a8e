"""A run goes on with the results of the tools that its caller has executed.

The caller sends its request again, with the same run id and a last message of role `tool`. That is no other run: the
results are the answers to the calls for which the run waits, each a `tool-result` in its log as in the stream that the
client has put together by itself. Sent once more, they are the same answers.
"""

from __future__ import annotations

from durable.backend import Backend
from durable.decisions import Answer
from durable.errors import RunConflict, UnknownCall
from durable.runs import RunRecord

from .answers import answered
from .bodies import OTHER_TERMS, Asked
from .problems import refuse


async def go_on(backend: Backend, record: RunRecord, asked: Asked) -> int:
    """Give a run the results of its calls; the cursor after the chunks that tell them: the caller has its own of these.

    Raises:
        DurableError: as `Backend.decide` does; `RunConflict` when the run has not made these calls.
        Refused: Something is asked for that the run was not begun with.
    """
    differing = asked.differing(await backend.runs.request(record.run_id))
    if differing:
        raise refuse(*((name, OTHER_TERMS) for name in differing))
    try:
        told = [
            await answered(backend, record, call, Answer(kind="resume", data=result)) + 1
            for call, result in asked.results
        ]
    except UnknownCall:
        raise RunConflict("The run with this id was begun by another request, and does not wait for this.") from None
    return max(told)
