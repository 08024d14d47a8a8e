"""The sources that a response cites. Each is told once a response, however often it is cited."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from durable.chunks import Chunk, Source, SourcePayload


class Sources:
    """Remembers which sources of one response were told."""

    def __init__(self, next_id: Callable[[], str]) -> None:
        self._next_id = next_id
        self._told: set[tuple[str, str]] = set()

    def cited(self, part: object) -> list[Chunk]:
        """The new sources of a text part or text delta. Releases without citations have none.

        The passages that a citation quotes are left out: they may come from documents that not every observer may see.
        """
        citations: Iterable[Any] = getattr(part, "citations", None) or getattr(part, "citations_delta", None) or ()
        found = (self._source(source) for citation in citations for source in citation.sources)
        return [source for source in found if source is not None]

    def _source(self, source: Any) -> Source | None:
        kind = getattr(source, "kind", None)
        if kind == "web":
            fields = {"source_type": "url", "title": source.title or source.url, "url": source.url}
            key = source.url
        elif kind == "document":
            title = source.title or source.document_id or "document"
            fields = {"source_type": "document", "title": title}
            key = source.document_id or title
        else:
            return None
        if (kind, key) in self._told:
            return None
        self._told.add((kind, key))
        return Source(payload=SourcePayload(id=self._next_id(), **fields))
