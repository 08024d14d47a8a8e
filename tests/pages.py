"""A page of the documentation, followed word by word: its programs as files, and its commands in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from durable.cli import app
from tests.deployment import ROOT

ADDRESS = "http://127.0.0.1:8000"
_BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"^```python\n# (\w+)\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page:
    """A page below `docs/`.

    Args:
        name: The file.
        folder: Where its programs are written to, and its commands are run.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self._text = (ROOT / "docs" / name).read_text("utf-8")
        for program, code in _PROGRAM.findall(self._text):
            (folder / f"{program}.py").write_text(code)

    def commands(self, *programs: str) -> list[str]:
        """The commands of the page that begin with these programs' names, in their order."""
        lines = "".join(_BASH.findall(self._text)).splitlines()
        return [line.partition("  #")[0].strip() for line in lines if line.startswith(tuple(f"{p} " for p in programs))]

    def follow(self, command: str, url: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the page against a server; `durable` in this process, which saves its start."""
        name, *arguments = shlex.split(command.replace(ADDRESS, url))
        if name != "durable":
            return self._call([name, *arguments], url)
        found = CliRunner().invoke(app, ["--url", url, *arguments])
        return subprocess.CompletedProcess(arguments, found.exit_code, found.stdout, found.stderr)

    def run(self, program: str, url: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program of the page."""
        return self._call([sys.executable, "-W", "error", f"{program}.py"], url)

    def _call(self, argv: list[str], url: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "DURABLE_URL": url}
        return subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=30, check=False)
