"""A run and all runs that it has started, read as one."""
