"""One attempt at a run: drive Pydantic AI's own loop, and write what happens to the run's log.

An attempt ends in one of four ways: the run ends (completed, failed, cancelled), it is handed back to the queue, or its
lease is lost. Only the owner of the lease writes; whoever lost it just stops.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from typing import Any
from uuid import uuid4

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_ai import Agent
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.run import AgentRun
from pydantic_ai.usage import RunUsage
from pydantic_graph import End

from durable.appender import Ending, RunWriter
from durable.chunks import (
    AbortPayload,
    Chunk,
    Error,
    ErrorInfo,
    ErrorPayload,
    FinishReason,
    Start,
    StartPayload,
    ToolError,
    ToolErrorPayload,
    VoidRange,
)
from durable.conversation import Conversation, read_conversation
from durable.definition import AgentDefinition, RunInfo
from durable.errors import InvalidRequest, LeaseLost
from durable.execution.failures import describe, of_deps, places
from durable.execution.recording import Durability, RecordingToolset
from durable.runs import RunRecord, RunRequest, cancelled_chunks
from durable.settings import Settings
from durable.tools import ToolContext
from durable.translate import Translator, to_json_value
from durable.translate.steps import usage_of

log = logging.getLogger(__name__)


class Stop(StrEnum):
    """Why somebody stops an attempt from outside."""

    CANCEL = "cancel"
    HAND_BACK = "hand-back"
    LOST = "lost"


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    HANDED_BACK = "handed-back"
    LOST = "lost"


class Attempt:
    """Executes a claimed run, once.

    Args:
        definition: The agent.
        record: The run, as it was when it was claimed.
        request: What it is asked to do.
        writer: Writes to its log, under the attempt's lease.
        settings: Limits.
    """

    def __init__(
        self, definition: AgentDefinition, record: RunRecord, request: RunRequest, writer: RunWriter, settings: Settings
    ) -> None:
        self.run_id = record.run_id
        self._definition = definition
        self._record = record
        self._request = request
        self._writer = writer
        self._settings = settings
        self._translator = Translator(attempt=writer.lease.token)
        self._task: asyncio.Task[Outcome] | None = None
        self._stopped_by: Stop | None = None
        self._usage = RunUsage()
        self._messages: list[ModelMessage] = []

    def start(self) -> asyncio.Task[Outcome]:
        """Begin, as a task of its own."""
        self._task = asyncio.get_running_loop().create_task(self._drive(), name=f"run-{self.run_id}")
        return self._task

    def stop(self, why: Stop) -> None:
        """End the attempt soon. The first reason stands, but a lost lease overrides all."""
        if why is Stop.LOST:
            self._writer.fail(LeaseLost())
        elif self._stopped_by is not None:
            return
        self._stopped_by = why
        if self._task is not None:
            self._task.cancel()

    async def _drive(self) -> Outcome:
        try:
            return await self._execute()
        except asyncio.CancelledError:
            return await self._stop()
        except LeaseLost:
            return Outcome.LOST
        except RunCancelled:
            return await self._settle(self._cancelled())
        except Exception as error:  # noqa: BLE001 - whatever it was, the run must end
            log.warning("run %s failed: %s at %s", self.run_id, type(error).__name__, places(error))
            return await self._settle(self._failed(describe(error)))

    async def _execute(self) -> Outcome:
        if self._record.cancel_requested:
            return await self._settle(self._cancelled())
        if self._writer.lease.token == 1:
            self._writer.write(Start(payload=StartPayload(id=self._definition.name, message_id=str(uuid4()))))
        conversation = read_conversation(self._request)
        async with self._dependencies() as deps, self._iter(conversation, deps) as run:
            ending = await self._loop(run)
        return await self._settle(ending)

    async def _loop(self, run: AgentRun[Any, Any]) -> tuple[Ending, list[Chunk]]:
        limit = self._request.max_steps or self._definition.max_steps
        node, steps = run.next_node, 0
        while not isinstance(node, End):
            if Agent.is_model_request_node(node):
                if steps == limit:
                    return self._completed(run, [*run.all_messages(), node.request], limited=True)
                steps += 1
                self._begin_step(steps)
                async with node.stream(run.ctx) as stream:
                    await self._pump(stream)
                node = await run.next(node)
                if Agent.is_call_tools_node(node):
                    self._write(self._translator.response(node.model_response))
            elif Agent.is_call_tools_node(node):
                async with node.stream(run.ctx) as stream:
                    await self._pump(stream)
                node = await run.next(node)
                self._write(self._translator.end_step(is_continued=not isinstance(node, End)))
            else:
                node = await run.next(node)
            self._usage, self._messages = run.usage, run.all_messages()
        return self._completed(run, run.all_messages(), limited=False)

    def _begin_step(self, step: int) -> None:
        # Without a checkpoint an attempt starts over: what earlier ones said no longer counts.
        torn = step == 1 and self._writer.lease.last_seq > 0
        void = VoidRange.model_validate({"from": 1, "to": self._writer.lease.last_seq}) if torn else None
        self._write(self._translator.begin_step(step, str(uuid4()), void))

    async def _pump(self, events: Any) -> None:
        async for event in events:
            self._write(self._translator.event(event))
            if self._writer.full:
                await self._writer.room()

    def _write(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._writer.write(chunk)

    def _iter(self, conversation: Conversation, deps: Any) -> AbstractAsyncContextManager[AgentRun[Any, Any]]:
        settings: Any = self._request.model_settings
        return self._definition.agent.iter(
            conversation.prompt,
            message_history=conversation.history or None,
            deps=deps,
            model_settings=settings,
            usage_limits=conversation.usage_limits,
            run_id=f"{self.run_id}.{self._writer.lease.token}",
            conversation_id=self.run_id,
            capabilities=[
                Durability(
                    lambda toolset: RecordingToolset(
                        toolset,
                        record=self,
                        context=self._tool_context,
                        on_tool_error=self._definition.on_tool_error,
                        max_result_bytes=self._settings.max_tool_result_bytes,
                    )
                )
            ],
        )

    def _tool_context(self, call_id: str, name: str) -> ToolContext:
        loop = asyncio.get_running_loop()
        return ToolContext(self.run_id, self._writer.lease.token, call_id, name, self._writer.write, loop)

    def tool_failed(self, tool_call_id: str, tool_name: str, args: dict[str, Any], error: ErrorInfo) -> None:
        """Record the outcome of a tool that raised."""
        self._translator.recorded(tool_call_id)
        payload = ToolErrorPayload(
            tool_call_id=tool_call_id, tool_name=tool_name, args=to_json_value(args), error=error
        )
        self._writer.write(ToolError(payload=payload))

    @asynccontextmanager
    async def _dependencies(self) -> AsyncIterator[Any]:
        """The run's dependencies, from the factory or from the caller's JSON."""
        factory, given = self._definition.deps_factory, self._request.deps
        if factory is None:
            yield self._given_deps(given)
            return
        info = RunInfo(
            self.run_id, self._definition.name, self._writer.lease.token, self._record.json("metadata") or {}, given
        )
        try:
            made = factory(info)
            if inspect.isawaitable(made):
                made = await made
        except Exception as error:
            raise of_deps(error) from error
        if isinstance(made, AbstractAsyncContextManager):
            async with made as deps:
                yield deps
        else:
            yield made

    def _given_deps(self, given: Any) -> Any:
        if given is None:
            return None
        try:
            return TypeAdapter(self._definition.agent.deps_type).validate_python(given)
        except ValidationError as error:
            raise InvalidRequest("deps do not fit the agent's deps_type.") from error

    def _completed(
        self, run: AgentRun[Any, Any], messages: list[ModelMessage], *, limited: bool
    ) -> tuple[Ending, list[Chunk]]:
        self._usage, self._messages = run.usage, messages
        fields: dict[str, bytes | str] = {"newMessages": str(len(run.all_messages()) - len(run.new_messages()))}
        text, extra = _last_text(messages), {}
        if run.result is not None:
            output = run.result.output
            if isinstance(output, str):
                text = output
            else:
                extra["output"] = output
            fields["output"] = orjson.dumps(to_json_value(output))
        finish = self._translator.finish(usage=run.usage, text=text, max_steps_reached=limited, **extra)
        if limited:
            fields["reason"] = "max_steps"
            fields["output"] = orjson.dumps(to_json_value(text))
        return self._ending(Outcome.COMPLETED, fields), [finish.model_copy(update={"final": True})]

    def _failed(self, error: ErrorInfo) -> tuple[Ending, list[Chunk]]:
        chunks: list[Chunk] = [Error(payload=ErrorPayload(error=error))]
        chunks.append(self._last("error"))
        return self._ending(Outcome.FAILED, {"error": error.model_dump_json(exclude_none=True)}), chunks

    def _cancelled(self) -> tuple[Ending, list[Chunk]]:
        asked = self._record.json("cancelRequested") or {}
        abort, _ = cancelled_chunks(AbortPayload.model_validate(asked))
        return self._ending(Outcome.CANCELLED, {}), [abort, self._last("abort")]

    def _last(self, reason: FinishReason) -> Chunk:
        finish = self._translator.finish(reason=reason, usage=self._usage, text="")
        return finish.model_copy(update={"final": True})

    def _ending(self, outcome: Outcome, fields: dict[str, bytes | str]) -> Ending:
        usage = usage_of(self._usage).model_dump_json(by_alias=True, exclude_none=True)
        return Ending(outcome, ModelMessagesTypeAdapter.dump_json(self._messages), {"usage": usage, **fields})

    async def _settle(self, end: tuple[Ending, list[Chunk]]) -> Outcome:
        """Write the end of the run. A cancel that came before wins over completing and failing."""
        ending, chunks = end
        try:
            if await self._writer.finish(ending, *chunks):
                return Outcome(ending.status)
            cancelled, chunks = self._cancelled()
            await self._writer.finish(cancelled, *chunks)
        except LeaseLost:
            return Outcome.LOST
        return Outcome.CANCELLED

    async def _stop(self) -> Outcome:
        match self._stopped_by:
            case Stop.CANCEL:
                return await self._settle(self._cancelled())
            case Stop.LOST:
                return Outcome.LOST
            case _:
                return Outcome.HANDED_BACK


def _last_text(messages: list[ModelMessage]) -> str:
    """The text of the model's last response."""
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            return "".join(part.content for part in message.parts if part.part_kind == "text")
    return ""
