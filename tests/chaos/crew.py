"""Celery workers that start at once: forks of a warm process that has imported all that a worker needs.

A fork goes the way of `durable worker` from there on. Each has a log file of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[2]


class Worker:
    """One worker, as who started it sees it.

    Attributes:
        pid: Its process.
        log: The file with its output.
        frozen: Whether it was sent SIGSTOP last.
    """

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.frozen = False

    @property
    def ready(self) -> bool:
        """Whether it has begun to take work."""
        return " ready." in self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)
        self.frozen = {signal.SIGSTOP: True, signal.SIGCONT: False}.get(number, self.frozen)


class Crew:
    """The workers of one deployment. A context manager; at its end all of them are killed.

    Args:
        env: Of all workers.
        logs: The folder for their logs.

    Attributes:
        live: The workers that were not ended by us.
        all: All that ever were.
    """

    def __init__(self, env: Mapping[str, str], logs: Path) -> None:
        self.live: list[Worker] = []
        self.all: list[Worker] = []
        self._env = env
        self._logs = logs

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.crew"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **self._env, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(10)

    def start(self) -> Worker:
        """Start a worker. It is ready a moment later."""
        log = self._logs / f"worker-{len(self.all) + 1}.log"
        log.touch()
        pid = self._ask({"log": str(log)})["pid"]
        worker = Worker(pid, log)
        self.live.append(worker)
        self.all.append(worker)
        return worker

    def kill(self, worker: Worker) -> None:
        """Kill a worker."""
        self.live.remove(worker)
        worker.send(signal.SIGKILL)

    def fallen(self) -> dict[int, Worker]:
        """Workers that ended by themselves, by their process ids; they are live no more."""
        found = self._ask({})["gone"]
        fallen = {worker.pid: worker for worker in self.live if str(worker.pid) in found}
        self.live = [worker for worker in self.live if worker.pid not in fallen]
        return fallen

    def _ask(self, order: dict[str, Any]) -> Any:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        pipe_in.write(json.dumps(order).encode() + b"\n")
        pipe_in.flush()
        line = pipe_out.readline()
        assert line, "the warm process has ended"
        return json.loads(line)


def serve() -> None:
    """Fork a worker for each order."""
    from worker.app import app  # it reads the environment, which only this process has

    _ = app.durable.definitions  # type: ignore[attr-defined]  # the program is there; this imports the agents
    live: set[int] = set()
    gone: dict[int, int] = {}
    try:
        while line := sys.stdin.buffer.readline():
            for pid in list(live):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    live.discard(pid)
                    gone[pid] = os.waitstatus_to_exitcode(status)
            order = json.loads(line)
            pid = 0
            if "log" in order:
                pid = os.fork()
                if pid == 0:
                    _be_worker(app, order["log"])
                live.add(pid)
            sys.stdout.write(json.dumps({"pid": pid, "gone": gone}) + "\n")
            sys.stdout.flush()
    finally:
        for pid in live:
            os.kill(pid, signal.SIGKILL)


def _be_worker(app: Any, log: str) -> None:
    """Be a Celery worker; never returns."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        name = f"--hostname=w{os.getpid()}-{time.monotonic_ns()}@here"
        app.worker_main(["worker", name, "--loglevel=info", "--without-mingle", "--without-gossip"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
