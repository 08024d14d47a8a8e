"""The benchmarks can be run. What the figures are is nobody's business here.

Some of them, for time: with all the processes there are, with the engine in the process itself, with kills.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

ROOT = Path(__file__).parents[2]

TITLES = {
    "first_chunk": ["First chunk"],
    "cpu_per_chunk": ["CPU per chunk", "Where the CPU time goes, flush 0", "Memory of Redis per chunk, flush 0"],
    "durability": ["Cost of durability"],
    "resume": ["Resume"],
    "decisions": ["Decisions", "Memory of runs that wait"],
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
@pytest.mark.timeout(240)
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


def test_a_benchmark_that_does_not_exist_is_refused() -> None:
    done = run("nonsense")

    assert done.returncode == 2
    assert "nonsense" in done.stderr
