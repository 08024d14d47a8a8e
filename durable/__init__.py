"""Durable, fire-and-forget runs for Pydantic AI agents, on Celery and Redis.

The names below are the public surface. They load when they are first used, so that a program which only needs
`Client` needs only what `Client` needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable.agents import (
        DurableAgent,
        EventedAgent,
        RunHandle,
        RunResult,
        agent_tool,
        create_durable_agent,
        create_evented_agent,
    )
    from durable.background.dispositions import Background
    from durable.chunks import Chunk
    from durable.client import Backoff, Client
    from durable.completion import Goal, GoalVerdict, JudgeContext, Score, TaskCompletion, Tripwire
    from durable.definition import RunInfo
    from durable.errors import DurableError
    from durable.fold import Folder, fold_text
    from durable.settings import Settings
    from durable.suspension import suspend
    from durable.tools import ToolContext, emit, emit_sync, resume_data, tool_context
    from durable.views import (
        AgentView,
        ChunkPage,
        Diagnosis,
        InboxCall,
        InboxPage,
        MessageView,
        PendingCall,
        RunPage,
        RunStatus,
        RunView,
    )

_HOMES = {
    "AgentView": "durable.views",
    "Backoff": "durable.client",
    "Chunk": "durable.chunks",
    "ChunkPage": "durable.views",
    "Client": "durable.client",
    "Diagnosis": "durable.views",
    "DurableAgent": "durable.agents",
    "DurableError": "durable.errors",
    "EventedAgent": "durable.agents",
    "Folder": "durable.fold",
    "InboxCall": "durable.views",
    "InboxPage": "durable.views",
    "Goal": "durable.completion",
    "GoalVerdict": "durable.completion",
    "JudgeContext": "durable.completion",
    "MessageView": "durable.views",
    "PendingCall": "durable.views",
    "RunHandle": "durable.agents",
    "RunInfo": "durable.definition",
    "RunPage": "durable.views",
    "RunResult": "durable.agents",
    "RunStatus": "durable.views",
    "RunView": "durable.views",
    "Score": "durable.completion",
    "Settings": "durable.settings",
    "TaskCompletion": "durable.completion",
    "ToolContext": "durable.tools",
    "Tripwire": "durable.completion",
    "agent_tool": "durable.agents",
    "Background": "durable.background.dispositions",
    "create_durable_agent": "durable.agents",
    "create_evented_agent": "durable.agents",
    "emit": "durable.tools",
    "emit_sync": "durable.tools",
    "fold_text": "durable.fold",
    "resume_data": "durable.tools",
    "suspend": "durable.suspension",
    "tool_context": "durable.tools",
}

__all__ = [
    "AgentView",
    "Backoff",
    "Chunk",
    "ChunkPage",
    "Client",
    "Diagnosis",
    "DurableAgent",
    "DurableError",
    "EventedAgent",
    "Folder",
    "InboxCall",
    "InboxPage",
    "Goal",
    "GoalVerdict",
    "JudgeContext",
    "MessageView",
    "PendingCall",
    "RunHandle",
    "RunInfo",
    "RunPage",
    "RunResult",
    "RunStatus",
    "RunView",
    "Score",
    "Settings",
    "TaskCompletion",
    "ToolContext",
    "Tripwire",
    "agent_tool",
    "Background",
    "create_durable_agent",
    "create_evented_agent",
    "emit",
    "emit_sync",
    "fold_text",
    "resume_data",
    "suspend",
    "tool_context",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
