"""The right to execute a run: claim it, keep it, give it back.

A lease is a time limit in Redis; what fences writes is its token. The keeper renews all leases of a process from a
thread of its own, so that neither a busy event loop nor a synchronous tool can delay a renewal. It also takes the right
away: an owner whose lease could not be renewed in time stops before anybody else may begin.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError

from durable.chunks import Chunk, encode_body
from durable.scripts import CLAIM, RELEASE, RENEW, SUSPEND, Arg
from durable.settings import Settings
from durable.store import Store, text

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Lease:
    """One claim of a run.

    Attributes:
        run_id: The run.
        token: Fences every write; also the number of the attempt.
        last_seq: The log's newest seq when the run was claimed.
        claims: Claims since the run last got on, with this one.
        deadline: `time.monotonic()` until which it certainly holds.
        on_lost: Called once, in the owner's event loop, when it no longer holds.
        ending: Whether its owner has asked Redis to end it with the run, or to let the run wait, and has no answer yet:
            that answer tells whether it was lost.
    """

    run_id: str
    token: int
    last_seq: int
    deadline: float
    claims: int = 1
    on_lost: Callable[[], None] = field(default=lambda: None)
    lost: bool = False
    ending: bool = False

    @property
    def member(self) -> str:
        """Its name in the index of leases."""
        return f"{self.run_id}:{self.token}"


ALONE: Final = "alone"
"""The refusal of a run that is executed by nobody who executes others."""


@dataclass(frozen=True)
class Refusal:
    """Why a run could not be claimed: `held`, `early`, `unknown`, `foreign`, `suspended`, `ended` or `alone`."""

    reason: str


async def claim(
    store: Store, settings: Settings, run_id: str, owner: str, agents: Iterable[str] = (), *, crowded: bool = False
) -> Lease | Refusal:
    """Claim a run for `owner`.

    Args:
        store: Where the run is.
        settings: How long the lease is.
        run_id: The run.
        owner: Who claims it.
        agents: The agents that the owner has; any agent's run is claimed when there are none.
        crowded: Whether the owner may be executing other runs. The last attempt at a run that was lost before is
            refused then: it is made alone.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    nonce = secrets.token_urlsafe(12)
    keys = store.keys
    last = settings.max_attempts if crowded else 0
    begun = time.monotonic()
    reply = await store.run(
        CLAIM,
        [keys.run(run_id), keys.leases, keys.wakeups],
        [run_id, owner, nonce, int(settings.lease_seconds * 1000), keys.status_indexes, last, *agents],
    )
    if text(reply[0]) != "claimed":
        return Refusal(text(reply[0]))
    return Lease(run_id, int(reply[1]), int(reply[2]), begun + settings.lease_seconds, int(reply[3]))


async def release(
    store: Store, lease: Lease, *, wake_after: float, held: bool = False, fields: Mapping[str, Arg] | None = None
) -> bool:
    """Hand a run back to the queue; False when the lease was lost before.

    Args:
        store: Where the run is.
        lease: The claim to give up.
        wake_after: Seconds after which a lost wake-up is repeated.
        held: Whether nobody may claim it before that.
        fields: Kept in the run's record.

    Raises:
        StoreUnavailable: Redis does not answer; the lease then simply runs out.
    """
    names, args = _release_call(store, lease, wake_after)
    args.append("1" if held else "0")
    for item in (fields or {}).items():
        args += item
    return bool(await store.run(RELEASE, names, args))


async def suspend(
    store: Store,
    lease: Lease,
    seen: int,
    fields: Mapping[str, Arg],
    chunks: Sequence[Chunk] = (),
    *,
    asking: bool = False,
) -> str:
    """Give a run up until somebody wakes it: `suspended`; or `decided`, when there are more answers to its calls than
    were seen; or `unasked`, when none of its calls waits for one; or `cancel`, when it was asked to end; or `fenced`,
    when the lease was lost before.

    Args:
        store: Where the run is.
        lease: The claim to give up.
        seen: How many answers the owner knows of.
        fields: Kept in the run's record.
        chunks: Written to its log in the same step. Its writer must have written all else before.
        asking: Whether it is a call that waits.

    Raises:
        StoreUnavailable: Redis does not answer; the lease then simply runs out.
    """
    keys = store.keys
    args: list[Arg] = [lease.run_id, lease.token, seen, keys.status_indexes, keys.channel(lease.run_id)]
    args += [len(chunks), b"\n".join(encode_body(chunk) for chunk in chunks), "1" if asking else "0"]
    for item in fields.items():
        args += item
    names = [keys.run(lease.run_id), keys.leases, keys.log(lease.run_id), keys.calls(lease.run_id)]
    lease.ending = True
    verdict = text(await store.run(SUSPEND, names, args))
    lease.ending = verdict == "suspended"
    return verdict


