"""Finding the wrapped agents of a process: what `DURABLE_AGENTS` may say, and what is wrong with what it says."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durable.agents import check_agents, load_agents
from durable.errors import ConfigurationError

Write = Callable[..., str]

HEAD = """
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from durable import create_durable_agent, create_evented_agent

def agent(name):
    return Agent(TestModel(), name=name)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module that can be imported, and gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(*lines: str, name: str | None = None, head: str = HEAD) -> str:
        name = name or f"agents_{secrets.token_hex(6)}"
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([head, *lines]), "utf-8")
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_all_wrapped_agents_of_a_module_are_found(write: Write) -> None:
    module = write(
        "one = create_evented_agent(agent('one'))",
        "two = create_durable_agent(agent('two'), max_steps=3)",
        "bare = agent('bare')",
        "number = 1",
    )
    found = load_agents(module)

    assert {name: definition.kind for name, definition in found.items()} == {"one": "evented", "two": "durable"}
    assert found["two"].max_steps == 3


def test_the_name_is_the_agents_own_and_not_the_variables(write: Write) -> None:
    module = write("whatever = create_evented_agent(agent('support.v2'))")
    assert list(load_agents(module)) == ["support.v2"]


def test_a_named_agent_is_found_alone(write: Write) -> None:
    module = write("one = create_evented_agent(agent('one'))", "two = create_evented_agent(agent('two'))")
    assert list(load_agents(f"{module}:two")) == ["two"]


def test_several_modules_are_read_in_order_and_spaces_do_not_count(write: Write) -> None:
    first = write("a = create_evented_agent(agent('a'))")
    second = write("b = create_evented_agent(agent('b'))", "c = create_evented_agent(agent('c'))")
    assert list(load_agents(f" {first} ,, {second}:c , {second}:b,")) == ["a", "c", "b"]


def test_a_module_in_a_package_is_found(write: Write) -> None:
    package = f"pack_{secrets.token_hex(4)}"
    write(name=f"{package}.__init__", head="")
    module = write("a = create_evented_agent(agent('a'))", name=f"{package}.inner.agents")
    assert list(load_agents(module)) == ["a"]


def test_one_agent_under_two_names_or_in_two_modules_is_one(write: Write) -> None:
    first = write("a = create_evented_agent(agent('a'))", "again = a")
    second = write(f"from {first} import a as imported", head="")
    assert list(load_agents(f"{first},{second},{first}:again")) == ["a"]


@pytest.mark.parametrize("modules", ["", " ", ",", " , ,"])
def test_nothing_named_is_nothing_found(modules: str) -> None:
    assert load_agents(modules) == {}


def test_two_agents_of_one_name_are_refused(write: Write) -> None:
    module = write("one = create_evented_agent(agent('same'))", "two = create_evented_agent(agent('same'))")
    with pytest.raises(ConfigurationError, match="Two agents are named 'same'"):
        load_agents(module)


def test_two_agents_of_one_name_in_two_modules_are_refused(write: Write) -> None:
    modules = [write("one = create_evented_agent(agent('same'))") for _ in range(2)]
    with pytest.raises(ConfigurationError, match="Two agents are named 'same'"):
        load_agents(",".join(modules))


def test_one_agent_wrapped_twice_is_refused(write: Write) -> None:
    module = write("a = agent('a')", "one = create_evented_agent(a)", "two = create_durable_agent(a)")
    with pytest.raises(ConfigurationError, match="Two agents are named 'a'"):
        load_agents(module)


def test_a_module_that_is_not_there_is_named(write: Write) -> None:
    with pytest.raises(ConfigurationError, match="no_such_module_here"):
        load_agents("no_such_module_here")


def test_a_module_that_lacks_another_names_that_one(write: Write) -> None:
    module = write("import no_such_dependency", head="")
    with pytest.raises(ConfigurationError, match="no_such_dependency"):
        load_agents(module)


def test_a_module_without_wrapped_agents_is_refused(write: Write) -> None:
    module = write("bare = agent('bare')")
    with pytest.raises(ConfigurationError, match="no wrapped agent"):
        load_agents(module)


@pytest.mark.parametrize("name", ["missing", "bare", "number", "__name__"])
def test_what_is_no_wrapped_agent_is_refused_by_name(write: Write, name: str) -> None:
    module = write("bare = agent('bare')", "number = 1", "good = create_evented_agent(agent('good'))")
    with pytest.raises(ConfigurationError, match=f"{module}:{name} is not a wrapped agent"):
        load_agents(f"{module}:{name}")


@pytest.mark.parametrize("name", ["None", "''", "'a/b'", "'a b'", "'ä'", "'x' * 129", "'a:b'"])
def test_an_agent_without_a_name_that_is_an_address_can_not_be_wrapped(write: Write, name: str) -> None:
    module = write(f"a = create_evented_agent(agent({name}))")
    with pytest.raises(ConfigurationError, match="name"):
        load_agents(module)


@pytest.mark.parametrize(
    ("lines", "place", "kind"),
    [
        (["x = 1", "nowhere(x)"], 3, "NameError"),
        (["x = 1", "y = 2", "def f(:"], 4, "SyntaxError"),
        (["import json", "def load():", "    return json.loads('secret')", "load()"], 4, "JSONDecodeError"),
    ],
    ids=["own", "syntax", "in a library"],
)
def test_a_module_that_raises_is_told_with_its_place_and_not_its_words(
    write: Write, lines: list[str], place: int, kind: str
) -> None:
    name = write(*lines, head="")

    with pytest.raises(ConfigurationError) as refused:
        check_agents(f"{name}:agent")

    message = refused.value.message
    assert f"{kind} at " in message
    assert f"{name}.py:{place}." in message
    assert message.endswith(f'python -c "import {name}"')
    assert "secret" not in message


def test_a_module_that_can_be_imported_is_checked_as_it_is_loaded(write: Write) -> None:
    check_agents("")
    check_agents(write("one = create_evented_agent(agent('one'))"))
    with pytest.raises(ConfigurationError, match="no wrapped agent"):
        check_agents(write())
