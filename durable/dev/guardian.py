"""The end of a child process when its owner can't end it: after SIGKILL, a crash, a closed terminal.

A guardian is a small shell in a session of its own. It holds the read end of a pipe whose only write end
belongs to the owner, so it learns from the kernel that the owner is gone and then kills the child's process
group. This was preferred to `PR_SET_PDEATHSIG`, which exists on Linux only, fires when the *thread* that
forked ends, and needs a `preexec_fn`, which is not safe beside threads.

Invariant: a watched process group does not outlive its owner by more than the time a signal takes. Only the
instant between a fork and the next line of Python is not covered.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

SHELL: Final = "/bin/sh"
# `-s KILL`, since dash takes no `--` after `-KILL`.
SCRIPT: Final = 'read -r group || exit 0; read -r released && exit 0; kill -s KILL -- "-$group"'


class Guardian:
    """Watches over one process group on behalf of this process.

    Created before the process it watches. One guardian serves one group, once.
    """

    def __init__(self) -> None:
        self._shell = subprocess.Popen(  # noqa: S603  a constant script
            [SHELL, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        """Kill the process group `group` as soon as this process is gone."""
        self._tell(f"{group}\n")

    def release(self) -> None:
        """Watch no longer. The group is left alone; repeating the call is harmless."""
        self._tell("released\n")
        if self._shell.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._shell.stdin.close()
        self._shell.wait()

    def _tell(self, line: str) -> None:
        if self._shell.stdin is None or self._shell.stdin.closed:
            return
        # A guardian that somebody killed must not bring its owner down.
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(line.encode())
            self._shell.stdin.flush()


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: IO[bytes] | int,
) -> tuple[subprocess.Popen[bytes], Guardian]:
    """Start `argv` as the leader of a session of its own, with a guardian over it.

    Its standard error goes where its standard output goes; its standard input is empty. The caller waits for
    the process and then releases the guardian.

    Raises:
        OSError: The program can't be started.
    """
    guardian = Guardian()
    try:
        process = subprocess.Popen(  # noqa: S603  callers pass programs of their own choice, never a client's words
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except BaseException:
        guardian.release()
        raise
    guardian.watch(process.pid)
    return process, guardian
