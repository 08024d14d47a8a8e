"""The documentation is true: its code runs or compiles, its tables are those of the code, its links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from api.app import create_app
from api.bodies import SubmitBody
from api.problems import STATUSES
from durable.background.dispositions import CHOICES
from durable.chunks import KNOWN_TYPES, Chunk, ErrorInfo, StepResult, Usage, parse
from durable.cli.exits import Exit
from durable.runs.record import LONGEST_IDLE
from durable.settings import Settings
from durable.tool_options import ToolOptions
from durable.views import RunView, TaskView
from worker.host import EXIT_STALLED
from worker.pool import EXIT_HUNG
from worker.program import EXIT_CONFIG

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
TASKS = "background-tasks.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def page(name: str) -> str:
    """A page of the documentation."""
    return (ROOT / "docs" / name).read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return [code for found, code in BLOCK.findall(text) if found == language]


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    after = text.split(f"\n{heading}\n", 1)[1]
    return re.split(r"^#+ ", after, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables' rows, without their heads."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        found += [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()[2:]]
    return found


def names(text: str) -> list[str]:
    """The first cells of the rows, without their code marks."""
    return [row[0].strip("`") for row in rows(text)]


def wire_names(model: type[BaseModel]) -> list[str]:
    """The fields of a model, as they are on the wire."""
    return [field.alias or to_camel(name) for name, field in model.model_fields.items()]


def payload_of(kind: type[Chunk]) -> type[BaseModel]:
    """The model of a chunk's payload."""
    model = kind.model_fields["payload"].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


