"""Background tasks: tool calls, and sub-agents, that are executed as runs of their own."""
