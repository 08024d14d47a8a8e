"""Examples that run as they stand, without an API key. `examples.agents` is what `make demo` and `make dev` execute."""
