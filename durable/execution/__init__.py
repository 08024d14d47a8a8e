"""Executing runs: the attempt, and the engine that a process executes them with."""

from durable.execution.attempt import Outcome
from durable.execution.engine import Engine

__all__ = ["Engine", "Outcome"]
