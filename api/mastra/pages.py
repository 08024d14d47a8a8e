"""Pages by number, as this protocol counts them: from 0, with all if nobody says how many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import Query

T = TypeVar("T")

Page = Annotated[int, Query(ge=0, le=1_000_000)]
PerPage = Annotated[int | None, Query(alias="perPage", ge=1, le=1000)]


def paged(found: Sequence[T], page: int, per_page: int | None) -> list[T]:
    """What is on a page."""
    return list(found if per_page is None else found[page * per_page : (page + 1) * per_page])


def moment(value: datetime) -> datetime:
    """A moment of the caller's; one without a zone is UTC."""
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
