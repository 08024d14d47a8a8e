"""What the tool itself has against an answer that fitted its schema: the call is then asked about again.

Invariant: no body is executed with arguments or data from a person that its own validation refuses. What is told of a
fault is its place and its kind, never a value or a validator's own text.
"""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.toolsets import ToolsetTool

from durable import exact_json
from durable.chunks.base import Issue, Json
from durable.schemas import MOST_PROBLEMS, issue
from durable.suspension import Suspension, type_of


class AnswerRefused(Exception):
    """The tool's own validation refuses an answer."""

    def __init__(self, issues: list[Issue]) -> None:
        super().__init__()
        self.issues = issues


async def edited(tool: ToolsetTool[Any], ctx: RunContext[Any], args: dict[str, Json]) -> dict[str, Any]:
    """Arguments that a call was approved with, as the tool takes them.

    Raises:
        AnswerRefused: Its own validation refuses them.
        ApprovalRequired, CallDeferred: Its validator wants to have somebody asked.
    """
    # As JSON, which the model's are too: a strict tool takes no date from a text otherwise.
    try:
        found = dict(tool.args_validator.validate_json(exact_json.dumps(args), context=ctx.validation_context))
        if tool.args_validator_func is not None:
            said = tool.args_validator_func(ctx, **found)
            if inspect.isawaitable(said):
                await said
    except ValidationError as error:
        raise AnswerRefused(issues_of(error, "args")) from error
    except (ModelRetry, ToolFailed) as error:
        raise AnswerRefused([issue(["args"], "args_validator")]) from error
    return found


def check_data(asked: Suspension, data: Json) -> None:
    """Look at the data that a tool asked for, if the type that it is to be of is known here.

    Raises:
        AnswerRefused: It is not of that type.
    """
    kind = type_of(asked.model)
    if kind is None:
        return  # `resume_data` looks at it in the tool
    try:
        TypeAdapter(kind).validate_json(exact_json.dumps(data))
    except ValidationError as error:
        raise AnswerRefused(issues_of(error, "data")) from error
    except Exception:  # noqa: BLE001 - a fault of the type's own code: it comes again in the tool, whose failure it is
        return


def issues_of(error: ValidationError, name: str) -> list[Issue]:
    """What a validation says, without what it was given; `name` is what that is called."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:MOST_PROBLEMS]
    return [issue([name, *problem["loc"]], problem["type"]) for problem in found]
