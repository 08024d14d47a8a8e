"""The verb `raise`: lets a run go on that has used up a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from durable.cli.attendance import attend
from durable.cli.exits import Exit
from durable.cli.runs import AsJson, RunId
from durable.cli.terminal import Terminal
from durable.client import Client


def raise_(
    context: typer.Context,
    run_id: RunId,
    *,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that it may use from now on, in all.")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Seconds that it may be executed from now on, in all.")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Who raises it; kept in the log.")] = None,
    as_json: AsJson = False,
) -> None:
    """Raise a budget that a run has used up. It goes on."""
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        view = await client.raise_budget(run_id, max_tokens=max_tokens, max_seconds=max_seconds, actor=actor)
        if as_json:
            terminal.json(view.to_wire())
        else:
            terminal.line(f"run {view.run_id} goes on")
        return Exit.OK

    attend(context.obj, work)
