"""Answers from outside to tool calls that wait: who may be asked, what was answered, and that it is answered once."""

from durable.decisions.answers import DEADLINE, HANDLER, LARGEST_ANSWER, LONGEST_ACTOR, LONGEST_REASON, RUN, check_said
from durable.decisions.calls import (
    RECENT_ANSWERS,
    Answer,
    Call,
    Question,
    question_id,
    read_answers,
    read_calls,
    read_decisions,
    verbs_of,
)
from durable.decisions.decisions import OUT_OF_TIME, Decisions, RunAnswers, with_calls

__all__ = [
    "Answer",
    "Call",
    "DEADLINE",
    "Decisions",
    "HANDLER",
    "LARGEST_ANSWER",
    "LONGEST_ACTOR",
    "LONGEST_REASON",
    "OUT_OF_TIME",
    "Question",
    "RECENT_ANSWERS",
    "RUN",
    "check_said",
    "RunAnswers",
    "question_id",
    "read_answers",
    "read_calls",
    "read_decisions",
    "verbs_of",
    "with_calls",
]
