"""What a tool says of its calls is looked at when its agent is wrapped."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai import Agent, Tool
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset

from durable import create_durable_agent, create_evented_agent
from durable.errors import ConfigurationError


def pay() -> str:
    """Pay."""
    return "paid"


def agent_with(options: Any) -> Agent[None, str]:
    return Agent(TestModel(), name="shop", tools=[Tool(pay, metadata={"durable": options})])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"expires_in": 0.5, "on_expiry": "approve", "on_crash": "ask", "on_tool_error": "continue"},
        {"expires_in": 86_400},
        {"expires_in": None},
        {"background": True, "timeout": 5},
    ],
    ids=str,
)
def test_what_is_valid_is_taken(options: dict[str, Any]) -> None:
    assert create_evented_agent(agent_with(options)).name == "shop"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": -1}, "expires_in"),
        ({"expires_in": float("nan")}, "expires_in"),
        ({"expires_in": float("inf")}, "expires_in"),
        ({"expires_in": "60"}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"on_expiry": "secret"}, "on_expiry"),
        ({"on_crash": "secret"}, "on_crash"),
        ({"on_crash": None, "on_tool_error": "secret"}, "on_crash, on_tool_error"),
        (["secret"], "durable"),
        (None, "durable"),
    ],
    ids=str,
)
def test_what_is_not_valid_is_refused_with_the_names_of_the_tool_and_the_option(options: Any, named: str) -> None:
    for wrap in (create_evented_agent, create_durable_agent):
        with pytest.raises(ConfigurationError) as refused:
            wrap(agent_with(options))
        assert "'pay'" in refused.value.message
        assert named in refused.value.message
        assert "secret" not in refused.value.message


def test_tools_inside_of_other_toolsets_are_looked_at_as_well() -> None:
    inside = FunctionToolset([pay], metadata={"durable": {"on_expiry": "never"}})
    agent = Agent(TestModel(), name="shop", toolsets=[inside.prefixed("my").approval_required()])
    with pytest.raises(ConfigurationError, match="'pay'"):
        create_evented_agent(agent)
