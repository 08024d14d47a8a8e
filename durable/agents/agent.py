"""The wrapped agent and its methods.

Both kinds write the same log in the same way. They differ in who executes a run: a Celery worker (`EventedAgent`), or a
task of its own in the process that took the request (`DurableAgent`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self, Unpack
from weakref import WeakKeyDictionary

import fakeredis
from pydantic import SecretStr, ValidationError
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import UsageLimits

from durable.abilities import Abilities
from durable.agents.handle import RunHandle, RunResult
from durable.agents.sub_agent import sub_agents
from durable.backend import Backend
from durable.chunks import Chunk
from durable.chunks.base import Json
from durable.conversation import Prompt, limits_to_json, messages_to_json, prompt_to_json, read_conversation
from durable.definition import (
    AgentDefinition,
    AgentOptions,
    define,
)
from durable.errors import InvalidRequest
from durable.runs import (
    ClientTool,
    NewRun,
    OnBusy,
    OnClientTools,
    OutputMode,
    RunRequest,
    check_policy,
    read_until_idle,
)
from durable.runs.record import Include, OnBudget
from durable.settings import Settings
from durable.store import Store

Cache = str | Settings | None


class DurableAgent:
    """A Pydantic AI agent whose runs outlive whoever asked for them.

    Made by `create_durable_agent`; runs are executed by this process, as tasks of their own.
    """

    def __init__(self, definition: AgentDefinition, cache: Cache) -> None:
        self.definition: AgentDefinition = definition
        self._cache = cache
        self._backends: WeakKeyDictionary[asyncio.AbstractEventLoop, Backend] = WeakKeyDictionary()
        self._memory = fakeredis.FakeServer(server_type="redis")

    @property
    def name(self) -> str:
        """The agent's name: its address."""
        return self.definition.name

    @property
    def agent(self) -> AbstractAgent[Any, Any]:
        """The Pydantic AI agent itself."""
        return self.definition.agent

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def __aenter__(self) -> Self:
        """Connect; leaving is `aclose()`. A process that keeps its agents for as long as it lives needs neither.

        Raises:
            ConfigurationError: It needs Redis, and none is configured.
        """
        await self._backend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[ModelMessage | dict[str, Any]] | None = None,
        message_history: Sequence[ModelMessage] | None = None,
        run_id: str | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        model_settings: ModelSettings | None = None,
        usage_limits: UsageLimits | None = None,
        max_steps: int | None = None,
        retries: int | None = None,
        deps: Json = None,
        require_tool_approval: bool | str | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        on_budget: OnBudget | None = None,
        step_seconds: float | None = None,
        thread_id: str | None = None,
        resource_id: str | None = None,
        on_busy: OnBusy | None = None,
        background: bool | None = None,
        until_idle: bool | float | None = None,
        instructions: str | None = None,
        active_tools: Sequence[str] | None = None,
        output_schema: Mapping[str, Json] | None = None,
        output_mode: OutputMode | None = None,
        client_tools: Sequence[ClientTool | Mapping[str, Json]] | None = None,
        on_client_tools: OnClientTools | None = None,
        client_tool_seconds: float | None = None,
        include: Sequence[Include] | None = None,
    ) -> RunHandle:
        """Start a run and return at once. The run goes on whatever happens to the caller.

        Args:
            prompt: What the user says.
            messages: Instead of a prompt: the conversation, ending with the user's message. `{"role", "content"}`
                objects, or Pydantic AI messages.
            message_history: Pydantic AI messages before the prompt.
            run_id: The caller's own id. The same id with the same request finds the run that is there.
            idempotency_key: Makes the request safe to repeat without an own id.
            metadata: Attached to the run.
            model_settings: As of the bare agent.
            usage_limits: As of the bare agent.
            max_steps: Model requests, at most; default: the agent's.
            retries: How often in a row it is tried again when the model's provider fails; default: 0.
            deps: JSON for the agent's `deps_factory` or `deps_type`.
            require_tool_approval: Whether every tool call has to be approved, or the name of the agent's policy that
                tells which; beside those that have to be anyway.
            max_tokens: Tokens that the run may use, in all; default: no limit. It is looked at before each model
                request.
            max_seconds: Seconds that it may be executed, over all attempts; default: no limit. Waiting does not count.
            on_budget: `suspend`, the default: a run that reaches one of these waits until that is raised
                (`RunHandle.raise_budget`). `end`: it completes with what it has.
            step_seconds: Seconds that a model request and the tools that it calls may take; longer fails the run
                (`step_timeout`). Default: the agent's.
            thread_id: The conversation that the run goes on with; it is begun when there is none.
            resource_id: Whose conversation that is. It has to be the same each time.
            on_busy: With a run of the conversation that has not ended: `queue` (default) waits for it, `reject`
                refuses.
            background: False: no tool call of the run is made in the background.
            until_idle: The run goes on, under its own id, when its background tasks have ended, and ends when there is
                nothing left to wait for. It waits for them for so many seconds in a row; 300 when True. Default: it
                ends with its turn, and tasks that are left go on without it.
            instructions: In place of the agent's own instructions. Its system prompts, and what its toolsets say of
                themselves, stay.
            active_tools: Of the agent's tools, only these are given to the model.
            output_schema: JSON schema of an object: the run's output, in place of the agent's output type.
            output_mode: How the model is asked for that: `tool` (default), `native` or `prompted`.
            client_tools: Tools that the caller executes.
            on_client_tools: `suspend` (default): a call of one waits for `RunHandle.resume`. `end`: the run ends with
                it, and another run may begin with its result.
            client_tool_seconds: Seconds that such a call waits before it is declined; default: for ever.
            include: Types of chunks that are only written on request. `raw`: the events of the model's provider, as
                they come; of OpenAI's and Anthropic's models. `watch`: each change of the run's state.

        Raises:
            InvalidRequest: The request is not of the right shape.
            RunConflict: The id or key belongs to another request.
            ThreadBusy: The conversation has a run that is suspended, or any with `on_busy="reject"`.
            ThreadConflict: The conversation belongs to another resource.
            ConfigurationError: No Redis is configured.
            StoreUnavailable: Redis does not answer.
        """
        try:
            request = RunRequest(
                prompt=None if prompt is None else prompt_to_json(prompt),
                messages=None if messages is None else _messages(messages),
                message_history=None if message_history is None else messages_to_json(message_history),
                model_settings=None if model_settings is None else dict(model_settings),
                usage_limits=None if usage_limits is None else limits_to_json(usage_limits),
                max_steps=max_steps,
                retries=retries,
                deps=deps,
                require_tool_approval=require_tool_approval,
                max_tokens=max_tokens,
                max_seconds=max_seconds,
                on_budget=on_budget,
                step_seconds=step_seconds,
                thread_id=thread_id,
                resource_id=resource_id,
                on_busy=on_busy,
                background=background,
                max_idle=read_until_idle(until_idle),
                instructions=instructions,
                active_tools=None if active_tools is None else list(active_tools),
                output_schema=None if output_schema is None else dict(output_schema),
                output_mode=output_mode,
                client_tools=None
                if client_tools is None
                else [ClientTool.model_validate(tool) for tool in client_tools],
                on_client_tools=on_client_tools,
                client_tool_seconds=client_tool_seconds,
                include=None if include is None else list(include),
            )
            request.to_json()
        except (ValidationError, ValueError) as error:
            raise InvalidRequest("The request has no JSON form, or a value is out of range.") from error
        read_conversation(request)
        check_policy(request, self.definition.policies)
        Abilities.of(self.definition.agent).check(request)
        backend = await self._backend()
        definition = self.definition
        new = NewRun(
            agent=definition.name,
            kind=definition.kind,
            queue=definition.queue_of(backend.settings.prefix),
            request=request,
            retention=definition.retention or backend.settings.retention_seconds,
            run_id=run_id,
            idempotency_key=idempotency_key,
            metadata=metadata,
        )
        record, _ = await backend.submit(new)
        return RunHandle(backend, definition.agent, record.run_id)

    async def generate(self, prompt: Prompt | None = None, **options: Any) -> RunResult:
        """Start a run and wait for what it returns. Takes what `stream` takes; raises what `stream` and
        `RunHandle.result` raise."""
        return await (await self.stream(prompt, **options)).result()

    async def observe(self, run_id: str, *, offset: int | str = 0, tree: bool = False) -> AsyncGenerator[Chunk]:
        """The chunks of a run, from the start or after the first `offset`, as they are written; ends with the run. With
        `tree`, those of the runs that it has started come with them; see `RunHandle.observe`.

        Raises:
            UnknownRun, RunExpired, InvalidRequest, StoreUnavailable: see `Observer.pages`.
        """
        async for chunk in (await self.handle(run_id)).observe(offset, tree=tree):
            yield chunk

    async def handle(self, run_id: str) -> RunHandle:
        """A handle of a run that was started before, here or elsewhere."""
        return RunHandle(await self._backend(), self.definition.agent, run_id)

    async def aclose(self) -> None:
        """Close the connections of this event loop; runs that this process executes are handed back."""
        backend = self._backends.pop(asyncio.get_running_loop(), None)
        if backend is not None:
            await backend.__aexit__()

    async def _backend(self) -> Backend:
        loop = asyncio.get_running_loop()
        backend = self._backends.get(loop)
        if backend is None:
            self._forget_closed_loops()
            backend = self._backends[loop] = self._connect()
            await backend.__aenter__()
        return backend

    def _forget_closed_loops(self) -> None:
        """A backend knows its loop, so that neither would ever be forgotten by itself."""
        for loop in [loop for loop in self._backends if loop.is_closed()]:
            backend = self._backends.pop(loop, None)
            if backend is not None:
                backend.abandon()

    def _connect(self) -> Backend:
        settings, in_memory = self._settings()
        store = Store.in_memory(self._memory, prefix=settings.prefix) if in_memory else Store.of(settings)
        definitions = {known.name: known for known in (self.definition, *sub_agents(self.definition.agent))}
        return Backend(store, settings, definitions, celery=False)

    def _settings(self) -> tuple[Settings, bool]:
        """The settings, and whether the store is in memory."""
        match self._cache:
            case Settings():
                return self._cache, self._cache.redis_url is None
            case str():
                return Settings(redis_url=SecretStr(self._cache)), False
            case None:
                settings = Settings()
                return settings, settings.redis_url is None


