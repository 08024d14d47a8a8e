"""The pursuit of a goal: its judge is asked whenever the model is done, and the run waits for somebody where it must.

A goal that is paused waits as a tool call does: by a call id of its own, for an answer that is given once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson
from pydantic import TypeAdapter
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.usage import RunUsage

from durable import ledger
from durable.chunks import GoalChunk, GoalPayload
from durable.completion import goal as goals
from durable.completion.context import JudgeContext
from durable.completion.goal import Goal
from durable.decisions import Question, question_id
from durable.execution.verdicts import Verdicts, dump
from durable.execution.waits import Waits
from durable.suspension import RunSuspended, Suspension
from durable.writer import Waiting

GOAL_PAUSED: Final = "goal_paused"
"""The reason of a run that is suspended until somebody resumes its goal."""

_USAGE = TypeAdapter(RunUsage)


class Pursuit:
    """The pursuit of one attempt's goal.

    Args:
        goal: The goal, and who judges.
        verdicts: Where its verdicts are stored.
        waits: What was answered to calls that wait.
        context: Makes what the judge may know.

    Attributes:
        stopped: Whether somebody has given the goal up.
    """

    def __init__(
        self,
        goal: Goal,
        verdicts: Verdicts,
        waits: Waits,
        context: Callable[[Sequence[ModelMessage], int], JudgeContext],
    ) -> None:
        self.stopped = False
        self._goal = goal
        self._verdicts = verdicts
        self._waits = waits
        self._context = context

    async def go_on(self, ctx: RunContext[Any], step: int, output: Any) -> str | None:
        """What the model is told if the goal is not reached; None when the run may end.

        Raises:
            RunSuspended: Somebody has to decide.
            LeaseLost: The run has another owner.
        """
        name, round_ = f"goal-{step}", 0
        while True:
            known = self._verdicts.known(step, name, round_)
            if known is None:
                known = await self._judge(ctx, step, name, round_, output)
            if known.aside:
                ctx.usage.incr(_USAGE.validate_python(known.aside["usage"]))
            if known.suspended is None:
                payload = GoalPayload.model_validate_json(known.value)
                return None if payload.passed else goals.feedback(payload)
            payload = GoalPayload.model_validate(known.suspended.payload)
            answer = self._waits.known(ledger.judgement(name), round_)
            if answer is None:
                raise RunSuspended(GOAL_PAUSED)
            if answer.kind != "resume":
                self.stopped = True
                return None
            message = (answer.data or {}).get("message")
            if message is not None or not payload.judge_failed:
                return message or goals.feedback(payload)
            round_ += 1  # nobody has judged yet

    async def _judge(self, ctx: RunContext[Any], step: int, name: str, round_: int, output: Any) -> ledger.Outcome:
        before = list(self._verdicts.before("goal-"))
        context = self._context(ctx.messages, 1 + len(before))
        await self._verdicts.stored()
        payload, used = await goals.judge(self._goal, context, output, self._budget(before), self._tell)
        aside = None if used is None else {"usage": _USAGE.dump_python(used, mode="json", exclude_defaults=True)}
        if payload.status != "paused":
            outcome = ledger.Outcome(value=dump(payload), aside=aside)
            self._verdicts.keep(step, name, outcome, GoalChunk(payload=payload))
            return outcome
        payload.tool_call_id, payload.question_id = ledger.judgement(name), question_id(step, round_)
        told = orjson.loads(dump(payload))
        pause = Suspension(kind="resume", payload=told, schema_=goals.RESUME_SCHEMA)
        question = Question(
            tool_name="goal",
            kind="resume",
            payload=told,
            resume_schema=goals.RESUME_SCHEMA,
            agent=context.agent,
        )
        waiting = Waiting(ledger.judgement(name), step, round_, question.to_json())
        outcome = ledger.Outcome(suspended=pause, aside=aside)
        self._verdicts.keep(step, name, outcome, GoalChunk(payload=payload), round_=round_, waiting=waiting)
        await self._verdicts.stored()
        return outcome

    def _tell(self, pending: GoalPayload) -> None:
        self._verdicts.tell(GoalChunk(payload=pending))

    def _budget(self, before: Sequence[tuple[str, ledger.Outcome]]) -> int:
        """How often the judge may be asked in all, after what was said when the goal was resumed."""
        budget = self._goal.max_runs
        for field, outcome in before:
            answer = self._verdicts.answer_to(field)
            if outcome.suspended is None or answer is None:
                continue
            payload = GoalPayload.model_validate(outcome.suspended.payload)
            given = (answer.data or {}).get("maxRuns")
            if given is not None:
                budget = int(given)
            elif payload.max_runs_reached:
                budget = payload.iteration + self._goal.max_runs
        return budget
