"""What a guardrail, a scorer or a judge may know of the run, and how such a function is named and called."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic_ai.messages import ModelMessage

from durable.chunks.base import Json
from durable.errors import ConfigurationError


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
