"""The command line `durable`. The verbs of `runs`, `answers` and `tasks` go over HTTP; `worker`, `api` and `dev` start
processes here, and `doctor` reads Redis itself."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from durable.cli import answers, budgets, dev, doctor, files, runs, services, tasks

app = typer.Typer(
    name="durable",
    help="Durable, fire-and-forget runs for Pydantic AI agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(envvar="DURABLE_URL", help="The server. (default: http://127.0.0.1:8000)")
    ] = None,
) -> None:
    context.obj = url


app.command()(runs.run)
app.command()(runs.observe)
app.command()(runs.runs)
app.command()(runs.cancel)
app.command()(runs.retry)
app.command("raise")(budgets.raise_)
app.command()(runs.why)
app.command()(files.file)
app.command()(runs.agents)
app.command()(answers.pending)
app.command()(answers.approve)
app.command()(answers.decline)
app.command()(answers.resume)
app.add_typer(tasks.app, name="tasks")
app.command()(dev.dev)
app.command()(doctor.doctor)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(services.worker)
app.command()(services.api)


def main() -> None:
    """Run the command that the process was started with."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of a narrow encoding must not end a run's story
    app()
