"""`python -m durable.cli` is the command `durable`."""

from durable.cli import main

main()
