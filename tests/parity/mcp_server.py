"""An MCP server for tests; as a program it speaks on standard input and output."""

from __future__ import annotations

from mcp.server import MCPServer

server = MCPServer("dice", log_level="CRITICAL")


@server.tool()
def roll(sides: int) -> int:
    """Roll a die, always the highest side."""
    return sides


@server.tool()
def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


@server.tool()
def broken() -> str:
    """Raise."""
    raise ValueError("the server's own words")


if __name__ == "__main__":
    server.run()
