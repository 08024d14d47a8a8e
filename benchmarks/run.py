"""Runs the benchmarks and prints their tables: `python benchmarks/run.py [NAME…] [--quick] [--json FILE]`."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import orjson
import typer
from rich.console import Console

from benchmarks import (
    background,
    cpu_per_chunk,
    decisions,
    durability,
    fan_out,
    first_chunk,
    replay,
    resume,
    submit,
    takeover,
)
from benchmarks.figures import Report
from durable.errors import ConfigurationError


class Benchmark(Protocol):
    """One question."""

    def __call__(self, *, quick: bool = False) -> list[Report]: ...


BENCHMARKS: Final[dict[str, Benchmark]] = {
    "submit": submit.measure,
    "first_chunk": first_chunk.measure,
    "fan_out": fan_out.measure,
    "replay": replay.measure,
    "cpu_per_chunk": cpu_per_chunk.measure,
    "durability": durability.measure,
    "resume": resume.measure,
    "decisions": decisions.measure,
    "background": background.measure,
    "takeover": takeover.measure,
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(BENCHMARKS)}. (default: all)")] = None,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes: shows that they run; no figures to keep.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
) -> None:
    """Run benchmarks on processes of their own, on the loopback address. Ends with 1 when a figure misses its aim; not
    with tiny sizes, whose figures say nothing."""
    chosen = names or list(BENCHMARKS)
    for name in chosen:
        if name not in BENCHMARKS:
            raise typer.BadParameter(f"there is no benchmark {name!r}")
    for name in [name for name in os.environ if name.startswith("DURABLE_")]:
        del os.environ[name]
    console = Console(width=None if os.isatty(1) else 120)
    found: dict[str, Any] = {}
    missed: list[str] = []
    for name in chosen:
        begun = time.monotonic()
        reports = _ask(console, BENCHMARKS[name], quick=quick)
        for report in reports:
            report.show(console)
            missed += [f"{name}: {row}" for row in report.missed]
        console.print(f"  {name}: {time.monotonic() - begun:.0f} s\n", style="dim")
        found[name] = [report.as_json() for report in reports]
    if json is not None:
        json.write_bytes(
            orjson.dumps({"machine": _machine(), "quick": quick, "benchmarks": found}, option=orjson.OPT_INDENT_2)
        )
    for row in missed:
        console.print(f"missed its aim: {row}", style="red", markup=False)
    if missed and not quick:
        raise typer.Exit(1)


def _ask(console: Console, benchmark: Benchmark, *, quick: bool) -> list[Report]:
    try:
        return benchmark(quick=quick)
    except ConfigurationError as error:
        console.print(error.message, style="red", markup=False)
        raise typer.Exit(1) from error


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform(terse=True)}


if __name__ == "__main__":
    cli = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()
