"""When a run may begin, and when it is done: guardrails, scorers and goals."""

from durable.completion.context import JudgeContext
from durable.completion.goal import Goal, GoalVerdict
from durable.completion.guardrails import InputGuardrail, OutputGuardrail, Tripwire
from durable.completion.scoring import Score, Scorer, TaskCompletion

__all__ = [
    "Goal",
    "GoalVerdict",
    "InputGuardrail",
    "JudgeContext",
    "OutputGuardrail",
    "Score",
    "Scorer",
    "TaskCompletion",
    "Tripwire",
]
