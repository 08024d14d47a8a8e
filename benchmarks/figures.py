"""Figures and how they are shown: tables for people, JSON for programs.

A table compares its rows within one run on one machine; figures of two runs are not to be compared. A row may have an
aim; one that misses it is marked, and `run.py` then ends with an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Cell = str | float | None


@dataclass(frozen=True)
class Report:
    """One table.

    Attributes:
        title: The question that it answers.
        columns: What stands in each cell, with its unit.
        rows: The cells; None where there is nothing to say.
        notes: What a reader has to know beside it.
        aim: The columns of a figure and of the most that it may be; a row without the second has no aim.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()
    aim: tuple[int, int] | None = None

    @property
    def missed(self) -> list[Cell]:
        """The first cells of the rows that have missed their aims."""
        return [row[0] for row in self.rows if self._misses(row)]

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in self.rows:
            cells, misses = [_shown(cell) for cell in row], self._misses(row)
            if self.aim is not None and misses:
                cells[self.aim[1]] += " missed"
            table.add_row(*cells, style="red" if misses else None)
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", style="dim")
        console.print()

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {
            "title": self.title,
            "columns": self.columns,
            "rows": self.rows,
            "notes": self.notes,
            "missed": self.missed,
        }

    def _misses(self, row: tuple[Cell, ...]) -> bool:
        if self.aim is None:
            return False
        figure, aim = (row[column] for column in self.aim)
        return isinstance(figure, int | float) and isinstance(aim, int | float) and figure > aim


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed. There is at least one value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    """The value in the middle."""
    return percentile(values, 50)


def _shown(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case str():
            return cell
        case int():
            return f"{cell:,}"
        case _ if abs(cell) >= 100:
            return f"{cell:,.0f}"
        case _ if abs(cell) >= 10:
            return f"{cell:.1f}"
        case _:
            return f"{cell:.2f}"
