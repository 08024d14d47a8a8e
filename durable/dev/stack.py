"""A supervisor: starts child processes in order, shows their output in one place, ends them in reverse order.

Invariant: when a `Stack` is closed, and also when its process was killed, no process of any child's group is left
(a child that moves itself into a session of its own is out of reach).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import Final, Self, TextIO

import httpx

from durable.dev.comeback import Comeback, end_of
from durable.dev.guardian import Guardian, spawn
from durable.errors import ConfigurationError

POLL_SECONDS: Final = 0.05
SLOWEST_POLL_SECONDS: Final = 0.4
NAME_WIDTH: Final = 6
COLOURS: Final = ("36", "33", "35", "32", "34", "31")
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Ready = str | Callable[[], bool]


@dataclass(frozen=True)
class Service:
    """What it takes to start one child.

    Attributes:
        name: The prefix of its lines.
        argv: The program and its arguments. No secret belongs here: other users see it.
        env: Added to the environment of this process.
        ready: A URL that answers 2xx, or a function that returns True, once the service can be used.
        ready_seconds: How long that may take.
        grace_seconds: How long it may take to end after SIGTERM; then its group gets SIGKILL.
        cwd: Its working folder; by default that of this process.
        restarts: Whether it is started again when it ends by itself. Else the stack ends with it.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Ready | None = None
    ready_seconds: float = 30.0
    grace_seconds: float = 10.0
    cwd: Path | None = None
    restarts: bool = False


class StopRequested(Exception):
    """A signal asked the stack to stop while it was still starting."""


