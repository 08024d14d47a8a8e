"""The verb `dev`: Redis, a worker, the API and Flower in one terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from durable.cli.attendance import reporting
from durable.cli.services import settings_with, use_working_folder
from durable.dev.services import dev as run_dev


def dev(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="The API's port. (default: DURABLE_PORT)")] = None,
    flower: Annotated[bool, typer.Option(help="Start Flower, if it is installed.")] = True,  # noqa: FBT002  a switch
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every request, and Celery's banner.")] = False,
) -> None:
    """Start everything here: Redis (a private one unless DURABLE_REDIS_URL is set), a worker, the API, Flower."""
    with reporting():
        settings = settings_with(port=port)
        use_working_folder()
        raise typer.Exit(run_dev(settings, workers=workers, flower=flower, verbose=verbose))
