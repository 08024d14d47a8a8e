"""Goals: a judge says, whenever the model is done, whether the goal is reached, the model has to go on, or a person has
to say something.

A judge that fails does not end the run: the goal is paused, and somebody decides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.usage import RunUsage

from durable.chunks import GoalPayload, Json, ScorerResult
from durable.completion.context import JudgeContext, Overdue, ask, check_names, failure, in_time, name_of
from durable.completion.scoring import Score, result
from durable.errors import ConfigurationError
from durable.translate import to_json_value

log = logging.getLogger(__name__)

RESUME_SCHEMA: Final[dict[str, Json]] = {
    "type": ["object", "null"],
    "properties": {"message": {"type": "string"}, "maxRuns": {"type": "integer", "minimum": 1}},
    "additionalProperties": False,
}
"""Of what a paused goal is resumed with: what the model is told, and how often the judge may be asked in all."""


class GoalVerdict(BaseModel):
    """What a judge says.

    Attributes:
        status: `done`: the goal is reached. `continue`: the model has to go on. `waiting`: only a person can help.
        reason: Why, for the model or the person.
    """

    status: Literal["done", "continue", "waiting"]
    reason: str | None = None


Judge = Callable[[JudgeContext, str, Any], GoalVerdict | Awaitable[GoalVerdict]]
"""Is given the objective and the agent's output."""
Objective = str | Callable[[JudgeContext], str]


@dataclass(frozen=True)
class Goal:
    """Has a judge say whenever the model is done whether the run's goal is reached.

    Attributes:
        objective: The goal, or a function that tells it from the run, always the same.
        judge: A function with a name, or a Pydantic AI agent, which is given objective and output as its prompt.
        max_runs: How often it is asked in a run, at most. Then the goal is paused. Default 50.
        timeout: Seconds for each of its answers; None for no limit. Default 600.
        suppress_feedback: Ask user interfaces not to show what the judge says. The model is told all the same.
    """

    objective: Objective
    judge: Judge | AbstractAgent[Any, Any]
    max_runs: int = 50
    timeout: float | None = 600
    suppress_feedback: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.judge, AbstractAgent):
            check_names([self.judge], "judge")
        if self.max_runs < 1 or (self.timeout is not None and self.timeout <= 0):
            raise ConfigurationError("max_runs and timeout must be more than 0.")

    @property
    def judge_name(self) -> str:
        """What the judge is called."""
        own = self.judge.name if isinstance(self.judge, AbstractAgent) else name_of(self.judge)
        return own or "judge"

    def objective_of(self, ctx: JudgeContext) -> str:
        """The goal of a run."""
        return self.objective if isinstance(self.objective, str) else self.objective(ctx)


async def judge(
    goal: Goal, ctx: JudgeContext, output: Any, budget: int, tell: Callable[[GoalPayload], None]
) -> tuple[GoalPayload, RunUsage | None]:
    """Ask the judge; what it says as observers see it, and the tokens that it took.

    Args:
        goal: What to ask.
        ctx: What it may know.
        output: What it judges.
        budget: How often it may be asked in all.
        tell: Called with what observers are told before it is asked.
    """
    begun, used = time.monotonic(), None
    verdict, failed, timed_out, objective = None, None, False, ""
    try:
        objective = goal.objective_of(ctx)
        tell(_pending(goal, ctx, objective, budget))
        asked = _ask(goal, ctx, objective, output)
        verdict, used = await in_time(ctx, f"the judge {goal.judge_name}", asked, goal.timeout)
    except Exception as error:  # noqa: BLE001 - the user's own code, or a model's provider; a person decides
        log.warning("run %s: the judge %s", ctx.run_id, failure(error))
        failed, timed_out = f"The judge {failure(error)}.", isinstance(error, Overdue)
    done = verdict is not None and verdict.status == "done"
    said = Score(float(done), reason=verdict.reason if verdict else failed)
    found = result(goal.judge_name, said, begun, errored=failed is not None)
    fields: dict[str, Any] = {"objective": objective, "iteration": ctx.iteration, "max_runs": budget}
    return GoalPayload(
        **fields,
        **_standing(verdict, failed, exhausted=ctx.iteration >= budget),
        passed=done,
        results=[found],
        duration=found.duration,
        timed_out=timed_out,
        suppress_feedback=goal.suppress_feedback,
    ), used


def _pending(goal: Goal, ctx: JudgeContext, objective: str, budget: int) -> GoalPayload:
    """What observers are told while nobody has judged yet."""
    return GoalPayload(
        objective=objective,
        iteration=ctx.iteration,
        max_runs=budget,
        passed=False,
        status="active",
        results=[],
        duration=0,
        timed_out=False,
        max_runs_reached=False,
        suppress_feedback=goal.suppress_feedback,
        pending=True,
    )


async def _ask(goal: Goal, ctx: JudgeContext, objective: str, output: Any) -> tuple[GoalVerdict, RunUsage | None]:
    if not isinstance(goal.judge, AbstractAgent):
        return GoalVerdict.model_validate(await ask(ctx, goal.judge, objective, output)), None
    text = output if isinstance(output, str) else orjson.dumps(to_json_value(output)).decode()
    prompt = f"<objective>\n{objective}\n</objective>\n<output>\n{text}\n</output>\n{_QUESTION}"
    answer = await goal.judge.run(prompt, output_type=GoalVerdict)
    return answer.output, answer.usage


_QUESTION: Final = (
    "Judge whether the output reaches the objective: 'done' if it does; 'continue' if more work is needed, with what is"
    " missing as the reason; 'waiting' if the work can't go on without an answer from the user."
)


def _standing(verdict: GoalVerdict | None, failed: str | None, *, exhausted: bool) -> dict[str, Any]:
    """How the goal stands after a verdict, or without one."""
    if verdict is None:
        return {
            "status": "paused",
            "judge_failed": True,
            "paused_reason": failed,
            "max_runs_reached": exhausted,
        }
    reason = {} if verdict.reason is None else {"reason": verdict.reason}
    if verdict.status == "done":
        return {"status": "done", "max_runs_reached": False, "should_continue": False, **reason}
    if verdict.status == "waiting":
        waiting = "The goal waits for an answer from the user."
        fields = {"waiting_for_user": True, "paused_reason": verdict.reason or waiting}
        return {"status": "paused", "max_runs_reached": exhausted, **fields, **reason}
    if exhausted:
        spent = "The judge was asked as often as it may be."
        return {"status": "paused", "max_runs_reached": True, "paused_reason": spent, **reason}
    return {"status": "active", "max_runs_reached": False, "should_continue": True, **reason}


def feedback(payload: GoalPayload) -> str:
    """What the model is told when the goal is not reached."""
    said: list[ScorerResult] = payload.results
    because = f"\n{said[0].reason}" if said and said[0].reason and not payload.judge_failed else ""
    return f"The goal is not reached yet: {payload.objective}{because}\nGo on until it is reached."
