"""Every line of the page of guarantees, and of what can't fail here, names the test that proves it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("guarantees.md", "mastra.md")]
TEST = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


def promises() -> list[str]:
    """The rows of all tables that have the column of proofs."""
    found: list[str] = []
    proved = False
    for line in [line for page in PAGES for line in page.read_text("utf-8").splitlines()]:
        if not line.startswith("|"):
            proved = False
        elif "Proved by" in line:
            proved = True
        elif proved and not line.startswith("| ---"):
            found.append(line)
    return found


@pytest.mark.parametrize("row", promises())
def test_a_guarantee_names_tests_that_exist(row: str) -> None:
    named = TEST.findall(row.rsplit("|", 2)[1])
    assert named
    for name, path in named:
        assert re.search(rf"^ *(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), (name, path)


def test_the_page_has_guarantees() -> None:
    assert len(promises()) > 20
