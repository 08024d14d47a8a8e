"""A stage for crashes: runs, attempts at them in processes of their own, and what the attempts did."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from pydantic_ai.messages import ModelMessagesTypeAdapter

from durable.agents.registry import load_agents
from durable.checkpoint import decode_messages
from durable.execution import Engine
from durable.probes import Probe, silent
from durable.runs import RunRecord
from durable.settings import Settings
from durable.store import Store, text
from tests.chaos import effects
from tests.chaos.effective import nameless
from tests.chaos.effects import Effect
from tests.chaos.forks import AGENTS, Forks, Order, Report
from tests.workbench import Workbench

# What differs between any two runs.
_OWN = frozenset({"timestamp", "run_id", "conversation_id"})


class Stage:
    """Runs of the agents of this folder. An async context manager.

    Args:
        forks: Where attempts are made.
        settings: Of all processes.

    Attributes:
        bench: This process's share.
        woken: The runs that were dispatched by this process, in order.
        sabotage: What is broken on purpose in the attempts to come; "" for nothing.
    """

    def __init__(self, forks: Forks, settings: Settings) -> None:
        self.bench = Workbench(settings)
        self.settings = settings
        self.woken: list[str] = []
        self.sabotage = ""
        self._forks = forks
        self._folder = tempfile.TemporaryDirectory(prefix="durable-effects-")

    async def __aenter__(self) -> Self:
        await self.bench.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.bench.__aexit__()
        self._folder.cleanup()

    def execute(
        self,
        run_id: str,
        point: str = "",
        occurrence: int = 1,
        beside: str = "",
        *,
        of: str = "",
        once: bool = False,
        **settings: Any,
    ) -> Report:
        """Make an attempt, in a new process that crashes at the given passing of a point; and one beside it. `once`: it
        does not go on when it has given the run back after a step. Its effects are those of the run `of`."""
        fields = self.settings.model_dump(exclude_unset=True) | {"redis_url": self.settings.store_url, **settings}
        order = Order(
            fields, run_id, str(self.effects_file(of or run_id)), point, occurrence, self.sabotage, beside, once
        )
        return self._forks.execute(order)

    def resume(self, run_id: str, **settings: Any) -> str:
        """Make an attempt that must not crash; how it ended."""
        report = self.execute(run_id, **settings)
        assert not report.crashed
        return report.outcome

    async def expire(self, run_id: str) -> None:
        """Let the run's lease run out now."""
        keys, record = self.bench.store.keys, await self.record(run_id)
        changed = await self.bench.store.redis.zadd(keys.leases, {f"{run_id}:{record.token}": 0}, xx=True, ch=True)
        assert changed == 1, "nobody has the run"

    async def family(self, run_id: str) -> list[str]:
        """The run, and those that it has started, in the order of their calls; each with its own behind it."""
        redis: Any = self.bench.store.redis
        children = [text(child) for child in await redis.hkeys(self.bench.store.keys.children(run_id))]
        records = sorted([await self.record(child) for child in children], key=lambda found: found.fields["parentCall"])
        return [run_id, *[each for record in records for each in await self.family(record.run_id)]]

    async def crash(self, run_id: str, point: str, occurrence: int = 1, **settings: Any) -> None:
        """Make an attempt that has to crash, and let its lease run out."""
        report = self.execute(run_id, point, occurrence, **settings)
        assert report.crashed, report
        await self.expire(run_id)

    async def record(self, run_id: str) -> RunRecord:
        """The run's record."""
        return await self.bench.runs.get(run_id)

    async def messages(self, run_id: str) -> list[Any]:
        """The conversation as JSON, without what differs from run to run."""
        stored = decode_messages([], await self.bench.runs.checkpoints(run_id))
        return [_without(message) for message in ModelMessagesTypeAdapter.dump_python(stored, mode="json")]

    def effects(self, run_id: str, *kinds: str) -> list[Effect]:
        """What was done, in order; of some kinds only, if any are given."""
        return [effect for effect in effects.read(self.effects_file(run_id)) if not kinds or effect.kind in kinds]

    @asynccontextmanager
    async def engine(self, probe: Probe = silent) -> AsyncIterator[Engine]:
        """An engine in this process, on connections of its own."""
        store = Store.of(self.settings)
        engine = Engine(store, self.settings, load_agents(AGENTS), redispatch=self.wake, probe=probe)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()
            await store.aclose()

    async def wake(self, record: RunRecord) -> None:
        """Note whom to wake."""
        self.woken.append(record.run_id)

    def effects_file(self, run_id: str) -> Path:
        """Where a run, and those that it has started, note what they do."""
        return Path(self._folder.name) / run_id


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(item) for name, item in value.items() if name not in _OWN}
    if isinstance(value, list):
        return [_without(item) for item in value]
    return nameless(value)
