"""Pages of an index: a sorted set that is read from where the page before ended.

Invariant: a place is a score and a member, so it holds whatever comes or goes meanwhile, as a count would not: what
stays in the index is seen once, by whoever reads on from page to page.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final, Self, cast
from urllib.parse import quote, unquote

from durable.errors import InvalidRequest
from durable.store import Store, text

_CURSOR: Final = re.compile(r"([0-9]{1,15})\.([A-Za-z0-9_.~%-]+)", re.ASCII)


@dataclass(frozen=True, order=True)
class Position:
    """A place in an index, which is ordered by score and then by member: the last one that was seen."""

    score: int
    member: str

    @classmethod
    def parse(cls, cursor: str | None, member: re.Pattern[str]) -> Self | None:
        """The place that a cursor names; None for the beginning.

        Args:
            cursor: A place as text.
            member: What a member of the index looks like.

        Raises:
            InvalidRequest: The cursor is not one of ours.
        """
        if cursor is None:
            return None
        found = _CURSOR.fullmatch(cursor)
        name = "" if found is None else unquote(found[2])
        if found is None or not member.fullmatch(name):
            raise InvalidRequest("The cursor is not one that this server gave.")
        return cls(int(found[1]), name)

    def __str__(self) -> str:
        """The cursor."""
        return f"{self.score}.{quote(self.member, safe='')}"


async def batches(
    store: Store, index: str, seen: Position | None, *, size: int, newest_first: bool = False
) -> AsyncGenerator[list[Position]]:
    """What an index has after a place, some at a time and in its order.

    Args:
        store: Where the index is.
        index: The key of the sorted set; its scores are ms since 1970.
        seen: The place; None for all.
        size: Members to read at a time.
        newest_first: Whether to read from the highest score down.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    reach = size
    while True:
        rows = await _rows(store, index, seen, reach, newest_first=newest_first)
        unseen = [place for place in rows if seen is None or (place < seen if newest_first else place > seen)]
        if unseen:
            seen = unseen[-1]
            yield unseen
        if len(rows) < reach:
            return
        reach = size if unseen else reach * 2  # more than that were seen of one ms


async def _rows(store: Store, index: str, seen: Position | None, reach: int, *, newest_first: bool) -> list[Position]:
    bound = None if seen is None else str(seen.score)
    async with store.guard():
        if newest_first:
            rows = await store.redis.zrevrangebyscore(
                index, bound or "+inf", "-inf", start=0, num=reach, withscores=True
            )
        else:
            rows = await store.redis.zrangebyscore(index, bound or "-inf", "+inf", start=0, num=reach, withscores=True)
    return [Position(int(score), text(member)) for member, score in cast("list[tuple[bytes, float]]", rows)]
