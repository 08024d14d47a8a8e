"""The Node.js projects of the tests: the program that runs them, with their packages installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL_SECONDS = 150


def with_packages(folder: Path) -> str:
    """The program `node`, once the packages of a project are installed. Test processes that come together wait.

    Where Node.js is missing the test is skipped, or fails if `CI` is set.
    """
    program, installer = shutil.which("node"), shutil.which("npm")
    if program is None or installer is None:
        if os.environ.get("CI"):
            pytest.fail("Node.js is missing; this test must run where CI is set")
        pytest.skip("Node.js with npm is not installed")
    installed, lock = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            command = [installer, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=INSTALL_SECONDS)
            installed.touch()
    return program
