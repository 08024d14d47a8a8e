"""Reading a run while it grows: one path for replay and follow, from any cursor.

A reader always goes on from its cursor, and the log is the only truth. Pub/sub messages carry the entries too, so a
reader that is up to date need not ask for them; one that does not fit the cursor makes the reader look into the log
instead. A lost message costs time, never a chunk: a slow timer compares what the log has with what was heard.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from redis.asyncio.client import PubSub

from durable.chunks import Chunk
from durable.errors import InvalidRequest, StoreUnavailable
from durable.journal import Entry, read
from durable.runs import RunRecord, Runs
from durable.store import PASSING, Store, close_pubsub, text

log = logging.getLogger(__name__)

Heard = TypeVar("Heard")

LONGEST_QUEUE: Final = 256
"""Entries that a slow reader may leave unread in memory; it then reads them from the log."""
CHECK_SECONDS: Final = 2.0
"""How often a silent run's log is compared with what was heard of it."""
SUSPENDED: Final = b"suspended"
"""The message, on a run's channel, that it waits from now on. It is no entry."""
LACKING: Final = "The run's log lacks chunks that were written."


class Ear(Protocol):
    """What the hub tells what it hears on one channel."""

    def hear(self, message: Any, /) -> None:
        """Something was announced. To be done at once: all readers of the process wait."""

    def stir(self) -> None:
        """Something may not have been heard, or the reader is to end."""


class RunEar(Ear, Protocol):
    """What listens to a run.

    Attributes:
        highest: The last seq that it knows of.
    """

    highest: int


class _Ear(Generic[Heard]):
    """One reader's ear on one channel."""

    def __init__(self) -> None:
        self.heard: deque[Heard] = deque()
        self._stirred = asyncio.Event()
        self._lapsed = False

    def hear(self, message: Heard) -> None:
        """Take a message that was announced."""
        raise NotImplementedError

    def stir(self) -> None:
        """Be told that messages may have been missed, or that the reader is to end."""
        raise NotImplementedError

    async def wait(self, seconds: float | None) -> bool:
        """Wait for news; False when there were none for so long."""
        self._lapsed = False
        timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._lapse)
        try:
            await self._stirred.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._stirred.clear()
        return not self._lapsed

    def _lapse(self) -> None:
        self._lapsed = True
        self._stirred.set()


class Listener(_Ear[Heard]):
    """The ear on a channel of which there is no log.

    Attributes:
        missed: Whether something was announced that was not heard, or not taken in time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.missed = False

    def hear(self, message: Heard) -> None:
        if len(self.heard) >= LONGEST_QUEUE:
            self.missed = True
            self.heard.clear()
        else:
            self.heard.append(message)
        self._stirred.set()

    def stir(self) -> None:
        self.missed = True
        self._stirred.set()

    def take(self) -> list[Heard]:
        """What was heard since this was asked last."""
        taken = list(self.heard)
        self.heard.clear()
        return taken


class _Follower(_Ear[Entry]):
    """The ear on a run: entries that were announced, and whether the log is worth a look."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = 0
        self.lacking: int | None = None  # the cursor that the log ended at, although the record counts otherwise
        self._doubt = True

    def hear(self, entry: Entry) -> None:
        self.highest = entry.last
        if len(self.heard) >= LONGEST_QUEUE:
            self.heard.clear()  # too slow: what is dropped here is read from the log
        self.heard.append(entry)
        self._stirred.set()

    def stir(self) -> None:
        self._doubt = True
        self._stirred.set()

    def doubts(self) -> bool:
        """Whether the log may have what was not heard. Asking settles it: who asks looks."""
        doubt, self._doubt = self._doubt, False
        return doubt

    def take(self, cursor: int) -> list[Entry]:
        """What was heard, as far as it follows the cursor without a gap."""
        page: list[Entry] = []
        while self.heard:
            if self.heard[0].first > cursor + 1:
                self._doubt = True  # something was not heard
                break
            rest = self.heard.popleft().after(cursor)
            if rest is not None:
                page.append(rest)
                cursor = rest.last
        return page