class Child:
    """One running service: its process, its output, its end.

    Attributes:
        service: What it takes to start it.
        comeback: Decides whether it is started again.
        comes_back_at: When it is, by the monotonic clock; None while it runs.
    """

    _process: subprocess.Popen[bytes]
    _guardian: Guardian

    def __init__(self, service: Service, emit: Callable[[str, str], None]) -> None:
        self.service = service
        self.comeback = Comeback()
        self.comes_back_at: float | None = None
        self._emit = emit
        self._start()

    def _start(self) -> None:
        service = self.service
        self._began = time.monotonic()
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **service.env}
        self._process, self._guardian = spawn(service.argv, env=env, cwd=service.cwd, stdout=subprocess.PIPE)
        self._pump = threading.Thread(target=self._forward, name=f"output of {service.name}", daemon=True)
        self._pump.start()

    @property
    def name(self) -> str:
        """The name of its service."""
        return self.service.name

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative after a signal."""
        return self._process.poll()

    @property
    def lived_seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._began

    def restart(self) -> None:
        """Start it again, once it has ended.

        Raises:
            OSError: The program can't be started.
        """
        self.kill()  # what is left of its group
        self.comes_back_at = None
        self._start()

    def is_ready(self) -> bool:
        """Whether its ready check holds now. Without a check it is ready from the start."""
        ready = self.service.ready
        if ready is None:
            return True
        if callable(ready):
            return ready()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(ready, timeout=2, trust_env=False).is_success
        return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to its process."""
        self._process.send_signal(number)

    def end(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """SIGTERM, then SIGKILL to its whole group after the grace time, or as soon as `hurried()` is true."""
        try:
            self._process.terminate()
            deadline = time.monotonic() + self.service.grace_seconds
            while self._process.poll() is None and time.monotonic() < deadline and not hurried():
                time.sleep(POLL_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to its whole group, at once; returns when it is gone and its output was read."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._guardian.release()
        self._pump.join(timeout=1)
        if self._process.stdout is not None and not self._pump.is_alive():
            self._process.stdout.close()

    def _forward(self) -> None:
        for line in self._process.stdout or ():
            self._emit(self.name, line.decode(errors="replace").rstrip("\r\n"))


class Stack:
    """Child processes that live and end together.

        with Stack() as stack:
            stack.start(Service("api", ("uvicorn", "api.app:app"), ready="http://127.0.0.1:8000/readyz"))
            sys.exit(stack.run_forever())

    Args:
        output: Where the children's lines go; standard output by default. Coloured on a terminal, unless
            NO_COLOR is set.
        handle_signals: Let SIGINT, SIGTERM and SIGHUP stop the stack in good order, and a second one at once.
            Only for the main thread of a program of its own; the former handlers come back at the end.
    """

    def __init__(self, output: TextIO | None = None, *, handle_signals: bool = False) -> None:
        self._output = output if output is not None else sys.stdout
        self._on_terminal = self._output.isatty()
        self._coloured = self._on_terminal and not os.environ.get("NO_COLOR")
        self._writing = threading.Lock()
        self._colours: dict[str, str] = {}
        self._palette: Iterator[str] = cycle(COLOURS)
        self._width = NAME_WIDTH
        self._children: list[Child] = []
        self._watched: dict[str, Callable[[], bool]] = {}
        self._handle_signals = handle_signals
        self._former_handlers: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._stop_requests = 0

    def __enter__(self) -> Self:
        if self._handle_signals:
            for number in STOP_SIGNALS:
                self._former_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            for number, handler in self._former_handlers.items():
                signal.signal(number, handler)
            self._former_handlers.clear()

    def start(self, service: Service) -> Child:
        """Start a service and wait until it is ready.

        Raises:
            ConfigurationError: It can't be started, ended at once, or was not ready in time.
            StopRequested: A signal came first.
        """
        if self._stop_requests:
            raise StopRequested
        self._width = max(self._width, len(service.name))
        try:
            child = Child(service, self.emit)
        except OSError as error:
            raise ConfigurationError(f"{service.name} can't be started: {error.strerror}.") from error
        self._children.append(child)
        deadline = time.monotonic() + service.ready_seconds
        pause = POLL_SECONDS
        while not child.is_ready():
            if self._stop_requests:
                raise StopRequested
            if child.exit_code is not None:
                raise ConfigurationError(
                    f"{service.name} ended with code {child.exit_code} before it was ready; its output says why."
                )
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{service.name} was not ready within {service.ready_seconds:g} s.")
            time.sleep(pause)
            pause = min(pause * 1.5, SLOWEST_POLL_SECONDS)  # each check may leave a line in a log
        return child

    def watch(self, name: str, alive: Callable[[], bool]) -> None:
        """Let the stack also end when `alive()` turns false, for what is not its child."""
        self._watched[name] = alive

    def run_forever(self) -> int:
        """Wait until a signal asks to stop, a child is gone for good or the terminal is, then stop everything.

        Returns:
            The exit code of the program: 0 when asked to stop, 1 when something ended by itself.
        """
        gone = None
        while not self._stop_requests and gone is None and not self._terminal_is_gone():
            time.sleep(POLL_SECONDS)
            gone = self._first_gone()
        if gone is not None:
            self.emit("stack", f"{gone}; stopping everything.")
        self.stop()
        return 0 if gone is None else 1

    def stop(self) -> None:
        """End all children in reverse order. A second signal, or an exception, turns to SIGKILL at once."""
        if self._children and self._stop_requests:
            self.emit("stack", "stopping …; a second Ctrl-C does not wait")
        try:
            while self._children:
                self._children.pop().end(hurried=lambda: self._stop_requests > 1)
        finally:
            while self._children:
                self._children.pop().kill()

    def emit(self, name: str, line: str) -> None:
        """Write one line under a name, as the children's lines are written."""
        prefix = f"{name:>{self._width}} |"
        with self._writing:
            if self._coloured:
                colour = self._colours.get(name) or self._colours.setdefault(name, next(self._palette))
                prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
            # A reader of our output that went away must not take the children with it half-way.
            with contextlib.suppress(OSError, ValueError):
                self._output.write(f"{prefix} {line}\n")
                self._output.flush()

    def _first_gone(self) -> str | None:
        for child in self._children:
            exit_code = child.exit_code
            if exit_code is not None and not self._brought_back(child, exit_code):
                return end_of(child.name, exit_code)
        return next((f"{name} is gone" for name, alive in self._watched.items() if not alive()), None)

    def _brought_back(self, child: Child, exit_code: int) -> bool:
        """Whether a child that has ended runs again, or will."""
        if not child.service.restarts:
            return False
        words = end_of(child.name, exit_code)
        if child.comes_back_at is None:
            pause = child.comeback.pause_after(exit_code, child.lived_seconds)
            if pause is None:
                return False
            child.comes_back_at = time.monotonic() + pause
            if pause:
                self.emit("stack", f"{words}; it is started again in {pause:g} s")
        if time.monotonic() < child.comes_back_at:
            return True
        try:
            child.restart()
        except OSError:
            return False
        self.emit("stack", f"{words}; started again, its pid is {child.pid}")
        return True

    def _terminal_is_gone(self) -> bool:
        """Whether the terminal was closed. SIGHUP tells only its session's leader, which may be `make` or `ssh`."""
        return self._on_terminal and not self._output.isatty()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1
