"""The model's choice of where a call is made: one argument more, of tools that leave it to the model.

It is taken out of the arguments before the tool's own validation sees them, and put beside what that makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from pydantic_ai import RunContext
from pydantic_ai.toolsets import ToolsetTool
from pydantic_core import from_json, to_json

from durable.background.dispositions import CHOICES

CHOICE: Final = "_background"
"""The argument."""
_SCHEMA: Final = {
    "type": "string",
    "enum": list(CHOICES),
    "description": (
        "Where to make this call. deferred: in the background, and go on at once; its result is told later. "
        "awaited: in the background, and wait for it. foreground: here and now."
    ),
}


def choosable(tool: ToolsetTool[Any]) -> ToolsetTool[Any]:
    """The tool as the model is shown it where it may choose: with that argument."""
    schema = tool.tool_def.parameters_json_schema
    schema = {**schema, "properties": {**schema.get("properties", {}), CHOICE: _SCHEMA}}
    shown = replace(tool.tool_def, parameters_json_schema=schema)
    check = tool.args_validator_func
    return replace(
        tool,
        tool_def=shown,
        args_validator=_Choosing(tool.args_validator),
        args_validator_func=None if check is None else _unchosen(check),
    )


def _unchosen(check: Callable[..., Any]) -> Callable[..., Any]:
    """The tool's own validator, which knows nothing of the choice."""

    def checks(ctx: RunContext[Any], /, **args: Any) -> Any:
        args.pop(CHOICE, None)
        return check(ctx, **args)

    return checks


class _Choosing:
    """Validates arguments without the choice. One that is none of the three is taken for no choice."""

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def validate_json(self, input: Any, *, allow_partial: Any = "off", **options: Any) -> Any:  # noqa: A002 - as theirs
        try:
            found = from_json(input)
        except ValueError:
            found = None
        if not isinstance(found, dict) or CHOICE not in found:
            return self._validator.validate_json(input, allow_partial=allow_partial, **options)
        chosen = found.pop(CHOICE)
        # As JSON again: a strict tool takes no date from a text otherwise.
        rest = to_json(found, inf_nan_mode="constants")
        return _with(chosen, self._validator.validate_json(rest, allow_partial=allow_partial, **options))

    def validate_python(self, input: Any, *, allow_partial: Any = "off", **options: Any) -> Any:  # noqa: A002
        if not isinstance(input, dict) or CHOICE not in input:
            return self._validator.validate_python(input, allow_partial=allow_partial, **options)
        rest = {name: value for name, value in input.items() if name != CHOICE}
        return _with(input[CHOICE], self._validator.validate_python(rest, allow_partial=allow_partial, **options))


def _with(chosen: Any, found: dict[str, Any]) -> dict[str, Any]:
    return {**found, CHOICE: chosen} if chosen in CHOICES else found
