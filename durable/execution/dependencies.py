"""The dependencies of a run: from the agent's factory, or from the caller's JSON."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError

from durable.definition import AgentDefinition, RunInfo
from durable.errors import InvalidRequest
from durable.execution.failures import of_deps


@asynccontextmanager
async def dependencies(definition: AgentDefinition, info: RunInfo) -> AsyncIterator[Any]:
    """Make the dependencies, and unmake them if they are a context manager.

    Raises:
        ConfigurationError: The factory raised.
        InvalidRequest: The caller's JSON does not fit the agent's `deps_type`.
    """
    if definition.deps_factory is None:
        yield _given(definition, info.deps)
        return
    try:
        made = definition.deps_factory(info)
        if inspect.isawaitable(made):
            made = await made
    except Exception as error:
        raise of_deps(error) from error
    if isinstance(made, AbstractAsyncContextManager):
        async with made as deps:
            yield deps
    else:
        yield made


def _given(definition: AgentDefinition, value: Any) -> Any:
    if value is None:
        return None
    try:
        return TypeAdapter(definition.agent.deps_type).validate_python(value)
    except ValidationError as error:
        raise InvalidRequest("deps do not fit the agent's deps_type.") from error
