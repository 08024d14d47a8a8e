"""The benchmarks can be run. What the figures are is nobody's business here.

Some of them, for time: with all the processes there are, with the engine in the process itself, with kills.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer

from benchmarks.figures import Cell, Report
from benchmarks.run import BENCHMARKS, main

ROOT = Path(__file__).parents[2]

TITLES = {
    "first_chunk": ["First chunk"],
    "cpu_per_chunk": ["CPU per chunk", "Where the CPU time goes, flush 0", "Memory of Redis per chunk, flush 0"],
    "durability": ["Cost of durability"],
    "resume": ["Resume"],
    "decisions": ["Decisions", "Memory of runs that wait"],
    "background": ["Background tasks", "Many background tasks"],
    "takeover": ["Takeover"],
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/run.py", *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, "DURABLE_PREFIX": "not {valid", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_benchmark_answers_its_question_with_a_table(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    done = run(*TITLES, "--quick", "--json", str(report))

    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[dict[str, Any]]] = orjson.loads(report.read_bytes())["benchmarks"]
    assert {name: [table["title"] for table in tables] for name, tables in found.items()} == TITLES
    for table in (table for tables in found.values() for table in tables):
        assert table["title"] in done.stdout
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


ROWS: list[tuple[Cell, ...]] = [("late", 251.0, 250), ("in time", 250, 250), ("no aim", 900.0, None)]


def with_aims(*, quick: bool = False) -> list[Report]:
    """A benchmark of which one row misses its aim."""
    assert quick in {True, False}
    return [
        Report("Cancels", ("what", "p95 ms", "aim p95 ms"), ROWS, aim=(1, 2)),
        Report("Else", ("what",), [("else",)]),
    ]


@pytest.mark.parametrize("quick", [False, True])
def test_a_row_that_misses_its_aim_is_marked_and_fails_the_benchmarks_unless_they_are_tiny(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, *, quick: bool
) -> None:
    monkeypatch.setitem(BENCHMARKS, "submit", with_aims)
    monkeypatch.setenv("NO_COLOR", "1")
    report = tmp_path / "figures.json"
    with nullcontext() if quick else pytest.raises(typer.Exit) as left:
        main(["submit"], quick=quick, json=report)
    if left is not None:
        assert left.value.exit_code == 1
    said = capsys.readouterr().out
    assert "250 missed" in said
    assert said.count("missed") == 2
    assert "missed its aim: submit: late" in said
    assert [table["missed"] for table in orjson.loads(report.read_bytes())["benchmarks"]["submit"]] == [["late"], []]


def in_time(*, quick: bool = False) -> list[Report]:
    """A benchmark whose rows all reach their aims, if they have any."""
    assert not quick
    return [Report("Cancels", ("what", "p95 ms", "aim p95 ms"), ROWS[1:], aim=(1, 2))]


def test_benchmarks_that_reach_their_aims_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "submit", in_time)
    main(["submit"], quick=False, json=None)


def test_a_benchmark_that_does_not_exist_is_refused() -> None:
    done = run("nonsense")

    assert done.returncode == 2
    assert "nonsense" in done.stderr
