"""Reading a run's log: entries from any cursor, and what the wire adds to a chunk's body.

A log is dense: its chunks are numbered 1, 2, 3 …; an entry holds one or more of them. A cursor is the last seq that its
reader has; it may lie inside an entry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from durable.chunks import parse
from durable.chunks.base import Chunk
from durable.errors import InvalidRequest
from durable.store import Store

Rows = Sequence[tuple[bytes, dict[bytes, bytes]]]

_CURSOR: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_HAS_ORIGIN = re.compile(rb'\{"type":"[^"]*","from":').match
_CHUNK: Final = b'{"runId":"%b",%b"seq":%d,"attempt":%d,%b'
_BLOCK: Final = b'data: {"runId":"%b",%b%b\n\n'
_FINAL: Final = b',"final":true}'
_FRAME: Final = b"id: %d\ndata: " + _CHUNK + b"\n\n"


LARGEST_PAGE: Final = 2**20
"""Bytes of chunks that are read at once, unless a single entry has more."""
_FIRST_FETCH: Final = 4
_LARGEST_FETCH: Final = 256
"""Entries that are asked for in one round trip: few, until it is known how large they are."""


@dataclass(slots=True)
class Entry:
    """Neighbouring chunks of one log, written at once. Not to be changed: all readers of a process share it.

    Attributes:
        run_id: The run.
        first: The seq of the first chunk.
        attempt: The attempt that wrote them; 0 for none.
        bodies: One JSON object each.
    """

    # A long replay makes ten thousand of these: neither frozen, which triples the time to make one, nor with cached
    # properties, which take a lock each.
    run_id: str
    first: int
    attempt: int
    bodies: tuple[bytes, ...]
    _frames: bytes = field(default=b"", init=False, repr=False, compare=False)
    _blocks: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def last(self) -> int:
        """The seq of the last chunk."""
        return self.first + len(self.bodies) - 1

    @property
    def wire(self) -> list[bytes]:
        """The chunks as every reader sees them: JSON with the whole envelope."""
        run, attempt = self.run_id.encode(), self.attempt
        return [
            _CHUNK % (run, _origin(body), seq, attempt, body[1:]) for seq, body in enumerate(self.bodies, self.first)
        ]

    @property
    def frames(self) -> bytes:
        """The same as Server-Sent Events, each with its seq as its id; made once for all readers."""
        if not self._frames:
            run, attempt = self.run_id.encode(), self.attempt
            self._frames = b"".join(
                [
                    _FRAME % (seq, run, _origin(body), seq, attempt, body[1:])
                    for seq, body in enumerate(self.bodies, self.first)
                ]
            )
        return self._frames

    @property
    def blocks(self) -> bytes:
        """The same without ids and without their places in the log, `seq`, `attempt` and `final`: for readers who
        count; made once for all of them."""
        if not self._blocks:
            self._blocks = blocks_of(self.run_id, self.bodies)
        return self._blocks

    @property
    def final(self) -> bool:
        """Whether the last chunk ends the run."""
        return b'"final":true' in self.bodies[-1] and parse(self.bodies[-1]).final is True

    def chunks(self) -> list[Chunk]:
        """The chunks, parsed."""
        return [parse(data) for data in self.wire]

    def after(self, cursor: int) -> Entry | None:
        """What of this entry follows `cursor`; None when nothing does."""
        if cursor < self.first:
            return self
        if cursor >= self.last:
            return None
        return replace(self, first=cursor + 1, bodies=self.bodies[cursor + 1 - self.first :])

    @classmethod
    def of_stream(cls, run_id: str, entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
        """Read an entry of the Redis stream."""
        attempt, _, blob = fields[b"c"].partition(b" ")
        bodies = tuple(blob.split(b"\n"))
        last = int(entry_id.partition(b"-")[2])
        return cls(run_id, last - len(bodies) + 1, int(attempt), bodies)

    @classmethod
    def of_message(cls, run_id: str, data: bytes) -> Entry:
        """Read the pub/sub message that announced an entry."""
        first, attempt, blob = data.split(b" ", 2)
        return cls(run_id, int(first), int(attempt), tuple(blob.split(b"\n")))


def read_cursor(value: int | str) -> int:
    """A cursor of one log, as a number.

    Raises:
        InvalidRequest: It is none.
    """
    if isinstance(value, str):
        if not _CURSOR.fullmatch(value):
            raise InvalidRequest("The cursor is not a number of 0 or more.")
        return int(value)
    return value


def blocks_of(run_id: str, bodies: Sequence[bytes]) -> bytes:
    """Neighbouring chunks of a run as an entry's `blocks`, of which the last one may be the final one."""
    run, last = run_id.encode(), bodies[-1]
    if last.endswith(_FINAL):
        bodies = [*bodies[:-1], last[: -len(_FINAL)] + b"}"]
    return b"".join([_BLOCK % (run, _origin(body), body[1:]) for body in bodies])


def _origin(body: bytes) -> bytes:
    return b"" if _HAS_ORIGIN(body) else b'"from":"AGENT",'


async def read(
    store: Store, run_id: str, after: int, *, limit: int = 1000, max_bytes: int = LARGEST_PAGE
) -> list[Entry]:
    """Entries of a log that follow a cursor, oldest first; none only when the log has none.

    Args:
        store: Where the log is.
        run_id: The run; a log that does not exist is empty.
        after: The cursor; 0 reads from the start.
        limit: Entries, at most.
        max_bytes: Bytes of chunks, at most; a larger entry comes alone.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    page: list[Entry] = []
    size, count, start = 0, _FIRST_FETCH, f"(0-{after}" if after else "-"
    async with store.guard():
        while len(page) < limit and size < max_bytes:
            wanted = min(count, limit - len(page))
            rows = cast("Rows", await store.redis.xrange(store.keys.log(run_id), start, "+", count=wanted))
            for entry_id, fields in rows:
                size += len(fields[b"c"])
                if page and size > max_bytes:
                    return page
                rest = Entry.of_stream(run_id, entry_id, fields).after(after)
                if rest is not None:
                    page.append(rest)
            if len(rows) < wanted:
                break
            start = f"({rows[-1][0].decode()}"
            # As many as will fit if they are like those before.
            count = max(1, min(count * 8, _LARGEST_FETCH, (max_bytes - size) * len(page) // max(size, 1)))
    return page