class Hub:
    """What all readers of a process listen with: one pub/sub connection. Belongs to one event loop.

    Attributes:
        dismissed: Whether all readers are to end where they are.
    """

    def __init__(self, store: Store) -> None:
        self.dismissed = False
        self._store = store
        self._followers: dict[str, set[Ear]] = {}
        self._reads: dict[str, Callable[[bytes], Any]] = {}
        self._runs: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._pubsub: PubSub | None = None
        self._subscribed: set[str] = set()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def stop(self) -> None:
        """Close the connection. Readers that are left find nothing new."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._pubsub is not None:
            await close_pubsub(self._pubsub)

    def dismiss(self) -> None:
        """Let all readers end where they are, and those that are still to come. To be called in the event loop."""
        self.dismissed = True
        self._stir_all()

    async def follow(self, run_id: str, ear: RunEar) -> None:
        """Listen to a run, until `leave`.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        channel = self._store.keys.channel(run_id)
        self._runs[channel] = run_id
        await self._join(channel, ear, partial(_read_entry, run_id))

    async def leave(self, run_id: str, ear: RunEar) -> None:
        """Follow no more."""
        await self._part(self._store.keys.channel(run_id), ear)

    @asynccontextmanager
    async def listen(self, channel: str, read: Callable[[bytes], Heard]) -> AsyncIterator[Listener[Heard]]:
        """Listen to a channel of which there is no log.

        Args:
            channel: Its name.
            read: Reads a message; once for all listeners, always the same for a channel.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        listener: Listener[Heard] = Listener()
        await self._join(channel, listener, read)
        try:
            listener.missed = False  # what was announced before is none of its business
            yield listener
        finally:
            await self._part(channel, listener)

    async def _join(self, channel: str, ear: Ear, read: Callable[[bytes], Any]) -> None:
        self._reads[channel] = read
        self._followers.setdefault(channel, set()).add(ear)
        try:
            # A reader that is cancelled must not break off in a command: that costs the connection, and all are on it.
            await asyncio.shield(self._subscribe(channel))
        except BaseException:
            await self._part(channel, ear)
            raise

    async def _part(self, channel: str, ear: Ear) -> None:
        ears = self._followers.get(channel, set())
        ears.discard(ear)
        if ears or channel not in self._followers:
            return
        del self._followers[channel], self._reads[channel]
        self._runs.pop(channel, None)
        await asyncio.shield(self._unsubscribe(channel))

    async def _subscribe(self, channel: str) -> None:
        # One subscribe at a time: redis-py opens a connection for each of two concurrent ones.
        async with self._lock, self._store.guard():
            if self._pubsub is None:
                await self._connect()
            elif channel not in self._subscribed:
                await self._add(self._pubsub, channel)
            self._start()

    async def _add(self, pubsub: PubSub, channel: str) -> None:
        """Subscribe to one channel more. If the connection was closed and nobody has noticed yet, whoever listens on it
        is told: another one is opened, with all that is followed by then, and its readers look into the log. The lock
        is held."""
        try:
            await pubsub.subscribe(channel)
        except PASSING:
            self._subscribed.clear()
            connection = cast("Any", pubsub).connection
            if connection is not None:
                await connection.disconnect(nowait=True)
        else:
            self._subscribed.add(channel)

    async def _unsubscribe(self, channel: str) -> None:
        try:
            async with self._lock, self._store.guard():
                if self._pubsub is not None and channel in self._subscribed - self._followers.keys():
                    self._subscribed.discard(channel)
                    await self._pubsub.unsubscribe(channel)
        except StoreUnavailable:
            return  # the connection is renewed anyway, with what is followed then

    def _start(self) -> None:
        self._wanted.set()
        if self._tasks:
            return
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._listen(), name="hub"), loop.create_task(self._check(), name="hub-check")]

    async def _listen(self) -> None:
        while True:
            pubsub = self._pubsub
            try:
                if pubsub is None:
                    await self._reconnect()
                    continue
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
            except Exception as error:  # noqa: BLE001 - the connection may be closed in the middle of anything
                log.warning("following is interrupted: %s", type(error).__name__)
                self._pubsub = None
                if pubsub is not None:
                    async with self._lock:  # whoever subscribes on it is done with it
                        await close_pubsub(pubsub)
                await asyncio.sleep(0.1)
                continue
            if message is not None and message["type"] == "message":
                self._deliver(text(message["channel"]), message["data"])

    async def _reconnect(self) -> None:
        """Listen again, once somebody reads: a connection without subscriptions has nothing to wait for."""
        await self._wanted.wait()
        async with self._lock:
            if self._pubsub is not None:
                return
            if self._followers:
                await self._connect()
            else:
                self._wanted.clear()

    async def _connect(self) -> None:
        """Open the connection, with all that is followed by now. The lock is held."""
        pubsub, channels = self._store.pubsub(), list(self._followers)
        try:
            await pubsub.subscribe(*channels)
        except BaseException:
            await close_pubsub(pubsub)
            raise
        self._pubsub, self._subscribed = pubsub, set(channels)
        self._stir_all()

    def _deliver(self, channel: str, data: bytes) -> None:
        ears = self._followers.get(channel, ())
        try:
            message = self._reads[channel](data) if ears else None
        except Exception as error:  # noqa: BLE001 - another version's: whoever hears it looks, and all others hear on
            log.warning("a message can't be read: %s", type(error).__name__)
            for ear in ears:
                ear.stir()
            return
        for ear in ears:
            if message is None:
                ear.stir()
            else:
                ear.hear(message)

    def _stir_all(self) -> None:
        for ears in self._followers.values():
            for ear in ears:
                ear.stir()

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            channels = list(self._runs)
            if not channels:
                continue
            try:
                last_seqs = await self._last_seqs([self._runs[channel] for channel in channels])
            except StoreUnavailable:
                continue
            for channel, last_seq in zip(channels, last_seqs, strict=True):
                for follower in cast("set[_Follower]", self._followers.get(channel, set())):
                    if follower.highest < last_seq:
                        follower.stir()

    async def _last_seqs(self, run_ids: list[str]) -> list[int]:
        async with self._store.guard(), self._store.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(self._store.keys.run(run_id), "lastSeq")
            replies: list[Any] = await pipe.execute()
        return [int(reply or 0) for reply in replies]


def _read_entry(run_id: str, data: bytes) -> Entry | None:
    """What a message on a run's channel says; None when readers are to look."""
    return None if data == SUSPENDED else Entry.of_message(run_id, data)


