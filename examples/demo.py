"""`make demo`: one run, three observers, one cut connection, and the proof that nothing was lost.

It starts Redis (a private one unless `DURABLE_REDIS_URL` is set), a worker and the API, and stops all of them at the
end. The exit code is 0 only if everything that it tells has really happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import httpx
import redis
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table

from durable import Backoff, Chunk, Client, DurableError, RunStatus, RunView, Settings
from durable.chunks import TextDelta, ToolResult
from durable.cli.terminal import Terminal
from durable.cli.transcript import Transcript
from durable.dev.ports import LOOPBACK, free_port
from durable.dev.redis_server import PrivateRedis
from durable.dev.services import api_address, api_service, worker_service
from durable.dev.stack import Stack
from durable.errors import ServerUnreachable
from examples.cable import Cable

ROOT: Final = Path(__file__).resolve().parents[1]
PROMPT: Final = "Where is it warmest in October: in Basel, in Lisbon or in Oslo?"
# The first observer has read so much of the answer when its connection is cut: the middle of the run.
PIECES_BEFORE_THE_CUT: Final = 8
UNOBSERVED_SECONDS: Final = 0.7
LONGEST_SECONDS: Final = 120.0


class DemoFailed(Exception):
    """Something that the demo promises did not happen; the text says what."""


@dataclass
class Observer:
    """What one reader of the run has got."""

    name: str
    after: int
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def cursor(self) -> int:
        """The last seq that it has."""
        return self.chunks[-1].seq if self.chunks else self.after


@dataclass
class Account:
    """What has happened, for the summary."""

    run: RunView
    submit_ms: float
    observers: list[Observer]


def main() -> int:
    """Run the demo; the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    log = io.StringIO()
    began = time.monotonic()
    try:
        with services(console, log) as port:
            account = asyncio.run(story(console, port))
            summarise(console, account)
    except KeyboardInterrupt:
        console.print("\nInterrupted. Everything is stopped.")
        return 1
    except (DemoFailed, DurableError, redis.RedisError) as error:
        console.print(f"\nThe demo failed: {error}", style="bold red", markup=False)
        lines = [line for line in log.getvalue().splitlines() if "/readyz" not in line]
        for line in lines[-12:]:
            console.print(f"  {line}", style="dim", markup=False)
        return 1
    console.print(f"Everything is stopped. It took {time.monotonic() - began:.0f} s.")
    console.print("\nNext: [bold]make dev[/] leaves all of this running, with Flower and the API's own pages.")
    return 0


@contextmanager
def services(console: Console, log: io.StringIO) -> Iterator[int]:
    """Redis, the API and a worker, for as long as the context lasts; gives the API's port."""
    with ExitStack() as cleanup:
        # Keys of its own: on a Redis that others use, the demo touches nothing but what it made.
        prefix = f"durable-demo-{secrets.token_hex(4)}"
        given = Settings().redis_url
        if given is None:
            url = cleanup.enter_context(PrivateRedis()).url
        else:
            url = given.get_secret_value()
            cleanup.enter_context(_visiting(url, prefix))
        console.print(f"[green]✓[/] Redis    {'as DURABLE_REDIS_URL says' if given else f'private, {url}'}")
        port = free_port()
        address = api_address(LOOPBACK, port)
        env = {"DURABLE_PREFIX": prefix}
        stack = cleanup.enter_context(Stack(log))
        stack.start(replace(api_service(url, port=port, env=env), cwd=ROOT))
        console.print(f"[green]✓[/] API      {address}")
        worker = worker_service(url, "examples.agents", grace_seconds=1, env=env)
        stack.start(replace(worker, cwd=ROOT, ready=lambda: _live_workers(address) > 0))
        console.print("[green]✓[/] Worker   Celery, agents of examples/agents.py")
        yield port


@contextmanager
def _visiting(url: str, prefix: str) -> Iterator[None]:
    """Use somebody's Redis, and leave nothing there."""
    with closing(redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=10)) as client:
        client.ping()
        try:
            yield
        finally:
            for key in client.scan_iter(f"*{prefix}*", count=1000):
                client.unlink(key)


def _live_workers(address: str) -> int:
    answer = httpx.get(f"{address}/readyz", timeout=2, trust_env=False)
    return int(answer.json().get("workers", 0))


async def story(console: Console, port: int) -> Account:
    """Submit, observe, cut, observe again."""
    try:
        async with (
            asyncio.timeout(LONGEST_SECONDS),
            client_of(api_address(LOOPBACK, port)) as client,
            Cable(LOOPBACK, port) as cable,
        ):
            return await _story(console, client, cable)
    except TimeoutError:
        raise DemoFailed(f"it was not over within {LONGEST_SECONDS:.0f} s.") from None


