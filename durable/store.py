"""The connection of a process to the store.

One asyncio client for commands, one for pub/sub, one synchronous client for the thread that renews leases. The
in-memory store is the same code on an in-process fake server.

No client times out inside redis-py: on Python 3.11 such a timeout in the send path swallows cancellations. Callers that
must answer put a deadline around a call with `Store.guard`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import fakeredis
import redis as sync_redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from durable.errors import ConfigurationError, StoreUnavailable
from durable.keys import Keys
from durable.scripts import Arg, Script
from durable.settings import Settings

UNAVAILABLE = (RedisConnectionError, RedisTimeoutError, OSError)
"""What a call raises when Redis is away (also while it loads its data)."""

PASSING = (*UNAVAILABLE, OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError)
"""What a call raises that may succeed later: Redis is away, full, or a replica (also one without its master)."""


class Store:
    """A Redis server, or the in-memory stand-in, as this project uses it. Belongs to one event loop."""

    def __init__(self, redis: Redis, blocking: Redis, sync: sync_redis.Redis, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self.sync = sync
        self._blocking = blocking

    @classmethod
    def connect(cls, url: str, *, prefix: str = "durable", sync_timeout: float = 1.0, connections: int = 32) -> Self:
        """Use the server at `url`. Connects when first needed.

        Args:
            url: A `redis://`, `rediss://` or `unix://` URL.
            prefix: Starts every key.
            sync_timeout: Seconds after which the synchronous client gives up a call.
            connections: Size of the pool for commands; more callers wait for a free one.

        Raises:
            ConfigurationError: The URL is not one. (Its text stays out of the message: it may hold a password.)
        """
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigurationError("A Redis URL starts with redis://, rediss:// or unix://.")
        retry = Retry(ExponentialBackoff(cap=0.3, base=0.02), retries=3)
        pool = BlockingConnectionPool.from_url(
            url, max_connections=connections, timeout=None, socket_timeout=None, socket_connect_timeout=2, retry=retry
        )
        # A subscriber's owner reconnects: redis-py does it for who sends and for who listens at the same time.
        alone = Retry(NoBackoff(), 0, supported_errors=())
        blocking = Redis.from_url(url, socket_timeout=None, socket_connect_timeout=2, retry=alone)
        sync = sync_redis.Redis.from_url(url, socket_timeout=sync_timeout, socket_connect_timeout=sync_timeout)
        return cls(Redis(connection_pool=pool), blocking, sync, Keys(prefix))

    @classmethod
    def in_memory(cls, server: fakeredis.FakeServer | None = None, *, prefix: str = "durable") -> Self:
        """Use a fake server inside this process; stores on the same `server` share its data."""
        server = server or fakeredis.FakeServer(server_type="redis")
        return cls(
            fakeredis.FakeAsyncRedis(server=server),
            fakeredis.FakeAsyncRedis(server=server),
            fakeredis.FakeRedis(server=server),
            Keys(prefix),
        )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Use the server that the settings name.

        Raises:
            ConfigurationError: They name none.
        """
        # The lease thread must give up a call in time to try again before a lease runs out.
        return cls.connect(settings.store_url, prefix=settings.prefix, sync_timeout=settings.lease_seconds / 4)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """Run a script.

        Raises:
            StoreUnavailable: Redis does not answer, or refuses for now.
        """
        async with self.guard():
            return await script(self.redis, keys, args)

    @asynccontextmanager
    async def guard(self, seconds: float = 5.0) -> AsyncIterator[None]:
        """Turn all of `PASSING`, and an answer that takes longer than `seconds`, into `StoreUnavailable`."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise StoreUnavailable("Redis did not answer in time.") from error
        except UNAVAILABLE as error:
            raise StoreUnavailable("Redis can't be reached.") from error
        except PASSING as error:
            raise StoreUnavailable("Redis can't do this for now.") from error

    def pubsub(self) -> PubSub:
        """A new subscriber, on a connection of its own."""
        return self._blocking.pubsub()

    async def ping(self) -> None:
        """Ask whether Redis answers.

        Raises:
            StoreUnavailable: It does not.
        """
        async with self.guard(2.0):
            await self.redis.ping()

    async def aclose(self) -> None:
        """Close all connections."""
        for client in (self.redis, self._blocking):
            try:
                await client.aclose()
                await client.connection_pool.disconnect()
            except RedisError:
                continue
        self.sync.close()


def text(value: Any) -> str:
    """A reply of Redis as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


async def close_pubsub(pubsub: PubSub) -> None:
    """Close a subscriber, whether or not Redis is there."""
    try:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
    except UNAVAILABLE:
        return