PYTHON = [
    pytest.param(code, id=f"{path.name}-{number}")
    for path in PAGES
    for number, code in enumerate(blocks(path.read_text("utf-8"), "python"), 1)
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_in_the_documentation_compiles_and_its_imports_resolve(code: str) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    compile(code, "<documentation>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    tree = compile(code, "<documentation>", "exec", flags, dont_inherit=True)

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("name", ["my_agents.py", "tools.py", "with_deps.py"])
def test_the_agents_of_the_quickstart_can_be_wrapped(name: str) -> None:
    (code,) = [code for code in blocks(page("quickstart.md"), "python") if code.startswith(f"# {name}\n")]

    exec(compile(code, name, "exec", dont_inherit=True), {"__name__": name.removesuffix(".py")})  # noqa: S102  it is our own page


def test_every_internal_link_leads_somewhere() -> None:
    broken = []
    for path in PAGES:
        for target in LINK.findall(BLOCK.sub("", path.read_text("utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append(f"{path.name}: {target}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_configuration_page_lists_every_setting_with_its_default() -> None:
    written = {row[0].strip("`"): row[1] for row in rows(page("configuration.md"))}

    assert written == {f"DURABLE_{name.upper()}": told(field.default) for name, field in Settings.model_fields.items()}


def told(default: Any) -> str:
    """A default, as the page writes it."""
    if default is None or default == "":
        return "–"  # noqa: RUF001  as it is printed
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_every_variable_that_is_named_exists() -> None:
    known = {f"DURABLE_{name.upper()}" for name in Settings.model_fields}
    text = "".join(path.read_text("utf-8") for path in PAGES)

    assert set(re.findall(r"DURABLE_[A-Z_]+[A-Z]", text)) <= known


def test_the_page_of_background_tasks_lists_every_option_of_a_tool_with_its_default() -> None:
    written = {row[0].strip("`"): row[1].strip("`") for row in rows(section(page(TASKS), "## What a tool may say"))}
    fields = ToolOptions.model_fields.items()
    own = {name: field.default for name, field in fields if name.partition("_")[0] != "agent"}

    assert written == {
        name: "the tool" if name == "concurrency_key" else "its agent's" if name == "queue" else in_python(value)
        for name, value in own.items()
    }


def in_python(value: Any) -> str:
    """A default as the page has it."""
    return "none" if value is None else json.dumps(value) if isinstance(value, str) else repr(value)


def test_the_page_of_background_tasks_tells_of_every_disposition_and_of_every_chunk() -> None:
    text = page(TASKS)
    ways = rows(section(text, "## Which way to make a call"))
    told = " ".join(row[1] for row in rows(section(text, "### What is told where"))) + text

    assert {way for row in ways for way in re.findall(r'"(\w+)"', row[0])} == set(CHOICES)
    assert [kind for kind in KNOWN_TYPES if kind.startswith("background-task-") and f"`{kind}`" not in told] == []


def test_the_page_of_background_tasks_tells_how_long_a_run_waits_and_a_task_is_kept() -> None:
    fields = Settings.model_fields
    kept = (fields["task_retention_seconds"].default, fields["failed_task_retention_seconds"].default)

    assert f"waits for {LONGEST_IDLE:g} seconds in a row" in page(TASKS)
    assert kept == (3600, 86_400)
    assert "can be read for an hour, any other for a day" in page(TASKS)


def test_the_first_example_of_background_tasks_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [code for code in blocks(page(TASKS), "python") if code.startswith("# researching.py")]
    exec(compile(code, "researching.py", "exec", dont_inherit=True), {"__name__": "researching"})  # noqa: S102

    kinds = capsys.readouterr().out.split()
    assert sorted(set(kinds) - {"background-task-progress"}) == sorted(
        f"background-task-{kind}" for kind in ("started", "running", "output", "completed")
    )


def test_agents_that_ask_agents_on_the_page_can_be_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for code in blocks(page(TASKS), "python"):
        if "openai:" in code:
            exec(compile(code, TASKS, "exec", dont_inherit=True), {"__name__": "page"})  # noqa: S102  our own page


def test_the_wire_page_lists_exactly_the_known_types() -> None:
    assert sorted(re.findall(r"^#### `([a-z-]+)`$", page("wire-format.md"), re.MULTILINE)) == sorted(KNOWN_TYPES)


@pytest.mark.parametrize("kind", sorted(KNOWN_TYPES))
def test_the_wire_page_shows_each_payload_as_it_is(kind: str) -> None:
    text = section(page("wire-format.md"), f"#### `{kind}`")
    is_open = False
    if "object" not in KNOWN_TYPES[kind].model_fields:  # else it has no payload
        model = payload_of(KNOWN_TYPES[kind])
        is_open = not model.model_fields
        given = {row[0].strip("`"): row[1] for row in rows(text)}
        assert given == {
            alias: "always" if field.is_required() else "sometimes"
            for alias, field in zip(wire_names(model), model.model_fields.values(), strict=True)
        }

    (example,) = blocks(text, "json")
    chunk = parse(example)
    assert chunk.type == kind
    assert unknown_fields(chunk) == set() or is_open
    assert chunk.to_wire() == json.loads(example)


def test_the_wire_page_tells_who_writes_each_type_and_what_test_sees_it() -> None:
    table = rows(section(page("wire-format.md"), "### All types"))
    assert [re.findall(r"`([a-z-]+)`", row[0]) for row in table] == [[kind] for kind in KNOWN_TYPES]

    for kind, (_, writer, test) in zip(KNOWN_TYPES, table, strict=True):
        source = (ROOT / "durable" / writer.partition("`")[2].partition("`")[0]).read_text("utf-8")
        made = re.search(rf"\b{KNOWN_TYPES[kind].__name__}\(|['\"]{kind}['\"]", source)
        assert made, f"{kind} is not written there"
        file, _, name = test.strip("`").partition("::")
        tests = ast.walk(ast.parse((ROOT / "tests" / file).read_text("utf-8")))
        found = [node.name for node in tests if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert name in found, f"there is no such test of {kind}"


def unknown_fields(value: Any) -> set[str]:
    """Fields of a value, and of what it holds, that no model knows."""
    if isinstance(value, BaseModel):
        found = set(value.model_extra or {})
        return found.union(*(unknown_fields(getattr(value, name)) for name in type(value).model_fields))
    return set()


@pytest.mark.parametrize(("start", "model"), [("`usage`", Usage), ("`stepResult`", StepResult), ("`error`", ErrorInfo)])
def test_the_wire_page_shows_shared_objects_as_they_are(start: str, model: type[BaseModel]) -> None:
    text = section(page("wire-format.md"), "## Shared objects")
    table = text.split(f"\n{start} ", 1)[1].split("\n\n`", 1)[0]

    assert names(table) == wire_names(model)


def test_the_wire_page_shows_the_envelope_as_it_is() -> None:
    assert sorted(names(section(page("wire-format.md"), "## Envelope"))) == sorted([*wire_names(Chunk), "object"])


def test_the_wire_page_shows_a_run_and_a_submit_as_they_are() -> None:
    assert names(section(page("wire-format.md"), "## Runs")) == wire_names(RunView)
    submit = section(page("wire-format.md"), "## Routes").split("The body of a submit", 1)[1]
    assert names(submit) == wire_names(SubmitBody)


def test_the_wire_page_shows_a_background_task_as_it_is() -> None:
    assert names(section(page("wire-format.md"), "### A background task")) == wire_names(TaskView)


def test_the_wire_page_lists_every_route_with_every_status() -> None:
    documented = {
        f"{method.upper()} {path}".replace("run_id", "runId")
        .replace("thread_id", "threadId")
        .replace("file_id", "fileId")
        .replace("task_id", "taskId"): set(operation["responses"])
        for path, operations in create_app().openapi()["paths"].items()
        for method, operation in operations.items()
    }
    text = section(page("wire-format.md"), "## Routes").split("The body of a submit", 1)[0]
    written = {
        row[0].strip("`").partition("?")[0]: set(re.findall(r"\b[2-5]\d\d\b", f"{row[1]} {row[2]}"))
        for row in rows(text)
    }
    assert written == documented


def test_the_wire_page_lists_every_error_that_has_a_status() -> None:
    listed = {
        (row[0], row[1].strip("`")) for row in rows(section(page("wire-format.md"), "## Errors")) if len(row) == 3
    }

    assert {(str(status), error.code) for error, status in STATUSES.items()} <= listed


def test_the_wire_page_lists_every_code_that_a_failed_run_may_have() -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "durable" / "execution").glob("*.py"))
    listed = {row[0].strip("`") for row in rows(section(page("wire-format.md"), "## Errors")) if len(row) == 2}

    assert set(re.findall(r'code="([a-z_]+)"', sources)) <= listed
    assert {"tool_failed", "tool_result_invalid", "ledger_corrupt"} <= listed


def test_the_operations_page_lists_every_exit_code() -> None:
    listed = {(row[0].strip("`"), row[1]) for row in rows(section(page("operations.md"), "## Exit codes"))}

    assert {("durable", str(int(code))) for code in Exit} <= listed
    assert {("worker", str(code)) for code in (EXIT_CONFIG, EXIT_STALLED, EXIT_HUNG)} <= listed


def test_the_first_example_of_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [code for code in blocks(page("quickstart.md"), "python") if code.startswith("# try_it.py\n")]
    # It is run in this process, where a loop of its own is what it asks for.
    exec(compile(code, "try_it.py", "exec", dont_inherit=True), {"__name__": "try_it", "asyncio": asyncio})  # noqa: S102

    assert "success (no tool calls)" in capsys.readouterr().out


def test_the_first_example_of_threads_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [code for code in blocks(page("threads.md"), "python") if code.startswith("# talk.py")]
    exec(compile(code, "talk.py", "exec", dont_inherit=True), {"__name__": "talk", "asyncio": asyncio})  # noqa: S102

    assert capsys.readouterr().out == "You have said 1 things.\nYou have said 2 things.\n"


def test_the_example_of_tools_of_the_caller_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [code for code in blocks(page("requests.md"), "python") if code.startswith("# brought.py")]
    exec(compile(code, "brought.py", "exec", dont_inherit=True), {"__name__": "brought", "asyncio": asyncio})  # noqa: S102

    assert capsys.readouterr().out == "client_tools - You are in Basel.\n"


def test_reasons_of_a_step_are_all_named() -> None:
    reasons = get_args(StepResult.model_fields["reason"].annotation)
    shared = rows(section(page("wire-format.md"), "## Shared objects"))
    (meaning,) = [row[2] for row in shared if row[0] == "`reason`"]

    assert set(re.findall(r"`([a-z-]+)`", meaning)) == set(reasons)


def test_the_example_of_a_budget_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [code for code in blocks(page("budgets.md"), "python") if code.startswith("# budgeted.py\n")]
    exec(compile(code, "budgeted.py", "exec", dont_inherit=True), {"__name__": "budgeted", "asyncio": asyncio})  # noqa: S102

    assert re.fullmatch(r'used \d+ of 20\n\{"len":\d+\}\n', capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("guarded.py", ["tripwire {'reason': 'The message holds a card number.'", "'processorId': 'no_card_numbers'"]),
        ("scored.py", ["1 False has_a_source: There is no link to a source.", "3 False", "max_iterations"]),
        ("pursued.py", ["goal_paused Which colour?", "success (no tool calls)"]),
    ],
)
def test_the_examples_of_the_guardrails_page_run(
    name: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [code for code in blocks(page("guardrails.md"), "python") if code.startswith(f"# {name}\n")]
    exec(compile(code, name, "exec", dont_inherit=True), {"__name__": name.removesuffix(".py")})  # noqa: S102  our own page

    told = capsys.readouterr().out
    assert [words for words in said if words not in told] == []
