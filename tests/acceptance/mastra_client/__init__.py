"""Mastra's own client, unmodified, against this server."""
