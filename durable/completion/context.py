"""What a guardrail, a scorer or a judge may know of the run, how such a function is named and called, and how long it
is waited for.

Invariant: nobody waits longer than the limit, whatever the function does when it is interrupted; and what it says after
the limit counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from pydantic_ai.messages import ModelMessage

from durable.chunks.base import Json
from durable.errors import ConfigurationError

log = logging.getLogger(__name__)

T = TypeVar("T")
MOMENT: Final = 0.2
"""Seconds that who is interrupted has to end properly; then it is left to itself."""
_left_alone: Final[set[asyncio.Task[Any]]] = set()
"""Keeps those that were left to themselves from being forgotten in the middle; each takes itself out when it ends."""


@dataclass(frozen=True)
class JudgeContext:
    """What a guardrail, a scorer or a judge may know of the run.

    Attributes:
        run_id: The run.
        agent: The agent's name.
        attempt: The attempt, from 1.
        metadata: What the caller attached to the run.
        deps: The agent's dependencies, as its tools have them.
        messages: The conversation so far.
        iteration: How often the same was judged in this run, this time included.
        threads: Where functions that are not asynchronous are called.
    """

    run_id: str
    agent: str
    attempt: int
    metadata: dict[str, Json]
    deps: Any
    messages: Sequence[ModelMessage] = ()
    iteration: int = 1
    threads: Executor | None = field(default=None, repr=False)


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function; of an object that can be called, its `name` or its class's."""
    own = getattr(function, "__name__", None) or getattr(function, "name", None)
    return str(own or type(function).__name__)


def check_names(functions: Iterable[Callable[..., Any]], what: str) -> None:
    """Refuse what can't be called, and two of one name: their verdicts are stored by it.

    Raises:
        ConfigurationError: One of them does not fit.
    """
    seen: set[str] = set()
    for function in functions:
        if not callable(function):
            raise ConfigurationError(f"A {what} is a function.")
        name = name_of(function)
        if name == "<lambda>" or name in seen:
            raise ConfigurationError(f"Each {what} needs a name of its own: {name!r} is not one.")
        seen.add(name)


async def ask(ctx: JudgeContext, function: Callable[..., Any], *args: Any) -> Any:
    """What a function says; one that is not asynchronous is called in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(ctx, *args)
    call = partial(contextvars.copy_context().run, function, ctx, *args)
    said = await asyncio.get_running_loop().run_in_executor(ctx.threads, call)
    return await said if inspect.isawaitable(said) else said


class Overdue(Exception):
    """Who was asked did not answer in time."""


class Interrupted(Exception):
    """Who was asked ended as cancelled, though nobody had cancelled it."""


async def in_time(ctx: JudgeContext, name: str, answer: Coroutine[Any, Any, T], seconds: float | None) -> T:
    """Wait for what somebody says, for so long at most; None for no limit.

    Who is late, or is asked by a run that ends, is interrupted. One that does not heed that is left to itself; a thread
    goes on, and is counted with those of tools that hang.

    Raises:
        Overdue: It took longer.
        Interrupted: It was cancelled by itself.
        Exception: Whatever it raises.
    """
    asked = asyncio.get_running_loop().create_task(answer, name=f"ask-{name}")
    late = True
    try:
        await asyncio.wait([asked], timeout=seconds)
        late = not asked.done()
    finally:
        if late:
            await _give_up(ctx, name, asked)
    if late:
        raise Overdue
    if asked.cancelled():
        raise Interrupted
    return asked.result()


async def _give_up(ctx: JudgeContext, name: str, asked: asyncio.Task[Any]) -> None:
    _left_alone.add(asked)
    asked.add_done_callback(_forget)
    asked.cancel()
    await asyncio.wait([asked], timeout=MOMENT)
    if not asked.done():
        log.warning("run %s: %s does not end although it was interrupted; nobody waits for it", ctx.run_id, name)


def _forget(asked: asyncio.Task[Any]) -> None:
    _left_alone.discard(asked)
    if not asked.cancelled():
        asked.exception()  # nobody is told of it any more


def failure(error: Exception) -> str:
    """Why somebody could not say, without the exception's text: what follows "The judge"."""
    match error:
        case Overdue():
            return "did not answer in time"
        case Interrupted():
            return "was cancelled"
        case _:
            return f"raised {type(error).__name__}"
