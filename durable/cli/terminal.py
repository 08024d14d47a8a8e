"""The two streams of a command: what it says, and what it reports.

Invariant: nothing that a model, a tool or a server wrote reaches the terminal as a control sequence.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Final

from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from durable.chunks.base import Json

# All of C0 and C1 but tab and line feed.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Piped tables must not be cut to the 80 columns that a pipe pretends to have.
_PIPE_WIDTH: Final = 240


def visible(text: str) -> str:
    """The text without control characters but tab and line feed."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


def cell(text: str) -> str:
    """The text as a cell of a table."""
    # Square brackets are markup to rich.
    return visible(text).replace("[", "\\[")


class Terminal:
    """Standard output and standard error of this process."""

    def __init__(self) -> None:
        """Colours only where a terminal shows them."""
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
        self._err = Console(stderr=True, highlight=False)

    def write(self, text: str, style: str = "") -> None:
        """Write text as it flows, without a line end of its own."""
        self._out.print(Text(visible(text), style), end="", soft_wrap=True)
        self._out.file.flush()

    def line(self, text: str, style: str = "") -> None:
        """Write one line."""
        self._out.print(Text(visible(text), style), soft_wrap=True)

    def table(self, table: Table) -> None:
        """Write a table; its cells must be `visible`."""
        self._out.print(table)

    def listing(self, values: Sequence[Json], table: Table, nothing: str, *, as_json: bool) -> None:
        """Write a list: JSON, one value a line, or a table, or to standard error that there is nothing in it."""
        if as_json:
            for value in values:
                self.json(value)
        elif values:
            self.table(table)
        else:
            self.note(nothing)

    def json(self, value: Json) -> None:
        """Write a value as one line of JSON, at once."""
        self._out.file.write(to_json(value).decode() + "\n")
        self._out.file.flush()

    def note(self, text: str) -> None:
        """Write one line to standard error."""
        self._err.print(Text(visible(text)), soft_wrap=True)

    def error(self, text: str) -> None:
        """Write one line about an error to standard error."""
        line = Text("error: ", "bold red")
        self._err.print(line.append(visible(text), "not bold default"), soft_wrap=True)