async def _story(console: Console, client: Client, cable: Cable) -> Account:
    (agent,) = await client.agents()
    console.print(f"\nThe agent [bold]{agent.name}[/] ({agent.model}) is asked: {PROMPT}")
    began = time.perf_counter()
    run = await client.submit(agent.name, PROMPT)
    submit_ms = (time.perf_counter() - began) * 1000
    console.print(f"Run [bold]{run.run_id}[/], submitted in [bold]{submit_ms:.1f} ms[/]")

    first = Observer("1, cut off", 0)
    console.print("\n[bold]Observer 1[/] follows from the start, until its connection is cut:")
    await watch_until_cut(client, cable, run.run_id, first)
    now = await client.get(run.run_id)
    if now.ended:
        raise DemoFailed(f"the run had {now.status} already when the connection was cut.")
    console.print(f"\n[yellow]✂ connection aborted after chunk {first.cursor}; the run is {now.status}[/]")

    await asyncio.sleep(UNOBSERVED_SECONDS)
    now = await client.get(run.run_id)
    console.print(f"While nobody watched, the run went on from chunk {first.cursor} to {now.last_seq}.")

    second, third = Observer("2, goes on", first.cursor), Observer("3, from the start", 0)
    console.print(
        f"\n[bold]Observer 2[/] goes on after chunk {first.cursor}; [bold]observer 3[/] reads all, unseen here:"
    )
    await asyncio.gather(watch(client, run.run_id, second, shown=True), watch(client, run.run_id, third, shown=False))
    run = await client.wait(run.run_id)
    if run.status is not RunStatus.COMPLETED:
        raise DemoFailed(f"the run has {run.status}: {run.error.message if run.error else 'no reason is known'}")
    prove(first, second, third, last_seq=run.last_seq)
    return Account(run, submit_ms, [first, second, third])


def client_of(url: str, reconnect: Backoff | None = None) -> Client:
    """A client that reaches the server directly, whatever proxies the environment names."""
    return Client(url, transport=httpx.AsyncHTTPTransport(), reconnect=reconnect or Backoff())


async def watch_until_cut(client: Client, cable: Cable, run_id: str, observer: Observer) -> None:
    """Follow through the cable and cut it in the middle. This observer does not come back by itself."""
    transcript, pieces = Transcript(Terminal()), 0
    try:
        async with (
            client_of(cable.url, Backoff(patience=0)) as cut_off,
            aclosing(cut_off.observe(run_id)) as chunks,
        ):
            async for chunk in chunks:
                observer.chunks.append(chunk)
                transcript.show(chunk)
                pieces += isinstance(chunk, TextDelta)
                if pieces == PIECES_BEFORE_THE_CUT:
                    cable.cut()
    except ServerUnreachable:
        if pieces < PIECES_BEFORE_THE_CUT:
            raise
        transcript.close()
        return
    transcript.close()
    run = await client.get(run_id)
    why = f": {run.error.message}" if run.error else ""
    raise DemoFailed(f"the run has {run.status} before its observer could be cut off{why}")


async def watch(client: Client, run_id: str, observer: Observer, *, shown: bool) -> None:
    """Follow from the observer's cursor to the run's end."""
    transcript = Transcript(Terminal())
    async with aclosing(client.observe(run_id, observer.after)) as chunks:
        async for chunk in chunks:
            observer.chunks.append(chunk)
            if shown:
                transcript.show(chunk)
    if shown:
        transcript.close()


def digest(chunks: list[Chunk]) -> str:
    """The SHA-256 of chunks as JSON."""
    return hashlib.sha256(b"\n".join(to_json(chunk.to_wire()) for chunk in chunks)).hexdigest()


def prove(first: Observer, second: Observer, third: Observer, *, last_seq: int) -> None:
    """The first and the second observer together have seen what the third has: every chunk, once, in order.

    Raises:
        DemoFailed: It is not so.
    """
    joined = first.chunks + second.chunks
    if [chunk.seq for chunk in joined] != list(range(1, last_seq + 1)):
        raise DemoFailed("the observers 1 and 2 together have not got every chunk once and in order.")
    if digest(joined) != digest(third.chunks):
        raise DemoFailed("observer 3 has got other chunks than observers 1 and 2 together.")
    if not joined[-1].final or any(chunk.final for chunk in joined[:-1]):
        raise DemoFailed("the final chunk is not the last one.")


def summarise(console: Console, account: Account) -> None:
    """The table at the end."""
    run, (first, second, third) = account.run, account.observers
    table = Table(box=None, pad_edge=False, header_style="bold", title="\nWho has seen what", title_justify="left")
    for title in ("OBSERVER", "CHUNKS", "SEQ", "SHA-256"):
        table.add_column(title, justify="right" if title == "CHUNKS" else "left", no_wrap=True)
    rows = {
        first.name: first.chunks,
        second.name: second.chunks,
        "1 and 2 together": first.chunks + second.chunks,
        third.name: third.chunks,
    }
    for name, chunks in rows.items():
        table.add_row(name, str(len(chunks)), f"{chunks[0].seq} to {chunks[-1].seq}", f"{digest(chunks)[:16]}…")
    console.print(table)
    console.print("[green]✓[/] Observers 1 and 2 together have seen exactly what observer 3 has seen.")
    tools = sum(isinstance(chunk, ToolResult) for chunk in third.chunks)
    steps = sum(chunk.type == "step-finish" for chunk in third.chunks)
    seconds = (run.finished_at - run.created_at).total_seconds() if run.finished_at else 0
    console.print(
        f"[green]✓[/] Run {run.run_id} has {run.status}: {steps} steps, {tools} tool calls, {run.last_seq} chunks, "
        f"{seconds:.1f} s; submitted in {account.submit_ms:.1f} ms."
    )


if __name__ == "__main__":
    sys.exit(main())
