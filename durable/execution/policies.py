"""Which tool calls have to be approved, by what their agent and their run ask for; fail closed."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.tools import ToolDefinition

from durable.definition import AgentDefinition, ApprovalFunction, ApprovalPolicy
from durable.execution.failures import places

log = logging.getLogger(__name__)


class ApprovalPolicies:
    """The policies of one run. One that says so is enough: a run can't do with less than its agent asks for.

    Args:
        definition: The agent.
        asked: What the run asks for: all calls, or those that a policy of the agent tells.
    """

    def __init__(self, definition: AgentDefinition, *, asked: bool | str | None) -> None:
        # A policy that this version of the agent has no more: all calls are asked about.
        own: ApprovalPolicy = definition.policies.get(asked, True) if isinstance(asked, str) else bool(asked)
        self._policies: tuple[ApprovalPolicy, ...] = (definition.require_tool_approval, own)

    async def apply(self, ctx: RunContext[Any], tool: ToolDefinition, args: dict[str, Any]) -> bool:
        """Whether a call has to be approved."""
        for policy in self._policies:
            if policy is True or (callable(policy) and await _applies(policy, ctx, tool, args)):
                return True
        return False


async def _applies(policy: ApprovalFunction, ctx: RunContext[Any], tool: ToolDefinition, args: dict[str, Any]) -> bool:
    """Whether a policy wants the call to be approved; it does if it fails to say."""
    try:
        found = policy(ctx, tool, args)
        return bool(await found if inspect.isawaitable(found) else found)
    except Exception as error:  # noqa: BLE001 - the user's own code; a guard that fails lets nobody pass
        log.warning("an approval policy raised %s at %s", type(error).__name__, places(error))
        return True
