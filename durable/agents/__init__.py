"""Wrapped agents: making them, calling them, finding them."""

from durable.agents.agent import DurableAgent, EventedAgent, create_durable_agent, create_evented_agent
from durable.agents.handle import RunHandle, RunResult
from durable.agents.registry import check_agents, load_agents
from durable.agents.sub_agent import AgentTool, agent_tool

__all__ = [
    "AgentTool",
    "agent_tool",
    "DurableAgent",
    "EventedAgent",
    "RunHandle",
    "RunResult",
    "check_agents",
    "create_durable_agent",
    "create_evented_agent",
    "load_agents",
]
