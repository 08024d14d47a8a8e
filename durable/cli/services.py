"""The verbs that start a process of ours here: `worker` and `api`."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from pydantic import ValidationError

from durable.cli.attendance import reporting
from durable.cli.exits import Exit
from durable.cli.programs import load_part
from durable.errors import ConfigurationError
from durable.settings import Settings


def settings_with(**overrides: Any) -> Settings:
    """The settings of this process; an override that is None does not count.

    Raises:
        ConfigurationError: A variable or an override does not fit.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        faults = [_fault(each["loc"], each["msg"]) for each in error.errors(include_url=False, include_input=False)]
        raise ConfigurationError("; ".join(faults)) from None


def _fault(place: tuple[int | str, ...], message: str) -> str:
    variable = f"DURABLE_{str(place[0]).upper()}: " if place else ""
    return variable + message.removeprefix("Value error, ")


def use_working_folder() -> None:
    """Let `DURABLE_AGENTS` name modules of the working folder, as Celery and uvicorn do."""
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)


def with_defaults(args: list[str]) -> list[str]:
    """Celery's options, with ours where none is given: a name of its own, as two workers of one machine may not share
    one, and a line for each run in the log."""
    given = {arg.partition("=")[0] for arg in args}
    # A short option may have its value in the same word.
    given |= {arg[:2] for arg in args if arg[:1] == "-" and arg[:2] != "--"}
    name = [] if given & {"-n", "--hostname"} else [f"--hostname=worker-{secrets.token_hex(3)}@%h"]
    level = [] if given & {"-l", "--loglevel"} else ["--loglevel=info"]
    return [*name, *level, *args]


def worker(
    context: typer.Context, *, quiet: Annotated[bool, typer.Option("--quiet", help="Without Celery's banner.")] = False
) -> None:
    """Start a worker. All further options are Celery's, for example --concurrency 50 --loglevel warning."""
    with reporting():
        settings_with()
        use_working_folder()
        celery_app = load_part("worker", "app").app
        try:
            celery_app.worker_main([*(["--quiet"] if quiet else []), "worker", *with_defaults(context.args)])
        except click.ClickException as error:  # Celery's parser, which leaves it to us
            error.show()
            raise typer.Exit(Exit.USAGE) from None


def api(
    host: Annotated[str | None, typer.Option(help="Listen on this address. (default: DURABLE_HOST)")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Listen on this port. (default: DURABLE_PORT)")
    ] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log only requests that failed.")] = False,
) -> None:
    """Start the HTTP API."""
    with reporting():
        settings = settings_with(host=host, port=port)
        _ = settings.store_url  # without one it ends here, in one line
        use_working_folder()
        load_part("api", "server").serve(settings, quiet=quiet)
