"""What is an answer to what is asked: the right verb, of a size that can be kept, and fitting the schema."""

from __future__ import annotations

import asyncio
from typing import Final

import orjson

from durable import exact_json
from durable.chunks.base import Json
from durable.decisions.calls import Answer, Question, verbs_of
from durable.errors import InvalidRequest, RequestTooLarge
from durable.runs.collection import as_json
from durable.schemas import UnusableSchema, misfits

DEADLINE: Final = "deadline"
"""The actor of an answer that nobody gave in time."""
HANDLER: Final = "handler"
"""The actor of what the agent's own code decides."""
RUN: Final = "run"
"""The actor of an answer that the run gave itself: it goes on without the call."""
LARGEST_ANSWER: Final = 262_144
"""Bytes of an answer's JSON, at most."""
LARGE_ANSWER: Final = 4096
"""Bytes beyond which an answer is looked at in a thread: the event loop has others to serve."""
LONGEST_REASON: Final = 1000
LONGEST_ACTOR: Final = 200
"""Characters of what is said of an answer, at most."""


async def check_answer(asked: Question, answer: Answer) -> None:
    """Refuse what is no answer to what is asked, or what nobody outside may say.

    Raises:
        InvalidRequest: It is not one, or does not fit its schema.
        RequestTooLarge: It is larger than `LARGEST_ANSWER`.
    """
    verbs = verbs_of(asked.kind)
    if answer.kind not in verbs:
        raise InvalidRequest(f"This call can be answered by: {', '.join(verbs)}.")
    stored = check_said(answer)
    # What is stored is looked at: it may differ from what was given, as a number that JSON does not have.
    values = exact_json.loads(stored)
    if answer.kind == "approve" and answer.args is not None:
        checked = values["args"], asked.args_schema, "args"
    elif answer.kind == "resume":
        checked = values.get("data"), asked.resume_schema, "data"
    else:
        return
    if len(stored) > LARGE_ANSWER:
        await asyncio.to_thread(_fits, *checked)
    else:
        _fits(*checked)


def check_said(answer: Answer) -> bytes:
    """Refuse what can't be kept of what somebody says. Returns its stored form.

    Raises:
        InvalidRequest: It can't be stored as JSON, or who says so is nobody.
        RequestTooLarge: It is larger than `LARGEST_ANSWER`.
    """
    if len(answer.actor or "") > LONGEST_ACTOR or len(answer.reason or "") > LONGEST_REASON:
        raise InvalidRequest(f"A reason has {LONGEST_REASON} characters, at most, and an actor {LONGEST_ACTOR}.")
    if answer.actor in {DEADLINE, HANDLER, RUN}:
        raise InvalidRequest("This actor stands for nobody's answer.", field="actor")
    with as_json():
        orjson.dumps([answer.args, answer.data])  # what comes over the wire has integers of 64 bits, at most
        stored = answer.to_json()
    if len(stored) > LARGEST_ANSWER:
        raise RequestTooLarge(f"An answer has {LARGEST_ANSWER} bytes, at most.")
    return stored


def _fits(value: Json, schema: dict[str, Json], name: str) -> None:
    """Refuse a value that does not fit its schema, without repeating the value."""
    try:
        found = misfits(value, schema, name)
    except UnusableSchema as error:
        raise InvalidRequest("The schema of the answer can't be used.") from error
    if found:
        issues = [issue.model_dump(mode="json") for issue in found]
        raise InvalidRequest("The answer does not fit its schema.", issues=issues)
