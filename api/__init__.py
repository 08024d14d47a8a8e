"""The HTTP API: submit runs, look at them, follow them, cancel them. `uvicorn api.app:app` starts it."""
