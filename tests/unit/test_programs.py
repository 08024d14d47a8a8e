from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable.cli.programs import load_part, load_program
from durable.errors import ConfigurationError

NAME = "probe"  # a program that no installation has


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for module in [name for name in sys.modules if name.partition(".")[0] in {NAME, f"durable_{NAME}"}]:
        del sys.modules[module]


def write_package(folder: Path, whose: str) -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f'"""Of a test."""\nWHOSE = "{whose}"\n')
    (folder / "loop.py").write_text("from . import WHOSE\n")
    (folder / "app.py").write_text("from .loop import WHOSE\n")


def test_the_folder_beside_is_loaded_under_a_name_of_its_own(tmp_path: Path) -> None:
    write_package(tmp_path / NAME, "ours")
    assert load_program(NAME, tmp_path).__name__ == "durable_probe"
    assert load_part(NAME, "app").WHOSE == "ours"
    assert NAME not in sys.modules


def test_a_package_of_the_user_with_the_same_name_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path / "beside" / NAME, "ours")
    write_package(tmp_path / "theirs" / NAME, "theirs")
    monkeypatch.syspath_prepend(tmp_path / "theirs")
    assert load_program(NAME, tmp_path / "beside").WHOSE == "ours"
    assert importlib.import_module(f"{NAME}.app").WHOSE == "theirs"
    assert load_part(NAME, "app").WHOSE == "ours"


def test_where_it_is_installed_the_installed_name_goes_first(tmp_path: Path) -> None:
    write_package(tmp_path / NAME, "somebody else's")
    write_package(tmp_path / f"durable_{NAME}", "ours")
    assert load_program(NAME, tmp_path).WHOSE == "ours"


def test_a_copy_elsewhere_on_the_import_path_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path / "beside" / NAME, "ours")
    write_package(tmp_path / "older" / f"durable_{NAME}", "a stale copy")
    monkeypatch.syspath_prepend(tmp_path / "older")
    assert load_program(NAME, tmp_path / "beside").WHOSE == "ours"


def test_a_program_is_loaded_once(tmp_path: Path) -> None:
    write_package(tmp_path / NAME, "ours")
    assert load_program(NAME, tmp_path) is load_program(NAME, tmp_path)


def test_a_program_that_does_not_load_leaves_nothing_behind(tmp_path: Path) -> None:
    write_package(tmp_path / NAME, "ours")
    (tmp_path / NAME / "__init__.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_program(NAME, tmp_path)
    assert "durable_probe" not in sys.modules


def test_a_missing_program_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="durable_probe is missing"):
        load_program(NAME, tmp_path)


@pytest.mark.parametrize("name", ["worker", "api"])
def test_our_programs_are_found(name: str) -> None:
    assert load_program(name).__name__ == f"durable_{name}"
