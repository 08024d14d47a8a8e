"""Driving Pydantic AI's own loop: its nodes become steps, its events chunks, its responses checkpoints.

Invariant: whatever is completed is stored before anything is built on it. A response's checkpoint is written with its
last chunk; a tool's body runs only when its start is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol
from uuid import uuid4

from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import UnexpectedModelBehavior, UserError
from pydantic_ai.messages import (
    DeferredToolRequestsEvent,
    DeferredToolResultsEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    RetryPromptPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.run import AgentRun
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RunUsage
from pydantic_graph import End

from durable import ledger
from durable.checkpoint import Progress, Stored
from durable.chunks import (
    BudgetReachedPayload,
    Chunk,
    File,
    VoidRange,
)
from durable.decisions import RunAnswers
from durable.definition import AgentDefinition, RunInfo
from durable.errors import ToolResultInvalid
from durable.execution.aside import Asides
from durable.execution.budget import Budget, BudgetSpent
from durable.execution.capabilities import Durability, Healing, Telling
from durable.execution.delegation import Delegation
from durable.execution.handlers import Deferral
from durable.execution.judgement import Judgement, Judging, Tripped
from durable.execution.leftovers import Leftovers
from durable.execution.patience import ToolTimedOut
from durable.execution.policies import ApprovalPolicies
from durable.execution.record import CallRecord
from durable.execution.recording import RecordingToolset
from durable.execution.restoration import Restoration
from durable.execution.start import StartPoint
from durable.execution.tail import Tail
from durable.execution.tee import Tapping, Tee
from durable.execution.terms import Terms
from durable.execution.waits import Waits
from durable.files import set_apart
from durable.outputs import shape_of
from durable.probes import Point, Probe, silent
from durable.runs import RunRequest
from durable.settings import Settings
from durable.suspension import RunSuspended
from durable.tools import ToolContext
from durable.translate import Translator
from durable.writer import Note, RunWriter

log = logging.getLogger(__name__)

MISSING: Any = object()
CLIENT_TOOLS: Final = "client_tools"
"""How a run ended whose caller is to make calls of it."""


class Boundary(Protocol):
    """Called where nothing is torn.

    `advanced` tells whether this attempt has got on, `ending` whether the turn is about to end.
    """

    def __call__(self, *, advanced: bool, ending: bool) -> None: ...


@dataclass(frozen=True)
class TurnEnd:
    """How the loop ended.

    Attributes:
        output: The agent's output; `MISSING` when there is none.
        limited: Whether the step limit came first.
        budget: The budget that came first, if one did.
        tripped: The guardrail that has stopped it.
        reason: How it ended, if that was not by the model alone.
        heard: How many messages the model was told, if one more would make it go on.
    """

    output: Any
    limited: bool = False
    budget: BudgetReachedPayload | None = None
    tripped: Tripped | None = None
    reason: str | None = None
    heard: int | None = None


class Turn:
    """One attempt's way through the agent's loop.

    Args:
        definition: The agent.
        request: What the run is asked to do.
        start: Where to start.
        writer: Writes to the run's log, under the attempt's lease.
        settings: Limits.
        boundary: Called between steps; may raise, to hand the run over there.
        answers: What is answered to calls that wait.
        budget: What the attempt may still use.
        delegation: Makes what begins the tasks of the attempt.
        leftovers: Makes what closes the calls that the run goes on without.
        hear: Told of what tools say.
        tries_left: How often the call of a background task may be made again if its tool raises.
        threads: Where guardrails, scorers and judges are called that are not asynchronous.
        probe: Passed at each point.

    Attributes:
        usage: Of the run so far.
        messages: The conversation so far.
        stored: What the checkpoints have.
        record: What is recorded of the tool calls.
        waits: The calls that wait for an answer from outside.
        delegation: The calls that are made in the background.
        leftovers: Closes the calls that the run goes on without.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        request: RunRequest,
        start: StartPoint,
        writer: RunWriter,
        settings: Settings,
        boundary: Boundary,
        answers: RunAnswers,
        budget: Budget,
        delegation: Callable[[Waits, Sequence[str]], Delegation],
        leftovers: Callable[[CallRecord], Leftovers],
        tries_left: int = 0,
        hear: Callable[[Chunk], None] = lambda _: None,
        threads: Executor | None = None,
        probe: Probe = silent,
    ) -> None:
        self._probe = probe
        self._tries_left = tries_left
        self._hear = hear
        self._threads = threads
        self._definition = definition
        self._request = request
        self._start = start
        self._writer = writer
        self._settings = settings
        self._boundary = boundary
        self._budget = budget
        self.translator = Translator(attempt=writer.lease.token)
        limit = settings.max_tool_result_bytes
        self.record = CallRecord(writer, self.translator, start.ledger, limit, probe)
        self.leftovers = leftovers(self.record)
        self._policies = ApprovalPolicies(definition, asked=request.require_tool_approval)
        self._terms = Terms(definition.agent, request, lambda: self.record.step)
        self._settled: list[ModelRequestPart] = []
        self._asides = Asides()
        self._tee = Tee(self._say) if "raw" in (request.include or ()) else None
        self._done = False
        self._message_id = ""
        self._before = start.progress.first if start.progress else 0
        self._tail = start.tail
        self._ledger = start.ledger
        self._void = start.tail.torn
        self._restoration = Restoration(start, self._asides)
        denied = self.translator.recorded
        self.waits = Waits(
            writer,
            definition.name,
            start.ledger,
            start.decisions,
            answers,
            denied,
            self.record.outcomes,
            self._terms.left_to_caller,
            self._terms.brought,
        )
        progress = start.progress
        self.delegation = delegation(self.waits, progress.told if progress else ())
        self.usage = copy(progress.usage) if progress else RunUsage()
        self.messages: list[ModelMessage] = list(progress.messages if progress else start.conversation.history)
        stored = [] if request.tool_call is not None else self.messages
        self.stored = Stored(stored, progress.tools if progress else None, progress.told if progress else ())
        if progress is not None:
            self._resume(progress)

    def _resume(self, progress: Progress) -> None:
        self.record.step = progress.steps
        self.translator.resume(
            progress.messages[len(self._start.conversation.history) :], message_id=progress.message_id
        )
        for call in self._tail.called:
            self.translator.called(call)
        for call in self._tail.settled:
            self.translator.recorded(call)

    async def run(self, info: RunInfo, deps: Any) -> TurnEnd:
        """Go through the loop to its end, with guardrails before it and after it.

        Args:
            info: The run.
            deps: The agent's dependencies.

        Raises:
            LeaseLost: The run has another owner.
            GuardrailFailed: A guardrail can't say.
            RunSuspended: Nothing is left to do until somebody answers.
            Exception: Whatever the agent raises.
        """
        judgement = Judgement(
            self._definition, info, deps, self._writer, self._ledger, self.waits, self._threads, self._judged
        )
        if self._start.progress is None and (tripped := await judgement.admit(self._asked())) is not None:
            return TurnEnd(MISSING, tripped=tripped)
        end = await self._loop(deps, judgement)
        if self._request.tool_call is not None:
            return end
        output = last_text(self.messages) if end.output is MISSING else end.output
        withheld = self.translator.output_calls
        tripped = await judgement.release(self.record.step, output, self.messages, withheld, self._first)
        if tripped is None:
            heard = self.delegation.heard if self._done else None
            return replace(end, reason=end.reason or judgement.reason, heard=heard)
        self.translator.withhold()
        self.messages = _without_last_response(self.messages)
        return TurnEnd(MISSING, tripped=tripped)

    def _asked(self) -> list[ModelMessage]:
        """What the run begins with."""
        history, prompt = self._start.conversation.history, self._start.conversation.prompt
        return [*history, *([] if prompt is None else [ModelRequest(parts=[UserPromptPart(content=prompt)])])]

    def _judged(self) -> None:
        self.record.advanced = True

    async def _loop(self, deps: Any, judgement: Judgement) -> TurnEnd:
        async with self._iter(deps, judgement) as run:
            self._restoration.restore(run)
            self.translator.expect(shape_of(run.ctx.deps.output_schema))
            node = run.next_node
            # A hook around the run may have answered in the agent's place.
            while run.result is None and not isinstance(node, End):
                if Agent.is_model_request_node(node):
                    end = self._limited(run)
                    if end is not None:
                        self.messages = [*run.all_messages(), node.request]
                        return end
                    node = await self._ask_model(run, node)
                elif Agent.is_call_tools_node(node):
                    node = await self._call_tools(run, node)
                    if node is None:
                        return self._left_to_caller(run)
                    if self._request.tool_call is not None:
                        self.messages = run.all_messages()
                        return TurnEnd(self._came_to(node))
                else:
                    node = await run.next(node)
                    self._restoration.restore_messages(run, node)
                self.usage, self.messages = run.usage, run.all_messages()
        # Only now: hooks after the run may change its result, and those on errors may make one.
        result = run.result
        if result is None:
            raise UnexpectedModelBehavior("The run ended without a result.")
        self.usage, self.messages = run.usage, result.all_messages()
        return TurnEnd(result.output)

    def _left_to_caller(self, run: AgentRun[Any, Any]) -> TurnEnd:
        """The end of a turn some of whose calls the caller makes: the conversation has the results of the others."""
        messages = run.all_messages()
        last = max(i for i, message in enumerate(messages) if isinstance(message, ModelResponse))
        made = [ModelRequest(parts=self._settled)] if self._settled else []
        self.usage, self.messages = run.usage, [*messages[: last + 1], *made]
        return TurnEnd(MISSING, reason=CLIENT_TOOLS)

    def _came_to(self, node: Any) -> ledger.Outcome:
        """What the call of a background task came to; what the model would be told of one that was not even made."""
        if self.record.came_to is not None:
            return self.record.came_to
        parts = node.request.parts if Agent.is_model_request_node(node) else []
        told = [part.model_response() for part in parts if isinstance(part, RetryPromptPart)]
        told += [part.model_response_str() for part in parts if isinstance(part, ToolReturnPart)]
        return ledger.Outcome(retry=told[0] if told else "The call was not made.")

    def _limited(self, run: AgentRun[Any, Any]) -> TurnEnd | None:
        """How the turn ends before the next model request, if a limit is reached.

        Raises:
            BudgetSpent: The run has to wait until a budget is raised.
        """
        if self._restoration.completed is not None:
            return None
        if self.record.step == self._limit:
            return TurnEnd(MISSING, limited=True)
        reached = self._budget.reached(run.usage.total_tokens)
        if reached is None:
            return None
        self.usage = run.usage
        if not self._budget.ends:
            raise BudgetSpent(reached)
        return TurnEnd(MISSING, limited=False, budget=reached)

    async def _go_on(self, judgement: Judgement, ctx: RunContext[Any], output: Any) -> ModelRequest | None:
        """The model is done. What it is told if the run is not; None when it is."""
        waits = isinstance(output, DeferredToolRequests) or self.waits.unresolved
        if not waits:
            if self.waits.waited:
                await self.leftovers.close()
            news = await self.delegation.go_on(ctx.usage)
            if news is not None:
                return news
        told = await judgement.go_on(ctx, self.record.step, output)
        self._done = told is None and not waits
        return told

    def turn_of_caller(self) -> list[Chunk]:
        """The chunks that end a turn after which the run waits for nothing but calls that its caller makes: who reads
        knows by them that it is to make them. None when the log has them, or the run waits for others, too."""
        waiting = self.waits.waiting_tools
        return [] if self._tail.step_finished or not waiting or waiting - self._terms.brought else self.turn_ended()

    def turn_ended(self) -> list[Chunk]:
        """The chunks that end a turn after which the run waits."""
        ended = [] if self._tail.step_finished else self.translator.end_step(is_continued=False)
        return [*ended, self.translator.finish(usage=self.usage, text=last_text(self.messages))]

    @property
    def _limit(self) -> int:
        return self._request.max_steps or self._definition.max_steps

    async def _ask_model(self, run: AgentRun[Any, Any], node: Any) -> Any:
        if self._restoration.completed is not None:
            return await self._restoration.give_completed(run, node)
        self._add_news(node, run.usage)
        self._budget.begin_step()
        self.record.step += 1
        self._message_id, before = str(uuid4()), copy(run.usage)
        self._write(self.translator.begin_step(self.record.step, self._message_id, self._void))
        self._void, self._tail = None, Tail()
        self._probe(Point.MODEL_BEFORE)
        if self._tee is None:
            following = await run.next(node)
        else:
            with self._tee.step():
                following = await run.next(node)
        self._probe(Point.MODEL_AFTER)
        if Agent.is_call_tools_node(following):
            progress = Progress(
                messages=run.all_messages(),
                before=before,
                usage=run.usage,
                steps=self.record.step,
                message_id=self._message_id,
                tool_retries=self._restoration.tool_retries,
                output_retries=getattr(run.ctx.state, "output_retries_used", 0),
                tools=_given_tools(run),
                enqueued=self._asides.enqueued(run),
                told=tuple(self.delegation.told),
                first=self._first,
            )
            self._keep(progress, self.translator.response(following.model_response))
            self._boundary(advanced=True, ending=not following.model_response.tool_calls)
        else:
            # The response was not accepted, and another one is asked for: what was said of it does not count.
            self._budget.end_step()
            self._void = await self._void_step()
        return following

    async def _call_tools(self, run: AgentRun[Any, Any], node: Any) -> Any:
        """Make the calls of a response. Returns the node that comes then; None when the caller makes the others."""
        self._budget.begin_step()
        self._settled = []
        self.record.outcomes.clear()
        self.waits.begin_step(self.record.step, {call.tool_call_id: call for call in node.model_response.tool_calls})
        following = await self._made(run, node)
        if self.waits.waited:
            await self._writer.flush()  # others have written to the log: the next seq is known only now
        self._budget.end_step()
        if self._request.tool_call is not None:
            return following
        ended = following is None or isinstance(following, End)
        chunks = self.translator.end_step(is_continued=not ended)
        if not self._tail.step_finished:
            self._write(chunks)
        if following is not None and Agent.is_model_request_node(following):
            self._add_news(following, run.usage)
        if not ended:
            self._boundary(advanced=self.record.advanced, ending=False)
        return following

    async def _made(self, run: AgentRun[Any, Any], node: Any) -> Any:
        """What comes after the calls of a response; None when none but the caller's own are left.

        Raises:
            RunSuspended: Some of them wait.
        """
        waits = self.waits
        try:
            following = await run.next(node)
        except UserError as error:  # Pydantic AI has no other way to end a step whose calls wait
            if waits.unresolved:
                raise RunSuspended(waits.reason) from error
            if waits.left and waits.asked:
                return None
            raise
        if waits.unresolved:
            raise RunSuspended(waits.reason)
        ended = isinstance(following, End) and isinstance(following.data.output, DeferredToolRequests)
        return None if waits.left and ended else following

    def _add_news(self, node: Any, usage: RunUsage) -> None:
        """Tell the model, with a request, what it has not been told."""
        if parts := self.delegation.news(usage):
            node.request = replace(node.request, parts=[*node.request.parts, *parts])

    def _keep(self, progress: Progress, chunks: list[Chunk]) -> None:
        """Write a response's last chunks, and with the very last one its checkpoint."""
        self._write(chunks[:-1])
        self._writer.write(chunks[-1], Note(checkpoint=self.stored.encode(progress)))
        self.record.advanced = True

    @property
    def _first(self) -> int:
        """The seq of the chunk that begins the newest step."""
        return self._writer.step_seq or self._before

    async def _void_step(self) -> VoidRange:
        """All that was said since the newest step began."""
        await self._writer.flush()  # others may have written to the log, too
        return VoidRange.model_validate({"from": self._first, "to": self._writer.next_seq - 1})

    async def _tell(self, events: AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Write what a node says, and give it on."""
        heard = self._restoration.completed is not None  # the log has it all
        async for event in events:
            if not heard:
                await self._tell_one(event)
            yield event

    async def _tell_one(self, event: Any) -> None:
        if isinstance(event, DeferredToolRequestsEvent):
            self.waits.deferred(event.requests)
        if isinstance(event, FunctionToolResultEvent):
            self._settled.append(event.part)
            if event.content is not None:
                self._settled.append(UserPromptPart(content=event.content))
        if isinstance(event, DeferredToolResultsEvent):
            await self.waits.decided(event.results)
        if self.translator.begins_anew(event):
            void = await self._void_step()
            self._write(self.translator.begin_again(self.record.step, self._message_id, void, event))
        if self._tee is not None:
            self._tee.release()
        self._write(self.translator.event(event))
        if self._writer.full:
            await self._writer.room()

    def _write(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._say(chunk)

    @asynccontextmanager
    async def _iter(self, deps: Any, judgement: Judgement) -> AsyncIterator[AgentRun[Any, Any]]:
        prompt, history, usage = self._restoration.begin()
        run_id = self._writer.lease.run_id
        async with AsyncExitStack() as stack:
            # Only while it begins: what the agent's own tools ask of the same agent is no part of this run.
            with self._terms.instructed():
                run = await stack.enter_async_context(
                    self._definition.agent.iter(
                        prompt,
                        message_history=history or None,
                        deps=deps,
                        model_settings=self._terms.settings(),
                        usage=usage,
                        usage_limits=self._start.conversation.usage_limits,
                        # Pydantic AI refuses a run id that the history has.
                        run_id=f"{run_id}.{self._writer.lease.token}",
                        conversation_id=self._request.thread_id or run_id,
                        capabilities=[
                            Durability(self._wrap),
                            Healing(self.record, self._asides),
                            Telling(self._tell),
                            Deferral(self.waits.resolve),
                            *self._restoration.resumption(),
                            *([] if self._tee is None else [Tapping(self._tee)]),
                            # Also for what somebody may want of it by then.
                            Judging(partial(self._go_on, judgement)),
                            *self._terms.offer(),
                        ],
                        **self._terms.output(),
                    )
                )
            yield run

    def _wrap(self, toolset: Any) -> RecordingToolset:
        return RecordingToolset(
            toolset,
            record=self.record,
            asides=self._asides,
            context=self._tool_context,
            on_tool_error=self._definition.on_tool_error,
            max_result_bytes=self._settings.max_tool_result_bytes,
            entered=self._entered,
            waits=self.waits,
            needs_approval=self._policies.apply,
            delegation=self.delegation,
            idempotency_key=self._idempotency_key,
            again=self._again,
            task=self._request.tool_call,
        )

    def _again(self, error: BaseException) -> bool:
        """Whether the call of a background task is made again, later."""
        given_up = isinstance(error, ToolTimedOut | ToolResultInvalid) or not isinstance(error, Exception)
        return self._tries_left > 0 and not given_up

    def _tool_context(self, call_id: str, name: str) -> ToolContext:
        lease = self._writer.lease
        return ToolContext(
            run_id=lease.run_id,
            attempt=lease.token,
            tool_call_id=call_id,
            tool_name=name,
            idempotency_key=self._idempotency_key(call_id),
            write=self._say,
            room=self._writer.room,
            loop=asyncio.get_running_loop(),
        )

    def _idempotency_key(self, call_id: str) -> str:
        """The key of a call of this step, also where a task makes it."""
        if self._request.tool_call is not None:
            return self._request.tool_call.idempotency_key
        step = self.record.step
        return f"{self._start.maker_of(step, self._writer.lease.run_id)}:{ledger.key(step, call_id)}"

    def _say(self, chunk: Chunk) -> None:
        """Write what is said."""
        note = None
        if isinstance(chunk, File):
            run_id, limit = self._writer.lease.run_id, self._settings.max_inline_file_bytes
            chunk, file = set_apart(chunk, run_id, limit)
            note = None if file is None else Note(file=file, progress=False)
        self._writer.write(chunk, note)
        self._hear(chunk)

    def _entered(self, ctx: RunContext[Any]) -> None:
        self._restoration.entered(ctx, advanced=self.record.advanced)


def _given_tools(run: AgentRun[Any, Any]) -> frozenset[str] | None:
    """The tools that the model was given at first. Pydantic AI tells it of any other in the conversation."""
    names = getattr(run.ctx.deps, "established_tool_names", None)
    return None if names is None else frozenset(names)


def last_text(messages: list[ModelMessage]) -> str:
    """The text of the model's last response."""
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            return "".join(part.content for part in message.parts if part.part_kind == "text")
    return ""


def _without_last_response(messages: list[ModelMessage]) -> list[ModelMessage]:
    """The conversation up to the model's last response, without it and what follows it."""
    last = max((i for i, message in enumerate(messages) if isinstance(message, ModelResponse)), default=len(messages))
    return messages[:last]
