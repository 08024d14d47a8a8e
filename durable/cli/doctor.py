"""The verb `doctor`: it reads the runs in Redis itself, so that it works where no server does."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Final

import typer

from durable.cli.attendance import reporting
from durable.cli.exits import Exit
from durable.cli.services import settings_with
from durable.cli.terminal import Terminal
from durable.doctor import Doctor
from durable.settings import Settings
from durable.store import Store

_NEWS_SECONDS: Final = 2.0


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one finding a line, then the sum.")] = False,
) -> None:
    """Check all runs in Redis: states, indexes, logs, ledgers, checkpoints, retention. Changes nothing.

    Needs DURABLE_REDIS_URL, and DURABLE_PREFIX if the deployment has one. May run beside working workers.

    Exit codes: 0 all is sound, 6 something is not, 4 not set up, 5 no Redis.
    """
    terminal = Terminal()
    with reporting():
        settings = settings_with()
        try:
            code = asyncio.run(_examine(settings, terminal, as_json=as_json))
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        raise typer.Exit(code)


async def _examine(settings: Settings, terminal: Terminal, *, as_json: bool) -> Exit:
    store = Store.of(settings)
    physician, count = Doctor(store), 0
    news = asyncio.create_task(_tell_progress(physician, terminal))
    try:
        await store.ping()
        async for finding in physician.findings():
            count += 1
            if as_json:
                terminal.json({"runId": finding.run_id, "check": finding.check, "message": finding.message})
            else:
                terminal.line(f"✗ {finding.run_id}  {finding.check}: {finding.message}", "red")
    finally:
        news.cancel()
        await asyncio.gather(news, return_exceptions=True)
        await store.aclose()
    if as_json:
        terminal.json({"runs": physician.examined, "findings": count})
    elif count:
        terminal.line(f"✗ {physician.examined} runs examined, {count} findings", "bold red")
    else:
        terminal.line(f"✓ {physician.examined} runs examined, all is sound", "bold green")
    return Exit.UNSOUND if count else Exit.OK


async def _tell_progress(physician: Doctor, terminal: Terminal) -> None:
    begun = time.monotonic()
    while True:
        await asyncio.sleep(_NEWS_SECONDS)
        terminal.note(f"{physician.examined} runs examined in {time.monotonic() - begun:.0f} s …")