class Observer:
    """Reads runs, from any cursor, to their end."""

    def __init__(self, store: Store, runs: Runs, hub: Hub) -> None:
        self._store = store
        self._runs = runs
        self._hub = hub

    async def pages(
        self,
        run_id: str,
        after: int = 0,
        *,
        silence: float | None = None,
        pauses: Callable[[RunRecord], Awaitable[bool]] | None = None,
    ) -> AsyncGenerator[list[Entry]]:
        """All entries that follow a cursor, as soon as they are written; those that are there together come together.

        Ends after the final chunk, and earlier when the hub dismisses its readers, or where the run pauses.

        Args:
            run_id: The run.
            after: The cursor.
            silence: Seconds without news after which an empty page comes; None for never.
            pauses: Whether to end at a state of the run, once all that was written before it is read.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            InvalidRequest: The cursor is negative, or lies beyond the log's end.
            StoreUnavailable: Redis does not answer, or the log lacks chunks. Go on from the last seq later.
        """
        follower = _Follower()
        await self._hub.follow(run_id, follower)
        try:
            await self.check(run_id, after)
            cursor = after
            while not self._hub.dismissed:
                page = follower.take(cursor)
                if not page and follower.doubts():
                    page = await read(self._store, run_id, cursor)
                    if page and page[0].first > cursor + 1:
                        raise StoreUnavailable(LACKING)
                    if page:
                        follower.stir()  # there may be more
                    elif await self._over(run_id, cursor, follower, pauses):
                        return
                if page:
                    cursor = page[-1].last
                    yield page
                    if page[-1].final:
                        return
                elif not await follower.wait(silence):
                    if pauses is not None:
                        follower.stir()  # that it pauses is told once, and may not have been heard
                    yield []
        finally:
            await self._hub.leave(run_id, follower)

    async def chunks(self, run_id: str, after: int = 0) -> AsyncGenerator[Chunk]:
        """As `pages`, one chunk at a time."""
        async with aclosing(self.pages(run_id, after)) as pages:
            async for page in pages:
                for entry in page:
                    for chunk in entry.chunks():
                        yield chunk

    async def check(self, run_id: str, after: int) -> RunRecord:
        """Whether a run can be read from a cursor; raises what `pages` raises."""
        record = await self._runs.get(run_id)
        if not 0 <= after <= record.last_seq:
            raise InvalidRequest("The cursor lies outside of the run's log.", lastSeq=record.last_seq)
        return record

    async def _over(
        self, run_id: str, cursor: int, follower: _Follower, pauses: Callable[[RunRecord], Awaitable[bool]] | None
    ) -> bool:
        """Whether the log will never have more than what the reader has, or not before something else happens."""
        record = await self._runs.get(run_id)
        if record.last_seq != cursor:
            # Once, it was written since the log was read. Twice, the log is not what the record says.
            if follower.lacking == cursor:
                raise StoreUnavailable(LACKING)
            follower.lacking = cursor
            follower.stir()
            return False
        follower.highest = max(follower.highest, cursor)
        return record.status.ended or (pauses is not None and await pauses(record))