class EventedAgent(DurableAgent):
    """A Pydantic AI agent whose runs are executed by Celery workers. Made by `create_evented_agent`."""

    def _connect(self) -> Backend:
        settings, _ = self._settings()
        return Backend(Store.of(settings), settings)


def create_durable_agent(
    agent: AbstractAgent[Any, Any], *, cache: Cache = None, **options: Unpack[AgentOptions]
) -> DurableAgent:
    """Wrap an agent. Its runs are executed by the process that takes the request, as tasks of their own; a worker that
    has the agent may execute them too.

    Args:
        agent: Any Pydantic AI agent with a name.
        cache: Redis URL, or settings. Default: `DURABLE_REDIS_URL`; without it a store in memory, for as long as
            the process lives.
        options: See `AgentOptions`.

    Raises:
        ConfigurationError: The agent has no name, or an option does not fit.
    """
    return DurableAgent(define(agent, "durable", **options), cache)


def create_evented_agent(
    agent: AbstractAgent[Any, Any], *, cache: Cache = None, **options: Unpack[AgentOptions]
) -> EventedAgent:
    """Wrap an agent. Its runs are executed by Celery workers that have the agent: fire and forget.

    Takes what `create_durable_agent` takes. Needs Redis: using it without `cache=` and without `DURABLE_REDIS_URL` is a
    `ConfigurationError` that says so.

    Raises:
        ConfigurationError: The agent has no name, or an option does not fit.
    """
    return EventedAgent(define(agent, "evented", **options), cache)


def _messages(messages: Sequence[ModelMessage | dict[str, Any]]) -> list[Json]:
    if all(isinstance(message, dict) for message in messages):
        return list(messages)
    return messages_to_json([message for message in messages if not isinstance(message, dict)])
