"""A run's log as this door tells it: chunk for chunk, so that how many a reader has received is its cursor.

What was declared void keeps its place, with empty text or an empty object. A range that is declared void after this
response has told text of it can't be taken back: the response ends there, without a mark, and whoever reads asks again
from the start.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import orjson

from durable.backend import Backend
from durable.errors import UnknownRun
from durable.journal import Entry, blocks_of
from durable.runs import BACKGROUND, RunRecord
from durable.views import RunStatus, TaskStatus

from .framing import DONE, HEARTBEAT_SECONDS

Range = tuple[int, int]

_TEXTS: Final = {"text-delta": "text", "reasoning-delta": "text", "tool-call-delta": "argsTextDelta"}
_DELTAS: Final = tuple(b'{"type":"%b"' % name.encode() for name in _TEXTS)
_OBJECT: Final = b'{"type":"object"'
_STEP: Final = b'{"type":"step-start"'


async def run_of(backend: Backend, agent: str, run_id: str) -> RunRecord:
    """An agent's run.

    Raises:
        UnknownRun, RunExpired: It has no such run.
        StoreUnavailable: Redis does not answer.
    """
    record = await backend.runs.get(run_id)
    if record.agent != agent:
        raise UnknownRun
    return record


def waits(record: RunRecord) -> bool:
    """Whether a run waits for somebody. One that waits for its background tasks goes on by itself."""
    return record.status is RunStatus.SUSPENDED and record.reason != BACKGROUND


async def pauses(backend: Backend, record: RunRecord) -> bool:
    """Whether nothing comes of a run before somebody does something: it waits, or its background tasks do, all of them,
    and it would wait for them without an end."""
    if waits(record):
        return True
    if record.status is not RunStatus.SUSPENDED or record.idles:
        return False
    [view] = await backend.views([record])
    if not view.pending:
        return False
    for status in (TaskStatus.PENDING, TaskStatus.RUNNING):
        under_way, _ = await backend.tasks.page(status=status, run=record.run_id, limit=1)
        if under_way:
            return False
    # What a task waits for is told in the run's log at once: a reader who has all of that has been told.
    return (await backend.runs.get(record.run_id)).last_seq == record.last_seq


async def told(backend: Backend, record: RunRecord, after: int, *, to_the_end: bool = False) -> AsyncGenerator[bytes]:
    """A run's chunks after a cursor, as blocks, and the mark of the end.

    Args:
        backend: The run layer.
        record: The run, as it was when its reader came.
        after: The cursor.
        to_the_end: Whether to go on when the run waits for somebody.
    """
    telling, ended = _Telling(record.voids), False
    pages = backend.observer.pages(
        record.run_id,
        min(after, record.last_seq),
        silence=HEARTBEAT_SECONDS,
        pauses=None if to_the_end else partial(pauses, backend),
    )
    async with aclosing(pages):
        async for page in pages:
            if not page:
                yield b""
                continue
            piece = b"".join(telling.blocks(rest for entry in page if (rest := entry.after(after)) is not None))
            if piece:
                yield piece
            if telling.broken:
                return
            ended = page[-1].final
    if ended or not backend.hub.dismissed:
        yield DONE


class _Telling:
    """What one response tells.

    Args:
        voids: What is known to be void when it begins.

    Attributes:
        broken: Whether it has told text that turned out to be void.
    """

    def __init__(self, voids: Iterable[Range]) -> None:
        self.broken = False
        self._voids = set(voids)
        self._newest_text = 0

    def blocks(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """The next entries, as far as they may be told."""
        for entry in entries:
            count = self._tellable(entry)
            self.broken = count < len(entry.bodies)
            if not (self.broken or self._touches(entry)):
                yield entry.blocks
            elif count:
                yield blocks_of(entry.run_id, [*self._emptied(entry.first, entry.bodies[:count])])
            if self.broken:
                return

    def _tellable(self, entry: Entry) -> int:
        """How many of its chunks can be told before one that takes back what was told."""
        for index, body in enumerate(entry.bodies):
            if body.startswith(_DELTAS):
                if not self._covers(entry.first + index):
                    self._newest_text = entry.first + index
            elif body.startswith(_STEP) and b'"void":{' in body:
                void = orjson.loads(body)["payload"]["void"]
                found = (void["from"], void["to"])
                if found not in self._voids and self._newest_text >= void["from"]:
                    return index
                self._voids.add(found)
        return len(entry.bodies)

    def _covers(self, seq: int) -> bool:
        return any(first <= seq <= last for first, last in self._voids)

    def _touches(self, entry: Entry) -> bool:
        return any(first <= entry.last and entry.first <= last for first, last in self._voids)

    def _emptied(self, first: int, bodies: Sequence[bytes]) -> Iterator[bytes]:
        """The chunks without the text that does not count."""
        for seq, body in enumerate(bodies, first):
            yield _emptied(body) if self._covers(seq) else body


def _emptied(body: bytes) -> bytes:
    if not body.startswith((*_DELTAS, _OBJECT)):
        return body
    chunk = orjson.loads(body)
    if "object" in chunk:
        return orjson.dumps(chunk | {"object": {}})
    chunk["payload"][_TEXTS[chunk["type"]]] = ""
    return orjson.dumps(chunk)
