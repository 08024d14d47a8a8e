"""The server as the client sees it: one pool of connections, and asking it for an object.

Invariant: a request is sent a second time only if the caller allows it, and then with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import httpx
from pydantic_core import PydanticSerializationError, to_json

from durable.chunks.base import Json
from durable.client.answers import PASSING, Model, error_of, failure_of, read, retry_after
from durable.client.backoff import Backoff
from durable.client.outage import OnOutage, Outage
from durable.errors import ConfigurationError, InvalidRequest, ServerUnreachable

_ONCE: Final = Backoff(patience=0.0)


class Remote:
    """A server.

    Attributes:
        http: What requests are sent with.
        name: How messages call the server; never with a password.
        timeout: Seconds to wait for a connection or for an answer.
        outage: Whether it answers.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        on_outage: OnOutage | None = None,
    ) -> None:
        """Connects when it is first asked.

        Raises:
            ConfigurationError: `url` is not an HTTP URL.
        """
        base = _server_url(url)
        self.name = f"{base.scheme}://{base.netloc.decode()}"
        self.timeout = timeout
        self.outage = Outage(self.name, on_outage)
        self.http = httpx.AsyncClient(
            base_url=base,
            timeout=timeout,
            headers=headers,
            transport=transport,
            # A connection for each run that is followed: a limit would let the next one starve.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def ask(
        self,
        method: str,
        path: str,
        model: type[Model],
        *,
        params: Mapping[str, str | float | None] | None = None,
        body: Mapping[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
        backoff: Backoff = _ONCE,
        extra_seconds: float = 0.0,
    ) -> Model:
        """Ask for an object: `model` is what is expected. Otherwise as `send`."""
        response = await self.send(
            method, path, params=params, body=body, headers=headers, backoff=backoff, extra_seconds=extra_seconds
        )
        return read(response, model)

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | float | None] | None = None,
        body: Mapping[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
        backoff: Backoff = _ONCE,
        extra_seconds: float = 0.0,
    ) -> httpx.Response:
        """Ask, and take the answer, read to its end.

        Args:
            method: The HTTP method.
            path: Where, with each segment quoted.
            params: The query; what is None is left out.
            body: JSON to send.
            headers: More headers.
            backoff: How to ask again while nobody answers, or the server is not ready; by default not at all.
            extra_seconds: How much longer than usual the answer may take.

        Raises:
            DurableError: The server refused, or it can't be reached.
        """
        request = self.http.build_request(
            method,
            path,
            params={name: value for name, value in (params or {}).items() if value is not None},
            content=None if body is None else _encoded(body),
            headers={**(headers or {}), **({} if body is None else {"content-type": "application/json"})},
            timeout=self.timeout + extra_seconds,
        )
        tries = backoff.start()
        while True:
            pause, began = 0.0, time.monotonic()
            try:
                response = await self.http.send(request)
            except httpx.RequestError as error:
                failure = failure_of(error, self.name)
                if not isinstance(failure, ServerUnreachable):
                    raise failure from error
            else:
                if response.status_code not in PASSING:
                    self.outage.over()
                    if response.is_success:
                        return response
                    raise error_of(response)
                failure, pause = error_of(response), retry_after(response)
            delay = tries.pause(at_least=pause)
            if delay is None:
                raise failure
            await self.outage.pause(delay, failure, since=began)


def _server_url(value: str) -> httpx.URL:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError("The server's URL is not valid; it looks like http://host:8000.")
    return url


def _encoded(body: Mapping[str, Json]) -> bytes:
    try:
        return to_json(dict(body))
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidRequest("What was given can't be written as JSON.") from error
