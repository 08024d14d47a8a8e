"""A warm process that forks: each attempt at a run gets a process of its own, without paying for its imports again.

The parent is single-threaded and has no event loop, so a fork of it is a clean new process. What is asked for and what
came of it are lines of JSON on its standard input and output.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from durable.agents.registry import load_agents
from durable.execution import Engine, Outcome
from durable.probes import Point
from durable.runs import NewRun, RunRecord, RunRequest, Runs
from durable.settings import Settings
from durable.store import Store
from tests.chaos import sabotage
from tests.chaos.effects import VARIABLE

ROOT: Final = Path(__file__).parents[2]
AGENTS: Final = "tests.chaos.agents,tests.chaos.flows,tests.chaos.task_flows"


@dataclass(frozen=True)
class Order:
    """One attempt to make.

    Attributes:
        settings: Fields of the process's settings.
        run_id: The run to execute.
        effects: The file for the effects.
        point: Where to crash; "" for nowhere.
        occurrence: At which passing of that point, from 1.
        sabotage: What is broken on purpose; "" for nothing.
        beside: Another run that the same process executes at the same time; "" for none.
        once: Whether a run that is given back after a step is left to another process.
    """

    settings: dict[str, Any]
    run_id: str
    effects: str
    point: str = ""
    occurrence: int = 1
    sabotage: str = ""
    beside: str = ""
    once: bool = False


@dataclass(frozen=True)
class Report:
    """What came of an attempt.

    Attributes:
        crashed: Whether the process was killed.
        outcome: How the attempt ended; "" when it crashed or the run was not claimed.
        passed: How often each point was passed.
    """

    crashed: bool
    outcome: str = ""
    passed: dict[str, int] = field(default_factory=dict)


class Forks:
    """The warm process, as its user sees it. A context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()  # the end of its input ends it
        self._process.wait(10)

    def execute(self, order: Order) -> Report:
        """Make an attempt in a new process, and wait for its end."""
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        pipe_in.write(orjson.dumps(asdict(order)) + b"\n")
        pipe_in.flush()
        line = pipe_out.readline()
        assert line, "the warm process has ended"
        return Report(**orjson.loads(line))


def serve() -> None:
    """Fork for each order, and report."""
    asyncio.run(_warm_up())
    gc.freeze()  # collecting in a child would copy what it shares with its parent
    while line := sys.stdin.buffer.readline():
        order = Order(**orjson.loads(line))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _be_child(order, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        crashed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not crashed and os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"an attempt ended with status {status}")
        report = {"crashed": crashed, **(orjson.loads(told) if told and not crashed else {})}
        sys.stdout.buffer.write(orjson.dumps(report) + b"\n")
        sys.stdout.buffer.flush()


def _be_child(order: Order, writer: int) -> None:
    """Execute the run; never returns."""
    os.environ[VARIABLE] = order.effects
    passed: Counter[str] = Counter()

    def probe(point: Point) -> None:
        passed[point.value] += 1
        if point == order.point and passed[point.value] == order.occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sabotage.apply(order.sabotage)
        outcome = asyncio.run(_execute(order, probe))
        os.write(writer, orjson.dumps({"outcome": outcome or "", "passed": passed}))
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


async def _execute(order: Order, probe: Any) -> Outcome | None:
    settings = Settings(**order.settings)
    store = Store.of(settings)
    engine = Engine(store, settings, load_agents(AGENTS), redispatch=_nobody, probe=probe)
    await engine.start()
    other = asyncio.create_task(engine.execute(order.beside)) if order.beside else None
    outcome = await engine.execute(order.run_id)
    if other is not None:
        await other
    while outcome is Outcome.HANDED_BACK and settings.always_resume and not order.once:
        outcome = await engine.execute(order.run_id)
    await engine.stop()
    await store.aclose()
    return outcome


async def _warm_up() -> None:
    """Execute one run of all that there is, so that whatever is made at its first use is made before the forks."""
    settings, store = Settings(), Store.in_memory()
    runs = Runs(store, settings)
    request = RunRequest(prompt="warm up")
    record, _ = await runs.create(NewRun("everything", "evented", "nowhere", request, retention=3600))
    engine = Engine(store, settings, load_agents(AGENTS), redispatch=_nobody)
    await engine.start()
    await engine.execute(record.run_id)
    await engine.stop()
    await store.aclose()


async def _nobody(_: RunRecord) -> None:
    """Whoever executes the run next is told by the test."""


if __name__ == "__main__":
    serve()