def _release_call(store: Store, lease: Lease, wake_after: float) -> tuple[list[str], list[Any]]:
    keys = store.keys
    return (
        [keys.run(lease.run_id), keys.leases, keys.wakeups],
        [lease.run_id, lease.token, int(wake_after * 1000), keys.status_indexes],
    )


class LeaseKeeper:
    """Renews the leases of one process, from its own thread, while the event loop is alive.

    The loop is alive while it runs `tick` at least every `stall_seconds`; past that, all runs are handed back and
    `on_stall` is called (a worker exits then).
    """

    def __init__(self, store: Store, settings: Settings, on_stall: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._settings = settings
        self._on_stall = on_stall
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._ticked = time.monotonic()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._ticker = self._loop.create_task(self._tick(), name="lease-tick")
        self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread. Leases that are left run out by themselves."""
        self._stopped.set()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def add(self, lease: Lease) -> None:
        """Keep a lease."""
        with self._lock:
            self._leases[lease.member] = lease

    def remove(self, lease: Lease) -> None:
        """Keep a lease no longer."""
        with self._lock:
            self._leases.pop(lease.member, None)

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            self._touch()
            await asyncio.sleep(min(1.0, self._settings.stall_seconds / 4))

    def _touch(self) -> None:
        try:
            if self._settings.heartbeat_file is not None:
                self._settings.heartbeat_file.touch()
        except OSError as error:
            log.warning("the heartbeat file can't be touched: %s", error.strerror)

    def _keep(self) -> None:
        pause = self._settings.heartbeat_seconds
        while not self._stopped.wait(pause) and not self._orphaned():
            with self._lock:
                leases = list(self._leases.values())
            if leases and time.monotonic() - self._ticked > self._settings.stall_seconds:
                self._give_up(leases)
                continue
            renewed = not leases or self._renew(leases)
            self._drop_overdue(leases)
            # A renewal that failed is repeated soon: each lease still has until its deadline.
            pause = self._settings.heartbeat_seconds if renewed else min(0.2, self._settings.heartbeat_seconds)

    def _orphaned(self) -> bool:
        """Whether the event loop was closed without `stop`: nobody is left who executes a run."""
        return self._loop is not None and self._loop.is_closed()

    def _renew(self, leases: list[Lease]) -> bool:
        begun = time.monotonic()
        keys, args = [self._store.keys.leases], [int(self._settings.lease_seconds * 1000), *(x.member for x in leases)]
        try:
            replies = self._call(RENEW.sha, RENEW.text, keys, args)
        except (RedisError, OSError) as error:
            log.warning("leases could not be renewed: %s", type(error).__name__)
            return False
        for lease, kept in zip(leases, replies, strict=True):
            if kept:
                lease.deadline = begun + self._settings.lease_seconds
            elif not lease.ending:  # else it has gone with its run, or Redis refuses what its owner has asked
                self._lose(lease)
        return True

    def _call(self, sha: str, source: str, keys: list[str], args: list[Any]) -> Any:
        try:
            return self._store.sync.evalsha(sha, len(keys), *keys, *args)
        except NoScriptError:
            self._store.sync.script_load(source)
            return self._store.sync.evalsha(sha, len(keys), *keys, *args)

    def _drop_overdue(self, leases: list[Lease]) -> None:
        # Half a heartbeat early: the owner must have stopped when the lease runs out, not begin to stop.
        now = time.monotonic() + self._settings.heartbeat_seconds / 2
        for lease in leases:
            if now > lease.deadline:
                self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        with self._lock:
            if self._leases.pop(lease.member, None) is None:
                return
        lease.lost = True
        log.warning("run %s: lease %d lost", lease.run_id, lease.token)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lease.on_lost)

    def _give_up(self, leases: list[Lease]) -> None:
        log.error("the event loop stood still for more than %s s: its runs are given up", self._settings.stall_seconds)
        for lease in leases:
            keys, args = _release_call(self._store, lease, 0)
            try:
                self._call(RELEASE.sha, RELEASE.text, keys, args)
            except (RedisError, OSError):
                break
        self._on_stall()
        # Still here: who hosts agents without being a worker goes on with later runs, but has lost these.
        for lease in leases:
            self._lose(lease)
