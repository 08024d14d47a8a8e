"""The public surface: every name resolves, from where it is said to live, and only when it is used."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import durable
import durable.agents
import durable.chunks
import durable.client
import durable.execution
import durable.runs
import durable.translate

PUBLIC = sorted(durable.__all__)


def test_the_names_that_programs_are_built_on_are_there() -> None:
    assert {"create_durable_agent", "create_evented_agent", "Client", "Settings", "emit", "tool_context"} <= {*PUBLIC}
    assert {"Chunk", "RunHandle", "RunInfo", "RunResult", "RunStatus", "RunView", "DurableError"} <= {*PUBLIC}


def test_what_is_exported_is_what_has_a_home() -> None:
    assert len(durable.__all__) == len(set(durable.__all__))
    assert sorted(durable._HOMES) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_what_its_home_has(name: str) -> None:
    home = importlib.import_module(durable._HOMES[name])
    assert getattr(durable, name) is getattr(home, name)
    assert name in dir(durable)
    assert inspect.getdoc(getattr(durable, name))


def test_what_type_checkers_see_is_what_is_exported() -> None:
    tree = ast.parse(Path(str(durable.__file__)).read_text("utf-8"))
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == durable._HOMES


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        durable.nothing  # noqa: B018 - it has to be refused


def test_all_names_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from durable import *", names)  # noqa: S102 - there is no other way to say it
    assert set(PUBLIC) <= set(names)


@pytest.mark.parametrize(
    "module",
    [durable.agents, durable.chunks, durable.client, durable.execution, durable.runs, durable.translate],
    ids=lambda module: module.__name__,
)
def test_a_package_has_all_that_it_names(module: ModuleType) -> None:
    names = module.__all__
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(module, name) is not None


# `redis` and `celery` are what an agent's side needs; a caller's side has only httpx and pydantic.
HEAVY = ("celery", "fakeredis", "fastapi", "kombu", "orjson", "pydantic_ai", "redis", "typer", "uvicorn")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import durable", (*HEAVY, "pydantic", "httpx")),
        ("from durable import Client, Backoff, Folder, fold_text, RunStatus, DurableError", HEAVY),
        ("from durable import create_evented_agent", ("fastapi", "typer", "uvicorn")),
    ],
)
def test_only_what_is_used_is_loaded(statement: str, absent: tuple[str, ...]) -> None:
    program = f"{statement}\nimport sys\nprint(*[name for name in {absent!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert ran.stdout.strip() == ""
