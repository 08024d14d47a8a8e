"""The verb `file`: fetches what a model has made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from durable.cli.attendance import attend
from durable.cli.exits import Exit
from durable.cli.runs import RunId
from durable.cli.terminal import Terminal
from durable.client import Client
from durable.files import RunFile


def file(
    context: typer.Context,
    run_id: RunId,
    file_id: Annotated[str, typer.Argument(metavar="FILE", help="The file's id, as its chunk names it.")],
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Where to save it; `-` is standard output. (default: here)"
        ),
    ] = None,
) -> None:
    """Fetch a file that a run's model has made."""
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        found = await client.file(run_id, file_id)
        _save(found, output, terminal)
        return Exit.OK

    attend(context.obj, work)


def _save(found: RunFile, output: str | None, terminal: Terminal) -> None:
    if output == "-":
        sys.stdout.buffer.write(found.data)
        sys.stdout.flush()
        return
    path = Path(found.filename if output is None else output)
    try:
        path.write_bytes(found.data)
    except OSError as error:
        raise typer.BadParameter(f"it can't be saved there: {error.strerror}", param_hint="--output") from error
    terminal.line(f"saved {path} ({found.mime_type}, {len(found.data)} bytes)")
