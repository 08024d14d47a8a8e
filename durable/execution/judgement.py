"""Who judges an attempt's run: its guardrails, its scorers, and its goal's judge.

Each verdict is stored in the same step as its chunk, beside the tool calls in the ledger, and before anybody else is
asked: an attempt that takes the run over uses it, and asks nobody again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic_ai import Agent, ModelRequestNode, RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.tools import DeferredToolRequests
from pydantic_graph import End

from durable import ledger
from durable.chunks import (
    IsTaskComplete,
    IsTaskCompletePayload,
    Json,
    ScorerResult,
    TripwireChunk,
    TripwirePayload,
    VoidRange,
)
from durable.completion import scoring
from durable.completion.context import JudgeContext, name_of
from durable.completion.guardrails import Tripwire, guard
from durable.completion.scoring import TaskCompletion
from durable.definition import AgentDefinition, RunInfo
from durable.execution.pursuit import Pursuit
from durable.execution.verdicts import Verdicts, dump, to_text
from durable.execution.waits import Waits
from durable.writer import RunWriter

GOAL_STOPPED: Final = "goal_stopped"
"""How a run ended whose paused goal was declined."""
MAX_ITERATIONS: Final = "max_iterations"
"""How a run ended whose scorers were asked as often as they may be."""
COMPLETE: Final = "task-complete"


@dataclass(frozen=True)
class Tripped:
    """A guardrail has stopped the run.

    Attributes:
        told: `reason`, `processorId` and, if there are any, `metadata`.
    """

    told: dict[str, Json]


class Judgement:
    """The verdicts on one attempt's run.

    Args:
        definition: The agent: what judges its runs.
        info: The run.
        deps: The agent's dependencies.
        writer: Writes to the run's log, under the attempt's lease.
        entries: The run's ledger; what is stored is put there, too.
        waits: What was answered to calls that wait.
        threads: Where functions that are not asynchronous are called.
        got_on: Called with each new verdict.

    Attributes:
        reason: How the run ends, if that is not by the model alone.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        info: RunInfo,
        deps: Any,
        writer: RunWriter,
        entries: dict[str, bytes],
        waits: Waits,
        threads: Executor | None,
        got_on: Callable[[], None],
    ) -> None:
        self.reason: str | None = None
        self._definition = definition
        self._info = info
        self._deps = deps
        self._writer = writer
        self._waits = waits
        self._threads = threads
        self._verdicts = Verdicts(writer, entries, got_on)

    async def admit(self, messages: Sequence[ModelMessage]) -> Tripped | None:
        """Have the input guardrails look at what the run begins with, once.

        Raises:
            GuardrailFailed: One of them can't say, or not in time.
        """
        ctx = self._context(messages)
        for guardrail in self._definition.input_guardrails:
            kept = f"input-guardrail-{name_of(guardrail)}"
            if (known := self._verdicts.known(0, kept)) is None:
                await self._verdicts.stored()
                said = await guard(ctx, guardrail, messages, self._definition.guardrail_seconds)
                known = self._keep_guarded(0, kept, name_of(guardrail), said)
            if known.value is not None:
                return Tripped(orjson.loads(known.value))
        return None

    async def release(
        self, step: int, output: Any, messages: Sequence[ModelMessage], withheld: Sequence[str], first: int
    ) -> Tripped | None:
        """Have the output guardrails look at what the run is about to return, once.

        Args:
            step: The step that it comes from.
            output: What they judge.
            messages: The conversation.
            withheld: The calls of that step whose arguments are the output.
            first: The seq of the step's first chunk.

        Raises:
            GuardrailFailed: One of them can't say, or not in time.
            LeaseLost: The run has another owner.
        """
        ctx = self._context(messages)
        for guardrail in self._definition.output_guardrails:
            kept = f"output-guardrail-{name_of(guardrail)}"
            if (known := self._verdicts.known(step, kept)) is None:
                await self._verdicts.stored()
                said = await guard(ctx, guardrail, output, self._definition.guardrail_seconds)
                void = VoidRange.model_validate({"from": first, "to": self._writer.next_seq - 1})
                more = {"void": void, **({"withheld": list(withheld)} if withheld else {})}
                known = self._keep_guarded(step, kept, name_of(guardrail), said, **more)
            if known.value is not None:
                return Tripped(orjson.loads(known.value))
        return None

    async def go_on(self, ctx: RunContext[Any], step: int, output: Any) -> ModelRequest | None:
        """The model is done. What it is told if that is not enough; None when it is.

        Raises:
            RunSuspended: Somebody has to decide.
            LeaseLost: The run has another owner.
        """
        if isinstance(output, DeferredToolRequests) or self._waits.unresolved:
            return None
        told: str | None = None
        if self._definition.completion is not None:
            told = await self._complete(self._definition.completion, ctx, step, output)
        if told is None and self.reason is None and self._definition.goal is not None:
            pursuit = Pursuit(self._definition.goal, self._verdicts, self._waits, self._context)
            told = await pursuit.go_on(ctx, step, output)
            self.reason = GOAL_STOPPED if pursuit.stopped else None
        return None if told is None else ModelRequest(parts=[UserPromptPart(content=told)])

    async def _complete(self, completion: TaskCompletion, ctx: RunContext[Any], step: int, output: Any) -> str | None:
        known = self._verdicts.known(step, COMPLETE)
        if known is not None:
            payload = IsTaskCompletePayload.model_validate_json(known.value)
        else:
            payload = await self._score(completion, ctx, step, output)
            outcome = ledger.Outcome(value=dump(payload))
            self._verdicts.keep(step, COMPLETE, outcome, IsTaskComplete(payload=payload))
        if payload.passed:
            return None
        if payload.max_iteration_reached:
            self.reason = MAX_ITERATIONS
            return None
        return scoring.feedback(completion, payload.results)

    async def _score(
        self, completion: TaskCompletion, ctx: RunContext[Any], step: int, output: Any
    ) -> IsTaskCompletePayload:
        iteration, begun = 1 + sum(1 for _ in self._verdicts.before(COMPLETE)), time.monotonic()
        names = {name_of(scorer): f"scorer-{name_of(scorer)}" for scorer in completion.scorers}
        await self._verdicts.stored()
        said = {
            name: outcome for name, kept in names.items() if (outcome := self._verdicts.known(step, kept)) is not None
        }
        results, timed_out = await scoring.score(
            completion,
            self._context(ctx.messages, iteration),
            output,
            {name: ScorerResult.model_validate_json(outcome.value) for name, outcome in said.items()},
            lambda found: self._verdicts.keep(step, names[found.scorer_id], ledger.Outcome(value=dump(found))),
        )
        passed = completion.passed(results)
        reasons = [f"{found.scorer_name}: {found.reason}" for found in results if found.reason and not found.passed]
        return IsTaskCompletePayload(
            iteration=iteration,
            passed=passed,
            results=results,
            duration=round((time.monotonic() - begun) * 1000),
            timed_out=timed_out,
            **({"reason": "; ".join(reasons)} if reasons and not passed else {}),
            max_iteration_reached=not passed and iteration >= completion.max_iterations,
            suppress_feedback=completion.suppress_feedback,
        )

    def _context(self, messages: Sequence[ModelMessage], iteration: int = 1) -> JudgeContext:
        info = self._info
        return JudgeContext(
            run_id=info.run_id,
            agent=info.agent,
            attempt=info.attempt,
            metadata=info.metadata,
            deps=self._deps,
            messages=tuple(messages),
            iteration=iteration,
            threads=self._threads,
        )

    def _keep_guarded(
        self, step: int, kept: str, guardrail: str, said: Tripwire | None, **fields: Any
    ) -> ledger.Outcome:
        if said is None:
            outcome = ledger.Outcome(value=None)
            self._verdicts.keep(step, kept, outcome)
            return outcome
        told = {**said.to_json(), "processorId": guardrail}
        outcome = ledger.Outcome(value=to_text(told))
        self._verdicts.keep(step, kept, outcome, TripwireChunk(payload=TripwirePayload(**told, **fields)))
        return outcome


class Judging(AbstractCapability[Any]):
    """The capability that sends the agent's loop back to the model while the run is not done.

    Args:
        go_on: Tells from the output what the model is told, if it is to go on.
    """

    def __init__(self, go_on: Callable[[RunContext[Any], Any], Awaitable[ModelRequest | None]]) -> None:
        self._go_on = go_on

    def get_ordering(self) -> CapabilityOrdering:
        """Outside of all others: what they make of the end is what is judged."""
        return CapabilityOrdering(position="outermost")

    async def wrap_node_run(self, ctx: RunContext[Any], *, node: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Let the node run; if it ends the agent's loop, ask whether it may."""
        following = await handler(node)
        if isinstance(following, End) and Agent.is_call_tools_node(node):
            request = await self._go_on(ctx, following.data.output)
            if request is not None:
                return ModelRequestNode(request=request)
        return following
