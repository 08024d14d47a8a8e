"""The development stack: a private Redis, a supervisor for child processes, our services as its children.

No other package starts a process, and each process that it starts is gone when its owner is gone.
"""
