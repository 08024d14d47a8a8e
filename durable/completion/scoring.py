"""Task completion: scorers that say whether what the model came to is what was asked for.

A scorer that fails, or does not answer in time, counts as not passed, and is told as errored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from durable.chunks import ScorerResult
from durable.completion.context import JudgeContext, Overdue, ask, check_names, failure, in_time, name_of
from durable.errors import ConfigurationError

log = logging.getLogger(__name__)

Strategy = Literal["all", "any"]


@dataclass(frozen=True)
class Score:
    """What a scorer says.

    Attributes:
        score: From 0 to 1.
        passed: Whether that is enough; by default only 1 is.
        reason: Why, for the model and for whoever may see the run.
    """

    score: float
    passed: bool | None = None
    reason: str | None = None


Scorer = Callable[[JudgeContext, Any], Score | bool | float | Awaitable[Score | bool | float]]
"""Is given the agent's output. `True` is a score of 1."""


@dataclass(frozen=True)
class TaskCompletion:
    """Has scorers judge the output whenever the model is done. If they are not content, the model is told what they
    say, and goes on in the same run.

    Attributes:
        scorers: Functions with names; they are asked at the same time.
        strategy: Whether all of them have to pass, or any one.
        timeout: Seconds for all of them; None for no limit. Default 600.
        max_iterations: How often they are asked in a run, at most. Then it ends with what it has. Default 10.
        suppress_feedback: Ask user interfaces not to show what the scorers say. The model is told all the same.
    """

    scorers: Sequence[Scorer]
    strategy: Strategy = "all"
    timeout: float | None = 600
    max_iterations: int = 10
    suppress_feedback: bool = False

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ConfigurationError("TaskCompletion needs scorers.")
        check_names(self.scorers, "scorer")
        if self.strategy not in {"all", "any"}:
            raise ConfigurationError("The strategy of TaskCompletion is 'all' or 'any'.")
        if self.max_iterations < 1 or (self.timeout is not None and self.timeout <= 0):
            raise ConfigurationError("max_iterations and timeout must be more than 0.")

    def passed(self, results: Sequence[ScorerResult]) -> bool:
        """Whether these results are enough."""
        found = [result.passed for result in results]
        return all(found) if self.strategy == "all" else any(found)


async def score(
    completion: TaskCompletion,
    ctx: JudgeContext,
    output: Any,
    known: Mapping[str, ScorerResult],
    keep: Callable[[ScorerResult], None],
) -> tuple[list[ScorerResult], bool]:
    """Ask the scorers; their results in order, and whether the time was up.

    Args:
        completion: What to ask.
        ctx: What they may know.
        output: What they judge.
        known: What some of them have said before, by their names: they are not asked again.
        keep: Called with each result as soon as it is there.
    """
    late: list[str] = []
    asked = [scorer for scorer in completion.scorers if name_of(scorer) not in known]
    # All begin now, so the time that each may take is the time of all.
    found = await asyncio.gather(*(_one(completion, ctx, scorer, output, keep, late) for scorer in asked))
    results = dict(known) | {result.scorer_id: result for result in found}
    return [results[name_of(scorer)] for scorer in completion.scorers], bool(late)


async def _one(
    completion: TaskCompletion,
    ctx: JudgeContext,
    scorer: Scorer,
    output: Any,
    keep: Callable[[ScorerResult], None],
    late: list[str],
) -> ScorerResult:
    name, begun = name_of(scorer), time.monotonic()
    try:
        said = await in_time(ctx, f"the scorer {name}", ask(ctx, scorer, output), completion.timeout)
        found = result(name, read_score(said), begun)
    except Exception as error:  # noqa: BLE001 - the user's own code; it counts as not passed
        log.warning("run %s: the scorer %s %s", ctx.run_id, name, failure(error))
        why = Score(0, passed=False, reason=f"The scorer {failure(error)}.")
        found = result(name, why, begun, errored=True)
        if isinstance(error, Overdue):
            late.append(name)
            return found  # who was late is stored with the verdict of all
    keep(found)
    return found


def read_score(said: Any) -> Score:
    """What a scorer returned, as a score.

    Raises:
        TypeError: It is none.
    """
    match said:
        case Score():
            return said
        case bool() | int() | float():
            return Score(float(said))
    raise TypeError


def result(name: str, said: Score, begun: float, *, errored: bool = False) -> ScorerResult:
    """A score as observers see it."""
    fields: dict[str, Any] = {
        "score": said.score,
        "passed": said.score >= 1 if said.passed is None else said.passed,
        "scorer_id": name,
        "scorer_name": name,
        "duration": round((time.monotonic() - begun) * 1000),
    }
    if said.reason is not None:
        fields["reason"] = said.reason
    if errored:
        fields["errored"] = True
    return ScorerResult(**fields)


def feedback(completion: TaskCompletion, results: Sequence[ScorerResult]) -> str:
    """What the model is told when the results are not enough."""
    needed = "All of these checks have to pass" if completion.strategy == "all" else "One of these checks has to pass"
    lines = [
        f"- {found.scorer_name}: {'passed' if found.passed else 'not passed'}{_because(found.reason)}"
        for found in results
    ]
    return "\n".join(["The task is not complete yet.", f"{needed}:", *lines, "Go on until the task is complete."])


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""
