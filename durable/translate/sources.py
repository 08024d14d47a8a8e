"""The sources that a response cites, or that its provider's web search has found. Each is told once a response, however
often it is cited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic_ai.messages import NativeToolReturnPart
from pydantic_ai.native_tools import WebSearchTool

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
        provider = getattr(part, "provider_name", None)
        return [chunk for each in citations for source in each.sources for chunk in self._cited(source, provider)]

    def found(self, part: NativeToolReturnPart) -> list[Chunk]:
        """The new pages that a web search of the provider's own has found; none for what any other tool returns."""
        if part.tool_name != WebSearchTool.kind or getattr(part, "outcome", "success") != "success":
            return []
        return [chunk for url, title in _pages(part.content) for chunk in self._page(url, title)]

    def _cited(self, source: Any, provider: str | None) -> list[Chunk]:
        match getattr(source, "kind", None):
            case "web":
                return self._page(source.url, source.title)
            case "document":
                return self._document(source.document_id, source.title, provider)
            case _:
                return []

    def _page(self, url: str, title: str | None) -> list[Chunk]:
        return self._tell(("web", url), {"source_type": "url", "title": title or url, "url": url})

    def _document(self, identity: str | None, title: str | None, provider: str | None) -> list[Chunk]:
        name = title or identity or "document"
        fields: dict[str, Any] = {"source_type": "document", "title": name}
        if identity and provider:
            fields["provider_metadata"] = {provider: {"id": identity}}
        return self._tell(("document", identity or name), fields)

    def _tell(self, key: tuple[str, str], fields: dict[str, Any]) -> list[Chunk]:
        if key in self._told:
            return []
        self._told.add(key)
        return [Source(payload=SourcePayload(id=self._next_id(), **fields))]


def _pages(content: Any) -> Iterator[tuple[str, str | None]]:
    """The addresses and titles of what was found, in the shapes of those providers that tell it."""
    if isinstance(content, dict):
        content = content.get("sources") or content.get("results")
    for item in content if isinstance(content, list) else ():
        url = (item.get("url") or item.get("uri")) if isinstance(item, dict) else None
        if isinstance(url, str):
            title = item.get("title")
            yield url, title if isinstance(title, str) else None
