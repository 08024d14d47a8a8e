"""Agents with each feature of Pydantic AI, to run bare and wrapped with one and the same scripted model."""
