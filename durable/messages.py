"""Messages for runs that have not ended: what somebody tells the model while a run is under way.

The model is told before its next request; if it was about to end, it goes on. A message is left in the run's ledger, as
an answer is, and which ones the model was told is part of the checkpoint: so none is lost, or told twice, whoever
executes the run. The same message again changes nothing.
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import orjson

from durable import ledger
from durable.chunks.base import Json
from durable.conversation import read_prompt
from durable.decisions import Answer, check_said
from durable.errors import InvalidRequest, RunConflict, RunEnded, UnknownRun
from durable.runs import WAKE_GRACE, RunRecord, Runs, new_run_id
from durable.runs.record import RUN_ID
from durable.scripts import TELL
from durable.store import Store, text


class Messages:
    """Leaves messages for the runs of a deployment."""

    def __init__(self, store: Store, runs: Runs) -> None:
        self._store = store
        self._runs = runs

    async def send(
        self, run_id: str, content: Json, *, message_id: str | None = None, actor: str | None = None
    ) -> tuple[bool, RunRecord | None]:
        """Tell the model of a run something. Returns whether this call did, and the run when it has to be woken.

        Args:
            run_id: The run.
            content: Text, or Pydantic AI user content as JSON.
            message_id: The sender's own id for it: the same message with the same id is told once.
            actor: Who says so, for the log.

        Raises:
            InvalidRequest: The content is none, or can't be stored; an id is not one; or the run has no model.
            RequestTooLarge: It is too large.
            UnknownRun, RunExpired: There is no such run.
            RunConflict: The id was used for another message.
            RunEnded: It has ended, or was told to.
            StoreUnavailable: Redis does not answer. The same may be sent again with the same id.
        """
        if message_id is not None and not RUN_ID.fullmatch(message_id):
            raise InvalidRequest("A message id is 1 to 128 letters, digits, '_' or '-'.", field="messageId")
        read_prompt(content)
        verdict, *more = await self._leave(
            run_id, message_id or new_run_id(), Answer(kind="message", data=content, actor=actor)
        )
        match text(verdict):
            case "told":
                return True, await self._runs.get(run_id) if text(more[1]) == "1" else None
            case "same":
                return False, None
            case "other":
                raise RunConflict("This message id was used for another message.")
            case "ended":
                raise RunEnded("The run has ended, or was told to: its model can't be told anything.")
            case "task":
                raise InvalidRequest("A background task makes one tool call: it has no model that could be told.")
            case _:
                await self._runs.get(run_id)  # raises what there is to say
                raise UnknownRun

    async def _leave(self, run_id: str, message_id: str, message: Answer) -> list[Any]:
        keys = self._store.keys
        body = check_said(message)
        digest = hashlib.sha256(orjson.dumps(orjson.loads(body)["data"], option=orjson.OPT_SORT_KEYS)).hexdigest()
        return cast(
            "list[Any]",
            await self._store.run(
                TELL,
                [keys.run(run_id), keys.ledger(run_id), keys.calls(run_id), keys.wakeups],
                [
                    run_id,
                    message_id,
                    digest,
                    body,
                    ledger.message_key(0, message_id),
                    keys.status_indexes,
                    int(WAKE_GRACE * 1000),
                    keys.nudges,
                ],
            ),
        )
