"""The verdicts on one attempt's run: stored beside the tool calls in the ledger, each in the same step as its chunk.

An attempt that takes the run over finds them here, and asks nobody again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson
from pydantic import BaseModel

from durable import ledger
from durable.chunks import Chunk, Json
from durable.chunks.codec import without_surrogates
from durable.decisions import Answer
from durable.writer import Note, RunWriter, Waiting


class Verdicts:
    """The verdicts on one attempt's run.

    Args:
        writer: Writes to the run's log, under the attempt's lease.
        entries: The run's ledger; what is stored is put there, too.
        got_on: Called with each new verdict.
    """

    def __init__(self, writer: RunWriter, entries: dict[str, bytes], got_on: Callable[[], None]) -> None:
        self._writer = writer
        self._entries = entries
        self._got_on = got_on

    async def stored(self) -> None:
        """Wait until all verdicts so far are stored: nobody is asked before that.

        Raises:
            LeaseLost: The run has another owner.
        """
        await self._writer.flush()

    def known(self, step: int, name: str, round_: int = 0) -> ledger.Outcome | None:
        """A verdict that was given before, here or by an earlier attempt."""
        entry = self._entries.get(ledger.key(step, ledger.judgement(name), round_))
        return None if entry is None else ledger.decode(entry)

    def keep(
        self,
        step: int,
        name: str,
        outcome: ledger.Outcome,
        chunk: Chunk | None = None,
        *,
        round_: int = 0,
        waiting: Waiting | None = None,
    ) -> None:
        """Store a verdict, with its chunk."""
        field, value = ledger.key(step, ledger.judgement(name), round_), ledger.encode(outcome)
        self._entries[field] = value
        note = Note(field=field, value=value, waiting=waiting)
        if chunk is None:
            self._writer.note(note)
        else:
            self._writer.write(chunk, note)
        self._got_on()

    def tell(self, chunk: Chunk) -> None:
        """Tell observers that somebody is being asked. Nothing is stored with it: another attempt tells it again."""
        self._writer.write(chunk)

    def before(self, name: str) -> Iterator[tuple[str, ledger.Outcome]]:
        """The verdicts of a name, or of names that begin so, in the order in which they were given."""
        fields = [field for field in self._entries if field.partition(":")[2].startswith(ledger.judgement(name))]
        for field in sorted((field for field in fields if not ledger.is_answer(field)), key=ledger.order):
            outcome = ledger.decode(self._entries[field])
            if outcome is not None:
                yield field, outcome

    def answer_to(self, field: str) -> Answer | None:
        """What was answered to a verdict that made the run wait, by its name in the ledger."""
        entry = self._entries.get(ledger.answer_to(field))
        return None if entry is None else Answer.model_validate_json(entry)


def dump(payload: BaseModel) -> str:
    """A payload as it is stored."""
    return to_text(payload.model_dump(mode="json", by_alias=True, exclude_unset=True))


def to_text(value: Json) -> str:
    """JSON as it is stored: as text, so that nothing in it is taken for the content of a message."""
    return orjson.dumps(without_surrogates(value)).decode()
