"""What a model's provider sends, event by event, told beside what Pydantic AI makes of it: `raw` chunks.

The HTTP client of a provider is shared by all that use its model. It gets one hook, which looks at a response only
where a run has asked for it: a context variable says so, set just while the run's own model opens its stream. What the
provider's SDK reads is handed on at once, as it came; a copy of it is parsed. Headers are never told.

Invariant: an event is told before what Pydantic AI makes of it, and after the `step-start` that it belongs to. Those of
a second response to the same request are held back until Pydantic AI's first event of it tells whether it takes the
place of the first one: what was said before is then void.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_core import from_json

from durable.chunks import Chunk, Raw, RawPayload
from durable.providers import asked_models, http_client, shows_events
from durable.runs import check_include
from durable.sse import Parser

log = logging.getLogger(__name__)

_STREAM: Final = "text/event-stream"
_asking: ContextVar[_Request | None] = ContextVar("durable_raw", default=None)


class Tee:
    """Tells the provider's events of one attempt.

    Args:
        tell: Takes the chunks.
    """

    def __init__(self, tell: Callable[[Chunk], None]) -> None:
        self._tell = tell
        self._responses = 0
        self._held: list[Chunk] = []
        self._holding = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """For the time of a model request of the run."""
        self._responses = 0
        try:
            yield
        finally:
            self.release()

    def open(self) -> None:
        """A response begins."""
        self.release()
        self._responses += 1
        self._holding = self._responses > 1

    def take(self, event: dict[str, Any]) -> None:
        """The next event."""
        chunk = Raw(payload=RawPayload.model_validate(event))
        if self._holding:
            self._held.append(chunk)
        else:
            self._tell(chunk)

    def release(self) -> None:
        """It is known where what was held back belongs: here."""
        self._holding = False
        held, self._held = self._held, []
        for chunk in held:
            self._tell(chunk)


class Tapping(AbstractCapability[Any]):
    """The capability that puts `Tapped` around whichever model serves a request.

    Args:
        tee: Takes what its provider sends.
    """

    def __init__(self, tee: Tee) -> None:
        self._tee = tee

    def get_ordering(self) -> CapabilityOrdering:
        """Next to the model: requests that hooks of the agent's own make are none of this run's."""
        return CapabilityOrdering(position="innermost")

    def get_wrapper_model(self, model: Model) -> Model:
        """Wrap the model of each attempt at a request."""
        return Tapped(model, self._tee)

    async def wrap_model_request(self, ctx: RunContext[Any], *, request_context: Any, handler: Any) -> Any:  # noqa: ARG002
        """The same, for releases of Pydantic AI that do not ask for a wrapper."""
        if not hasattr(AbstractCapability, "get_wrapper_model"):
            request_context = replace(request_context, model=Tapped(request_context.model, self._tee))
        return await handler(request_context)


class Tapped(WrapperModel):
    """A model whose provider is listened to.

    Args:
        wrapped: The model.
        tee: Takes what the provider sends.
    """

    def __init__(self, wrapped: Model, tee: Tee) -> None:
        super().__init__(wrapped)
        self._tee = tee

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Ask the model, and listen.

        Raises:
            InvalidRequest: Nobody sees what its provider sends.
        """
        check_include(["raw"], raw=shows_events(self.wrapped))
        for model in asked_models(self.wrapped):
            _listen(http_client(model))
        asking = _Request(self._tee)
        opening = self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)
        async with AsyncExitStack() as stack:
            token = _asking.set(asking)
            try:
                stream = await stack.enter_async_context(opening)
            finally:
                _asking.reset(token)
            try:
                yield stream
            finally:
                asking.over = True


@dataclass
class _Request:
    """A request whose responses are told."""

    tee: Tee
    over: bool = False

    def events(self) -> Callable[[bytes], None]:
        """Takes the bytes of one response, however they are cut."""
        self.tee.open()
        parser = Parser()

        def take(piece: bytes) -> None:
            for frame in parser.feed(piece):
                event = _json(frame.data)
                if isinstance(event, dict) and not self.over:
                    self.tee.take(event)

        return take


def _json(text: str) -> Any:
    """An event's data; None for what is no JSON, as the `[DONE]` of OpenAI."""
    try:
        return from_json(text)
    except ValueError:
        return None


def _listen(client: Any) -> None:
    """Look at the responses that an HTTP client gets, from now on."""
    hooks = client.event_hooks["response"]
    if _heard not in hooks:
        hooks.append(_heard)


async def _heard(response: Any) -> None:
    """A response has begun. Its body is copied if a run has asked for it, and it is a stream of events."""
    asking = _asking.get()
    if asking is None or response.status_code != HTTPStatus.OK:
        return
    if response.headers.get("content-type", "").partition(";")[0].strip().lower() != _STREAM:
        return
    response.aiter_bytes = partial(_copied, response.aiter_bytes, asking.events())


async def _copied(
    read: Callable[..., AsyncGenerator[bytes]], take: Callable[[bytes], None], chunk_size: int | None = None
) -> AsyncGenerator[bytes]:
    """The bytes of a body, as its own reader gives them. What can't be told never keeps them from the model."""
    telling = True
    async with aclosing(read(chunk_size)) as pieces:
        async for piece in pieces:
            if telling:
                try:
                    take(piece)
                except Exception as error:  # noqa: BLE001 - a copy is not worth a run
                    telling = False
                    log.warning("raw chunks of a response end early: %s", type(error).__name__)
            yield piece
