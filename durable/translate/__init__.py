"""Pydantic AI's events become chunks. Pure: no I/O, no store, no agent; what comes in decides what goes out."""

from __future__ import annotations

from durable.translate.objects import Shape
from durable.translate.outcomes import call_chunk, outcome_chunk
from durable.translate.translator import Translator
from durable.translate.values import to_json_value

__all__ = ["Shape", "Translator", "call_chunk", "outcome_chunk", "to_json_value"]
