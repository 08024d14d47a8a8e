"""JSON values as a terminal shows them, on one line and not too long, and as options take them."""

from __future__ import annotations

from typing import Final

import typer
from pydantic_core import from_json, to_json

from durable.chunks.base import Json

_WIDTH: Final = 160


def arguments(args: Json) -> str:
    """The arguments of a call, as they would stand between its brackets."""
    if isinstance(args, dict):
        return _cut(", ".join(f"{name}={_compact(value)}" for name, value in args.items()))
    return "" if args is None else short(args)


def short(value: Json) -> str:
    """A value; text without its quotes."""
    return _cut(value if isinstance(value, str) else _compact(value))


def read_json(text: str, option: str) -> Json:
    """The value of an option.

    Raises:
        typer.BadParameter: It is not JSON.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise typer.BadParameter("it is not JSON", param_hint=option) from error


def _compact(value: Json) -> str:
    return to_json(value).decode()


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
