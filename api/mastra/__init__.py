"""The door for clients of Mastra's HTTP protocol: the same runs, the same logs, in that protocol's words."""
