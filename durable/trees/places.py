"""Where a reader of a run and its children stands: one cursor for all of their logs.

A cursor is text without spaces, which only this module reads: `seq`, then `.p` when the first `p` children have been
read to their end, with `~bits` for others that have, then `(number:cursor,…)` for the children in whose logs the reader
is in the middle. Children that it has not begun are not named. A plain number is the cursor of a reader who has nothing
of the children. Invariant: the cursor says of every log of the tree up to where it was read.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final

from durable.errors import InvalidRequest

LONGEST: Final = 16_384
"""Characters of a cursor that is accepted."""
MOST_CHILDREN: Final = 100_000
"""Children that a cursor tells of, in all of a tree: each costs a bit of memory, however short the cursor is."""
DEEPEST: Final = 16
"""Generations below a run that are read, and whose calls are found."""
_SEQ: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_DONE: Final = re.compile(r"\.([0-9]{1,6})(?:~([A-Za-z0-9_-]+))?", re.ASCII)
_CHILD: Final = re.compile(r"([0-9]{1,6}):", re.ASCII)
_MARK: Final = "\0"


@dataclass(eq=False)
class Place:
    """Where a reader stands in one run.

    Attributes:
        seq: The last seq of the run that the reader has.
        done: The children, by their numbers as bits, that have been read to their end, with all of theirs.
        begun: The children that have been read in part, by their numbers.
    """

    seq: int = 0
    done: int = 0
    begun: dict[int, Place] = field(default_factory=dict)

    def around(self, place: Place) -> tuple[str, str]:
        """The cursor, without the seq at one place in it: what stands before that, and after it."""
        before, _, after = self.text(place).partition(_MARK)
        return before, after

    def text(self, marked: Place | None = None) -> str:
        """The cursor; a mark stands for the seq of one place in it."""
        text = _MARK if self is marked else str(self.seq)
        if self.done:
            first = (~self.done & (self.done + 1)).bit_length() - 1
            others = self.done >> first
            text += f".{first}" + (f"~{_to_text(others)}" if others else "")
        if self.begun:
            text += f"({','.join(f'{number}:{place.text(marked)}' for number, place in self.begun.items())})"
        return text

    def __str__(self) -> str:
        return self.text()


def read_place(cursor: str) -> Place:
    """Where a cursor says that its reader stands.

    Raises:
        InvalidRequest: It is not a cursor.
    """
    if len(cursor) > LONGEST:
        raise _invalid()
    place, end = _Reading(cursor).read(0, 0)
    if end != len(cursor):
        raise _invalid()
    return place


class _Reading:
    """Reads one cursor."""

    def __init__(self, cursor: str) -> None:
        self._cursor = cursor
        self._children = 0

    def read(self, at: int, depth: int) -> tuple[Place, int]:
        """The place that begins there, and where it ends."""
        cursor, seq = self._cursor, _SEQ.match(self._cursor, at)
        if seq is None or depth > DEEPEST:
            raise _invalid()
        place, at = Place(int(seq[0])), seq.end()
        if done := _DONE.match(cursor, at):
            at = done.end()
            place.done = self._done(int(done[1]), done[2])
        if cursor[at : at + 1] != "(":
            return place, at
        while True:
            child = _CHILD.match(cursor, at + 1)
            if child is None or int(child[1]) in place.begun or place.done >> int(child[1]) & 1:
                raise _invalid()
            place.begun[int(child[1])], at = self.read(child.end(), depth + 1)
            match cursor[at : at + 1]:
                case ",":
                    continue
                case ")":
                    return place, at + 1
                case _:
                    raise _invalid()

    def _done(self, first: int, others: str | None) -> int:
        self._children += first
        if self._children > MOST_CHILDREN:
            raise _invalid()
        return (1 << first) - 1 | (_of_text(others) << first if others else 0)


def _to_text(bits: int) -> str:
    data = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _of_text(text: str) -> int:
    try:
        return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "little")
    except binascii.Error as error:
        raise _invalid() from error


def _invalid() -> InvalidRequest:
    return InvalidRequest("This is not a cursor of a run with its children.")
