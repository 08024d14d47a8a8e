"""Who may import whom, read from the source: a rule that is broken is named with its file and line."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("durable", "worker", "api")
WEB = {"fastapi", "starlette", "uvicorn"}
CELERY = {"celery", "kombu", "flower"}


@dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Attributes:
        target: The module, or a name in one, by its full name.
        line: Where.
        needed: Whether it happens when the module is loaded, and not only for type checkers.
        inside: The function that it is in.
    """

    target: str
    line: int
    needed: bool
    inside: str | None


@cache
def modules() -> dict[str, Path]:
    """All modules of the three packages, by name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a module imports."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_imports(ast.parse(path.read_text("utf-8")), package, needed=True, inside=None))


def _imports(node: ast.AST, package: str, *, needed: bool, inside: str | None) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import():
                for alias in child.names:
                    yield Import(alias.name, child.lineno, needed, inside)
            case ast.ImportFrom():
                base = _base(child, package)
                for alias in child.names:
                    yield Import(f"{base}.{alias.name}", child.lineno, needed, inside)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _imports(child, package, needed=False, inside=getattr(child, "name", "lambda"))
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from _imports(child, package, needed=False, inside=inside)
            case _:
                yield from _imports(child, package, needed=needed, inside=inside)


def _base(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parent = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parent, node.module] if node.module else parent)


def top(name: str) -> str:
    """The outermost package of a name."""
    return name.partition(".")[0]


def module_of(target: str) -> str | None:
    """The module of ours that a name is in; None when it is none of ours."""
    while target:
        if target in modules():
            return target
        target = target.rpartition(".")[0]
    return None


def broken(package: str, forbidden: set[str], *, but: tuple[str, ...] = ()) -> list[str]:
    """Where a package imports what it must not."""
    return [
        f"{modules()[module].relative_to(ROOT)}:{item.line} imports {item.target}"
        for module in modules()
        if top(module) == package and module not in but
        for item in imports(module)
        if top(item.target) in forbidden
    ]


def test_the_three_packages_are_found() -> None:
    assert {top(module) for module in modules()} == set(PACKAGES)
    assert len(modules()) > 50
    assert any(item.target == "durable.store.Store" for item in imports("durable.backend"))
    assert any(item.target == "worker.host.Host" for item in imports("worker.program"))


def test_the_engine_knows_no_web_framework() -> None:
    assert broken("durable", WEB) == []


def test_the_engine_knows_celery_in_one_module() -> None:
    assert broken("durable", CELERY, but=("durable.dispatch",)) == []
    assert broken("durable", CELERY) != []


def test_the_engine_knows_neither_of_the_programs() -> None:
    assert broken("durable", {"api", "worker", "durable_api", "durable_worker"}) == []


def test_the_programs_do_not_know_each_other() -> None:
    assert broken("api", {"worker", "durable_worker"}) == []
    assert broken("worker", {"api", "durable_api"}) == []


def test_the_worker_knows_no_web_framework_and_the_api_no_celery() -> None:
    assert broken("worker", WEB) == []
    assert broken("api", CELERY) == []


def test_a_program_names_its_own_modules_relatively() -> None:
    # Installed, the two programs have other names.
    absolute = [
        f"{modules()[module].relative_to(ROOT)}:{line}"
        for module in modules()
        if top(module) in {"api", "worker"}
        for line in _absolute(module)
    ]
    assert absolute == []


def _absolute(module: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(modules()[module].read_text("utf-8"))):
        match node:
            case ast.Import() if any(top(alias.name) == top(module) for alias in node.names):
                yield node.lineno
            case ast.ImportFrom(level=0) if top(node.module or "") == top(module):
                yield node.lineno


def test_no_imports_hide_in_functions() -> None:
    hidden = [
        f"{modules()[module].relative_to(ROOT)}:{item.line} imports {item.target} in {item.inside}"
        for module in modules()
        for item in imports(module)
        if item.inside is not None
    ]
    assert hidden == []


def test_modules_import_each_other_in_one_direction() -> None:
    graph = {
        module: {found for item in imports(module) if item.needed and (found := module_of(item.target)) != module}
        for module in modules()
    }
    # A package's own front gathers its parts; what the parts need of each other they take from the part itself.
    cycles = [" -> ".join(cycle) for cycle in _cycles({m: {n for n in ns if n} for m, ns in graph.items()})]
    assert cycles == []


def _cycles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        if module in path:
            yield [*path[path.index(module) :], module]
            return
        if module in done:
            return
        path.append(module)
        for other in sorted(graph[module]):
            yield from visit(other)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        yield from visit(module)


def test_a_cycle_would_be_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert list(_cycles(graph)) == [["b", "c", "b"]]


@pytest.mark.parametrize("module", sorted(modules()))
def test_each_module_says_what_it_is_for(module: str) -> None:
    tree = ast.parse(modules()[module].read_text("utf-8"))
    assert ast.get_docstring(tree)


# What a distribution brings under another name than its own, and may be counted on to bring.
BROUGHT = {
    "fastapi": {"fastapi", "starlette"},
    "pydantic": {"pydantic", "pydantic_core"},
    "pydantic-ai-slim": {"pydantic_ai", "pydantic_graph"},
    "pydantic-settings": {"pydantic_settings"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_only_what_is_declared_is_imported(package: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = [re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in declared]
    known = {*sys.stdlib_module_names, *PACKAGES}.union(*(BROUGHT.get(name, {name}) for name in names))
    undeclared = [
        f"{modules()[module].relative_to(ROOT)}:{item.line} imports {item.target}"
        for module in modules()
        if top(module) == package
        for item in imports(module)
        if top(item.target) not in known
    ]
    assert undeclared == []
