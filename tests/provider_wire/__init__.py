"""Local servers that speak the event streams of the model providers, so that tests run the real provider models.

Importing this package starts nothing and needs no pytest: a module of agents in a worker process may import `models`.
"""

from __future__ import annotations

from tests.provider_wire import anthropic, openai_chat, openai_responses
from tests.provider_wire.script import (
    DROP,
    Failure,
    Hold,
    Page,
    Picture,
    RedactedThinking,
    Reply,
    Text,
    Thinking,
    ToolCall,
    Usage,
    WebSearch,
    citing,
    picture,
    redacted_thinking,
    text,
    thinking,
    tool_call,
    web_search,
)
from tests.provider_wire.server import ProviderWire, ReceivedRequest

__all__ = [
    "DROP",
    "Failure",
    "Hold",
    "Page",
    "Picture",
    "ProviderWire",
    "ReceivedRequest",
    "RedactedThinking",
    "Reply",
    "Text",
    "Thinking",
    "ToolCall",
    "Usage",
    "WebSearch",
    "anthropic",
    "citing",
    "openai_chat",
    "openai_responses",
    "picture",
    "redacted_thinking",
    "text",
    "thinking",
    "tool_call",
    "web_search",
]
