"""The HTTP client, for programs that have httpx and pydantic and nothing else of this project's dependencies."""

from durable.client.backoff import Backoff
from durable.client.client import Client

__all__ = ["Backoff", "Client"]
