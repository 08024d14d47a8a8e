"""The parts of the run layer below the engine, put together for one test: runs, claims, writers and readers."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Self

from pydantic import SecretStr

from durable.appender import Appender
from durable.chunks import (
    Chunk,
    Finish,
    FinishPayload,
    PartTextPayload,
    StepResult,
    StepStart,
    StepStartPayload,
    TextDelta,
    TurnOutput,
    Usage,
)
from durable.journal import Entry, read
from durable.leases import Lease, Refusal, claim
from durable.observer import Hub, Observer
from durable.runs import NewRun, RunRequest, Runs
from durable.settings import Settings
from durable.store import Store
from durable.trees.observer import TreeObserver
from durable.writer import Ending, RunWriter


class Workbench:
    """One process's share of a deployment, without an engine. A context manager.

    Attributes:
        settings: Of this process.
        store: Its connection.
        runs: The runs of the deployment.
        appender: Sends what its writers write.
        hub: What its readers listen with.
        observer: Reads runs.
        trees: Reads runs with their children.
    """

    def __init__(self, settings: Settings, *, hub: type[Hub] = Hub) -> None:
        self.settings = settings
        self.store = Store.of(settings)
        self.runs = Runs(self.store, settings)
        self.appender = Appender(self.store, settings)
        self.hub = hub(self.store)
        self.observer = Observer(self.store, self.runs, self.hub)
        self.trees = TreeObserver(self.store, self.runs, self.hub)

    async def __aenter__(self) -> Self:
        self.appender.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.appender.stop()
        await self.hub.stop()
        await self.store.aclose()

    async def create(self, **fields: Any) -> str:
        """A new run, queued; its id."""
        record, _ = await self.runs.create(new_run(**fields))
        return record.run_id

    async def claim(self, run_id: str, *, owner: str = "test") -> Lease:
        """A claim that has to succeed."""
        lease = await claim(self.store, self.settings, run_id, owner)
        assert not isinstance(lease, Refusal), lease
        return lease

    async def writer(self, run_id: str | None = None) -> RunWriter:
        """A writer of a run that it has claimed; of a new run by default."""
        return RunWriter(self.appender, await self.claim(run_id or await self.create()))

    async def log(self, run_id: str, after: int = 0) -> list[Entry]:
        """What the log has."""
        return await read(self.store, run_id, after, limit=100_000, max_bytes=2**30)

    async def chunks(self, run_id: str) -> list[Chunk]:
        """The log's chunks."""
        return [chunk for entry in await self.log(run_id) for chunk in entry.chunks()]

    async def wire(self, run_id: str) -> list[bytes]:
        """The log's chunks, as every reader sees them."""
        return [data for entry in await self.log(run_id) for data in entry.wire]

    async def texts(self, run_id: str) -> list[str]:
        """The texts of the log's text deltas."""
        return [chunk.payload.text for chunk in await self.chunks(run_id) if isinstance(chunk, TextDelta)]


def on(url: str, **values: Any) -> Settings:
    """Settings for a server, with keys of their own."""
    given: dict[str, Any] = {"lease_seconds": 5, "heartbeat_seconds": 1, "flush_ms": 0, **values}
    return Settings(redis_url=SecretStr(url), prefix=f"test-{secrets.token_hex(6)}", **given)


def new_run(
    prompt: str = "hello",
    *,
    agent: str = "nobody",
    retention: int = 60,
    asked: Mapping[str, Any] | None = None,
    **fields: Any,
) -> NewRun:
    """A run to create, of an agent that nobody executes; `asked` is what else its request has."""
    request = RunRequest(prompt=prompt, **(asked or {}))
    return NewRun(agent=agent, kind="evented", queue="nowhere", request=request, retention=retention, **fields)


def delta(text: str, part: str = "p1") -> TextDelta:
    """A text delta."""
    return TextDelta(payload=PartTextPayload(id=part, text=text))


def step_start(step: int = 1) -> StepStart:
    """The start of a step."""
    payload = StepStartPayload(step_id=f"step-{step}", message_id=f"m{step}", started_at=0, request={})
    return StepStart(payload=payload)


def finish() -> Finish:
    """The last chunk of a run."""
    output = TurnOutput(text="", usage=Usage(), steps=[])
    return Finish(payload=FinishPayload(output=output, step_result=StepResult(reason="stop")), final=True)


def completed() -> Ending:
    """The end of a run that completed."""
    return Ending("completed", b"", {})
