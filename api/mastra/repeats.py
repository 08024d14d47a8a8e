"""Requests that the client sends again by itself, and that have no id of their own.

It sends a request again within a second when the answer is lost or is a 5xx. So the same request within a few seconds
is the same one: it is known by an id that is kept for so long, and what it does is done under that id, once.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import orjson

from durable.backend import Backend
from durable.runs import new_run_id
from durable.runs.collection import as_json
from durable.store import text

KNOWN_SECONDS: Final = 3
"""For how long a request that was answered is known again. Its sender's retries come within one; a person who says the
same again needs longer."""


class Repeats:
    """Knows one request again.

    Args:
        backend: The run layer.
        request: What tells it from others, as JSON.

    Raises:
        InvalidRequest: It can't be stored as JSON.
    """

    def __init__(self, backend: Backend, *request: Any) -> None:
        with as_json():
            digest = hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()
        self._store = backend.store
        self._name = backend.store.keys.repeated(digest)

    async def id(self, seconds: int = KNOWN_SECONDS) -> str:
        """The id of the request, the same for each that is sent within so many seconds of the first.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        return await self.first(new_run_id(), seconds)

    async def first(self, value: str, seconds: int = KNOWN_SECONDS) -> str:
        """What the first of these requests has come with: `value`, if this is it. So each of them means the same run or
        call, whatever has become of that since.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            known = await self._store.redis.set(self._name, value, nx=True, ex=seconds, get=True)
        return value if known is None else text(known)

    async def anew(self, seconds: int) -> str:
        """Another id: this request is not the one that had the one before.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            await self._store.redis.set(self._name, found := new_run_id(), ex=seconds)
        return found

    async def known(self) -> str | None:
        """The same; None if this is the first.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            known = await self._store.redis.get(self._name)
        return None if known is None else text(known)

    async def answered(self) -> None:
        """It is about to be answered: from now on it is known for `KNOWN_SECONDS`.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with self._store.guard():
            await self._store.redis.expire(self._name, KNOWN_SECONDS)
