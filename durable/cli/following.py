"""Following a run in a terminal, as text or as JSON lines, and leaving it.

Invariant: leaving never touches the run, and always says how to come back to the very next chunk.
"""

from __future__ import annotations

import asyncio
import shlex
from contextlib import aclosing, suppress
from typing import Final

from durable.chunks import Abort, Chunk
from durable.chunks.base import Json
from durable.cli.attendance import tell_outage
from durable.cli.exits import Exit, exit_of_run
from durable.cli.terminal import Terminal
from durable.cli.transcript import Transcript
from durable.client import Client
from durable.errors import DurableError, InvalidRequest, RunExpired, UnknownRun
from durable.views import RunStatus, RunView

SILENCE_SECONDS: Final = 3.0
"""After so long without any chunk it is told what the run waits for."""
_NO_WAY_BACK: Final = (InvalidRequest, RunExpired, UnknownRun)
_PROGRESS: Final = frozenset({"executing", *(status.value for status in RunStatus if status.ended)})


class Following:
    """One run in one terminal."""

    def __init__(self, terminal: Terminal, *, as_json: bool) -> None:
        """Nothing is followed yet."""
        self._terminal = terminal
        self._transcript = None if as_json else Transcript(terminal)
        self._transcripts: dict[str, Transcript] = {}  # of the runs of a tree
        self._shown = ""  # the run of it whose chunks were written last
        self._run_id: str | None = None
        self._cursor = "0"
        self._tree = False
        self._aborted = ""  # why the run was cancelled, if its log says so

    async def follow(
        self,
        client: Client,
        run_id: str,
        after: str = "0",
        *,
        tree: bool = False,
        until_idle: bool | float | None = None,
    ) -> Exit:
        """Write the run from the cursor on, until it has ended; with a tree, all that it has started, too.

        Raises:
            DurableError: It could not be followed to its end.
        """
        self._run_id, self._cursor, self._tree = run_id, after, tree
        silence = asyncio.create_task(self._explain_silence(client, run_id))
        try:
            async with aclosing(client.observe(run_id, after, tree=tree, until_idle=until_idle)) as chunks:
                async for chunk in chunks:
                    silence.cancel()
                    self._show(chunk)
            view = await client.wait(run_id)
        except _NO_WAY_BACK:
            raise
        except DurableError:
            self._leave("This terminal lost sight of the run. It may well go on.")
            raise
        finally:
            silence.cancel()
            await asyncio.gather(silence, return_exceptions=True)
        if self._transcript is not None:
            self._transcript.close()
            self._sum_up(view)
        return exit_of_run(view.status)

    def _show(self, chunk: Chunk) -> None:
        if self._transcript is None:
            self._terminal.json(chunk.to_wire())
        else:
            self._turn_to(chunk.run_id).show(chunk)
        if isinstance(chunk, Abort) and chunk.run_id == self._run_id:
            self._aborted = chunk.payload.reason or ""
        self._cursor = chunk.cursor

    def _turn_to(self, run_id: str) -> Transcript:
        """The transcript of one run of a tree; each has its own, and a line tells whose turn it is."""
        if self._transcript is None or not self._tree:
            return self._transcript or Transcript(self._terminal)
        if run_id != self._shown:
            self._transcript.close()
            self._terminal.line(f"▸ {run_id}", "dim")
            self._shown = run_id
            self._transcript = self._transcripts.setdefault(run_id, Transcript(self._terminal))
        return self._transcript

    async def _explain_silence(self, client: Client, run_id: str) -> None:
        """Say what a run waits for that stays silent, once, unless it is being executed."""
        await asyncio.sleep(SILENCE_SECONDS)
        with suppress(DurableError):  # an outage is told by others
            found = await client.diagnosis(run_id)
            if found.reason not in _PROGRESS:
                self._terminal.note(found.summary)

    def interrupted(self) -> Exit:
        """Ctrl-C: leave the run alone."""
        if self._run_id is None:
            self._terminal.note("Interrupted before the server confirmed a run.")
            return Exit.INTERRUPTED
        self._leave("Detached. The run goes on.")
        return Exit.OK

    def outage(self, trouble: DurableError | None) -> None:
        """The server is away, or back: say so on a line of its own."""
        if self._transcript is not None:
            self._transcript.close()
        tell_outage(trouble)

    def _leave(self, words: str) -> None:
        back = f"Come back:  {come_back(str(self._run_id), self._cursor, tree=self._tree)}"
        if self._transcript is None:
            self._terminal.note(f"{words}\n{back}")
            return
        self._transcript.close()
        self._terminal.line(words, "bold")
        self._terminal.line(back)

    def _sum_up(self, view: RunView) -> None:
        match view.status:
            case RunStatus.COMPLETED:
                self._show_output(view.output)
                self._terminal.line(f"✓ completed{_effort(view)}", "bold green")
            case RunStatus.CANCELLED:
                self._terminal.line(f"✗ cancelled{': ' + self._aborted if self._aborted else ''}", "bold yellow")
            case _:
                why = f": {view.error.code}: {view.error.message}" if view.error else ""
                self._terminal.line(f"✗ {view.status}{why}", "bold red")

    def _show_output(self, output: Json) -> None:
        # Text has flowed by already.
        if output is not None and not isinstance(output, str):
            self._terminal.write("= ")
            self._terminal.json(output)


def come_back(run_id: str, after: str, *, tree: bool = False) -> str:
    """The command that goes on from there."""
    options = f" --after {shlex.quote(after)}" if after != "0" else ""
    options += " --tree" if tree else ""
    # An id that a caller chose may look like an option.
    return f"durable observe{options} -- {run_id}" if run_id.startswith("-") else f"durable observe {run_id}{options}"


def _effort(view: RunView) -> str:
    parts = [f"{view.last_seq} chunks"]
    if view.finished_at is not None:
        parts.append(f"{(view.finished_at - view.created_at).total_seconds():.1f} s")
    if view.usage is not None and view.usage.total_tokens:
        parts.append(f"{view.usage.total_tokens} tokens")
    if view.attempt > 1:
        parts.append(f"{view.attempt} attempts")
    return f" ({', '.join(parts)})"
