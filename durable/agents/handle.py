"""A run in the hands of who asked for it: look at it, follow it, wait for it, cancel it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic_ai.agent import AbstractAgent
from pydantic_ai.messages import ModelMessage

from durable.backend import Backend
from durable.budgets import read_raise
from durable.checkpoint import decode_messages
from durable.chunks import Chunk, Usage
from durable.chunks.base import Json
from durable.conversation import Prompt, prompt_to_json
from durable.decisions import Answer
from durable.errors import RunCancelled, RunFailed, StoreUnavailable
from durable.files import RunFile
from durable.journal import read_cursor
from durable.outputs import output_type_of, restore_output
from durable.runs import RunRecord, read_until_idle
from durable.threads import given
from durable.views import RunStatus, RunView


@dataclass(frozen=True)
class RunResult:
    """What a completed run returned.

    Attributes:
        run_id: The run.
        output: As the bare agent returns it, of the agent's output type.
        usage: The tokens of the whole run.
        messages: The whole conversation.
        reason: How it ended, if that is special: `tripwire`, `max_steps`, `max_iterations`, `goal_stopped`,
            `client_tools`.
        tripwire: What a guardrail said that has stopped it; there is no output then.
    """

    run_id: str
    output: Any
    usage: Usage
    messages: tuple[ModelMessage, ...]
    new_from: int
    reason: str | None = None
    tripwire: dict[str, Json] | None = None

    def all_messages(self) -> list[ModelMessage]:
        """The whole conversation, with the history that it started from."""
        return list(self.messages)

    def new_messages(self) -> list[ModelMessage]:
        """The conversation without the history that it started from."""
        return list(self.messages[self.new_from :])


class RunHandle:
    """One run. Losing the handle loses nothing: `agent.handle(run_id)` gives another."""

    def __init__(self, backend: Backend, agent: AbstractAgent[Any, Any], run_id: str) -> None:
        self.run_id = run_id
        self._backend = backend
        self._agent = agent

    def __repr__(self) -> str:
        return f"RunHandle({self.run_id!r})"

    async def status(self) -> RunView:
        """What is known of the run now.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        record = await self._backend.runs.get(self.run_id)
        [view] = await self._backend.views([record])
        return view

    async def wait_for_tasks(self, until_idle: bool | float = True) -> None:  # noqa: FBT001, FBT002 - the value itself
        """Let the run go on when its background tasks end after its turn, and wait for them for 5 minutes in a row, or
        for so many seconds; the longest that anybody has said counts. Nothing changes when it has ended.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        seconds = read_until_idle(until_idle)
        if seconds is not None:
            await self._backend.wait_for_tasks(self.run_id, seconds)

    def observe(self, offset: int | str = 0, *, tree: bool = False) -> AsyncGenerator[Chunk]:
        """The run's chunks, from the start or after the first `offset`, as they are written; ends with the run.

        Args:
            offset: How many chunks its reader has; or the `cursor` of the last one.
            tree: Read the runs that it has started with it, their tasks and sub-agents' runs, each chunk with its own
                `run_id`. Then only a chunk's `cursor` tells where to go on. The run's own final chunk is the last.

        Raises:
            UnknownRun, RunExpired, InvalidRequest, StoreUnavailable: see `Observer.pages`.
        """
        if tree:
            return self._backend.trees.chunks(self.run_id, str(offset))
        return self._backend.observer.chunks(self.run_id, read_cursor(offset))

    def __aiter__(self) -> AsyncGenerator[Chunk]:
        return self.observe()

    async def result(self) -> RunResult:
        """Wait for the run's end, and take what it returned.

        Raises:
            RunFailed, RunCancelled: It did not complete; `failure_code` tells why.
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer, or this process stops listening. The run goes on.
        """
        record = await self._ended()
        view = record.view()
        if view.status is RunStatus.CANCELLED:
            raise RunCancelled(self.run_id, "run_cancelled", "The run was cancelled.")
        if view.error is not None:
            raise RunFailed(self.run_id, view.error.code, view.error.message)
        runs = self._backend.runs
        request = await runs.request(self.run_id)
        conversation = await given(runs, record, request)
        messages = decode_messages(conversation.history, await runs.checkpoints(self.run_id))
        return RunResult(
            run_id=self.run_id,
            output=restore_output(output_type_of(self._agent, request), record.fields),
            usage=view.usage or Usage(),
            messages=tuple(messages),
            new_from=self._first_new(messages, resumed=conversation.prompt is None),
            reason=view.reason,
            tripwire=view.tripwire,
        )

    async def file(self, file_id: str) -> RunFile:
        """A file that a chunk of the run names by its `file_id`.

        Raises:
            UnknownFile: The run has no such file.
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        return await self._backend.runs.file(self.run_id, file_id)

    async def cancel(self, reason: str | None = None) -> bool:
        """Ask the run to end; False when it is cancelled already.

        Raises:
            RunEnded: It has completed or failed.
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        return await self._backend.cancel(self.run_id, reason=reason)

    async def approve(
        self,
        tool_call_id: str,
        *,
        args: Mapping[str, Json] | None = None,
        actor: str | None = None,
        question: str | None = None,
    ) -> None:
        """Let a call that waits for approval be made. The same answer again changes nothing.

        Args:
            tool_call_id: The call, as in the run's `pending`.
            args: Arguments to use in place of the model's.
            actor: Who answers, for the log.
            question: What is answered, as in the `question_id` of the run's `pending` or of a chunk: a call may be
                asked about again. Default: what it was asked last.

        Raises:
            InvalidRequest: The call does not wait for an approval, or the arguments do not fit the tool's schema.
            UnknownRun, RunExpired, UnknownCall: There is no such run, call or question.
            AlreadyDecided: It was answered in another way.
            RunEnded: The run ended before it was answered.
            StoreUnavailable: Redis does not answer.
        """
        edited = None if args is None else dict(args)
        answer = Answer(kind="approve", args=edited, actor=actor)
        await self._backend.decide(self.run_id, tool_call_id, answer, question=question)

    async def decline(
        self, tool_call_id: str, *, reason: str | None = None, actor: str | None = None, question: str | None = None
    ) -> None:
        """Refuse a call that waits. The model is told the reason, and goes on. Raises what `approve` raises."""
        answer = Answer(kind="decline", reason=reason, actor=actor)
        await self._backend.decide(self.run_id, tool_call_id, answer, question=question)

    async def resume(
        self, tool_call_id: str, data: Json = None, *, actor: str | None = None, question: str | None = None
    ) -> None:
        """Give a suspended call its data, or the result of a call that is executed elsewhere. Raises what `approve`
        raises."""
        answer = Answer(kind="resume", data=data, actor=actor)
        await self._backend.decide(self.run_id, tool_call_id, answer, question=question)

    async def send(self, content: Prompt, *, message_id: str | None = None, actor: str | None = None) -> bool:
        """Tell the model something before its next request; one that is about to end goes on. False when this was done
        before.

        Args:
            content: Text, or Pydantic AI user content.
            message_id: An own id for it: the same message with the same id is told once.
            actor: Who says so, for the log.

        Raises:
            InvalidRequest: The content or an id is none.
            RunConflict: The id was used for another message.
            RunEnded: The run has ended, or was told to.
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        said = prompt_to_json(content)
        return await self._backend.send(self.run_id, said, message_id=message_id, actor=actor)

    async def raise_budget(
        self, *, max_tokens: int | None = None, max_seconds: float | None = None, actor: str | None = None
    ) -> None:
        """Let the run go on that is suspended because it reached a budget. The same again changes nothing.

        Args:
            max_tokens: Tokens that it may use from now on, in all.
            max_seconds: Seconds that it may be executed from now on, in all.
            actor: Who raises it, for the log.

        Raises:
            InvalidRequest: Nothing is raised, or not above what the run has used.
            BudgetNotReached: It is not suspended because of a budget.
            RunEnded: It has ended.
            UnknownRun, RunExpired: There is no such run.
            StoreUnavailable: Redis does not answer.
        """
        wanted = read_raise(max_tokens=max_tokens, max_seconds=max_seconds, actor=actor)
        await self._backend.raise_budget(self.run_id, wanted)

    def _first_new(self, messages: Sequence[ModelMessage], *, resumed: bool) -> int:
        """Where the run's own messages begin: Pydantic AI marks them with the run's id. How many came before does not
        tell it, as history processors may drop some.

        Args:
            messages: The whole conversation.
            resumed: Whether the request that the run began with was given to it; it is marked, but not new.
        """
        own = f"{self.run_id}."
        first = next((i for i, message in enumerate(messages) if (message.run_id or "").startswith(own)), len(messages))
        return first + 1 if resumed and first < len(messages) else first

    async def _ended(self) -> RunRecord:
        record = await self._backend.runs.get(self.run_id)
        if not record.status.ended:
            async with aclosing(self._backend.observer.pages(self.run_id, record.last_seq)) as pages:
                async for _ in pages:
                    pass
            record = await self._backend.runs.get(self.run_id)
        if not record.status.ended:  # the hub has dismissed its readers
            raise StoreUnavailable("The run has not ended, and this process does not listen to it any more.")
        return record
