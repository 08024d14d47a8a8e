"""Benchmarks: one module a question. `python benchmarks/run.py` asks all of them, or those that are named."""
