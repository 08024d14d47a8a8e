"""Reading a run together with all that it has started, while they grow.

Each log is read from its own cursor, as `durable.observer` reads one, and what comes is told with one cursor for all of
them. Listening only tells which logs are worth a look, so that a slow reader holds nothing but the page that it is at,
and a thousand children cost no more than a thousand names. The root's final chunk is the last one: what has ended by
then is told before it, and what goes on without the root is not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, NamedTuple

from durable.chunks import Chunk, parse
from durable.errors import InvalidRequest, StoreUnavailable
from durable.journal import Entry, read
from durable.observer import LACKING, Hub
from durable.runs import RunRecord, Runs
from durable.store import Store, text
from durable.trees.places import DEEPEST, Place, read_place
from durable.views import RunStatus

MOST_BEGUN: Final = 256
"""Children in whose logs a reader is at a time. Others that have something to tell wait until these have ended, so that
no cursor grows too long."""
LARGEST_PAGE: Final = 2**18
"""Bytes of chunks of one log that are read at once: others have their turn, too."""
_STARTS: Final = b'"type":"background-task-started"'


class Sighting(NamedTuple):
    """A chunk as its reader sees it. `cursor` is where the reader stands with it."""

    cursor: str
    wire: bytes

    def chunk(self) -> Chunk:
        """The chunk, parsed; it knows its cursor."""
        return parse(self.wire).at(self.cursor)


class _Branch:
    """One run of the tree, and a reader's ear for it.

    Attributes:
        number: Which child of its parent it is, from 0.
        place: Where the reader stands in it.
        known: How many children of it have been found.
        left: Those of them that have not been read to their end.
        over: Whether its own log has.
        lacking: Whether its record told of more than its log had.
    """

    def __init__(
        self,
        run_id: str,
        place: Place,
        wanted: Callable[[_Branch], None],
        parent: _Branch | None = None,
        number: int = 0,
    ) -> None:
        self.run_id = run_id
        self.place = place
        self.parent = parent
        self.number = number
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.highest = place.seq
        self.known = 0
        self.left: set[_Branch] = set()
        self.over = False
        self.lacking = False
        self._wanted = wanted

    @property
    def begun(self) -> bool:
        """Whether its reader's cursor names it."""
        return self.parent is None or self.number in self.parent.place.begun

    def hear(self, entry: Entry) -> None:
        self.highest = entry.last
        self._wanted(self)

    def stir(self) -> None:
        self._wanted(self)


class TreeObserver:
    """Reads runs with their children, from any cursor, to the root's end."""

    def __init__(self, store: Store, runs: Runs, hub: Hub) -> None:
        self._store = store
        self._runs = runs
        self._hub = hub

    async def pages(
        self, run_id: str, after: str = "0", *, silence: float | None = None
    ) -> AsyncGenerator[list[Sighting]]:
        """All chunks of a run and its children that follow a cursor, those of one log in their order. Ends after the
        root's final chunk, and earlier when the hub dismisses its readers.

        Args:
            run_id: The root.
            after: The cursor; a number is one for the root's log alone.
            silence: Seconds without news after which an empty page comes; None for never.

        Raises:
            UnknownRun, RunExpired: There is no such run.
            InvalidRequest: This is no cursor, or it lies beyond a log's end.
            StoreUnavailable: Redis does not answer, or a log lacks chunks. Go on from the last cursor later.
        """
        _, place = await self.check(run_id, after)
        reading = _Reading(self._store, self._runs, self._hub)
        try:
            await reading.start(_Branch(run_id, place, reading.want))
            while not self._hub.dismissed:
                page = await reading.page()
                if page is None:
                    if not await reading.wait(silence):
                        yield []
                elif page:
                    yield page
                if reading.ended:
                    return
        finally:
            await reading.leave()

    async def chunks(self, run_id: str, after: str = "0") -> AsyncGenerator[Chunk]:
        """As `pages`, one chunk at a time."""
        async with aclosing(self.pages(run_id, after)) as pages:
            async for page in pages:
                for sighting in page:
                    yield sighting.chunk()

    async def check(self, run_id: str, after: str) -> tuple[RunRecord, Place]:
        """Whether a run can be read from a cursor; raises what `pages` raises."""
        place = read_place(after)
        record = await self._runs.get(run_id)
        if place.seq > record.last_seq:
            raise InvalidRequest("The cursor lies outside of the run's log.", lastSeq=record.last_seq)
        await _verify(self._store, run_id, place)
        return record, place


class _Reading:
    """One reader of one tree.

    Attributes:
        ended: Whether the root's final chunk was given out.
    """

    def __init__(self, store: Store, runs: Runs, hub: Hub) -> None:
        self.ended = False
        self._store = store
        self._runs = runs
        self._hub = hub
        self._root: _Branch | None = None
        self._joined: set[_Branch] = set()
        self._worth: dict[_Branch, None] = {}  # whose logs are worth a look, in order
        self._waiting: dict[_Branch, None] = {}  # those of them for which there is no place
        self._begun = 0
        self._final: Entry | None = None  # the root's last chunk, held back until all else is told
        self._stirred = asyncio.Event()

    def want(self, branch: _Branch) -> None:
        """A log is worth a look."""
        if branch in self._joined and not branch.over:
            self._worth[branch] = None
            self._stirred.set()

    async def wait(self, seconds: float | None) -> bool:
        """Wait for news; False when there were none for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        except TimeoutError:
            return False
        return True

    async def leave(self) -> None:
        """Listen no more."""
        await asyncio.shield(asyncio.gather(*[self._hub.leave(branch.run_id, branch) for branch in self._joined]))

    async def start(self, root: _Branch) -> None:
        """Read a run, and all that it has started, from now on."""
        self._root = root
        await self._join(root)
        self.want(root)
        await self._discover(root)

    async def _join(self, branch: _Branch) -> None:
        if branch.parent is not None:
            branch.parent.left.add(branch)
            self._begun += branch.begun
        self._joined.add(branch)
        await self._hub.follow(branch.run_id, branch)

    async def page(self) -> list[Sighting] | None:
        """What one log has next, perhaps nothing; None when no log is worth a look."""
        branch = self._next()
        if branch is None:
            return await self._end()
        entries = await read(self._store, branch.run_id, branch.place.seq, max_bytes=LARGEST_PAGE)
        if not entries:
            await self._look(branch)
            return []
        if entries[0].first > branch.place.seq + 1:
            raise StoreUnavailable(LACKING)
        branch.lacking = False
        self.want(branch)  # there may be more
        final = entries[-1].final
        if final and branch is self._root:
            self._final = entries[-1].after(entries[-1].last - 1)
            entries[-1] = replace(entries[-1], bodies=entries[-1].bodies[:-1])
        page = self._tell(branch, entries)
        if final:
            await self._finish(branch)
        elif any(_STARTS in body for entry in entries for body in entry.bodies):
            await self._discover(branch)
        return page

    def _next(self) -> _Branch | None:
        """A branch that is worth a look, and may be looked at."""
        if self._waiting and self._begun < MOST_BEGUN:
            self._worth, self._waiting = {**self._waiting, **self._worth}, {}
        while self._worth:
            branch = next(iter(self._worth))
            del self._worth[branch]
            # What is left of a run that was read to its end must not keep that from being forgotten.
            if branch.begun or self._begun < MOST_BEGUN or (branch.parent is not None and branch.parent.over):
                return branch
            self._waiting[branch] = None
        self._stirred.clear()
        return None

    def _tell(self, branch: _Branch, entries: Sequence[Entry]) -> list[Sighting]:
        """The chunks of these entries, with the cursors after them."""
        root, found = self._root, []
        if branch.parent is not None and not branch.begun:
            self._begin(branch)
        assert root is not None  # noqa: S101 - it was joined first
        before, after = root.place.around(branch.place)
        for entry in entries:
            for seq, wire in enumerate(entry.wire, entry.first):
                found.append(Sighting(f"{before}{seq}{after}", wire))
                branch.place.seq = seq
        return found

    def _begin(self, branch: _Branch) -> None:
        """The cursor names it from now on, and those above it."""
        while branch.parent is not None and not branch.begun:
            branch.parent.place.begun[branch.number] = branch.place
            self._begun += 1
            branch = branch.parent

    async def _look(self, branch: _Branch) -> None:
        """A log has nothing more: is that all that it will ever have?"""
        found = await self._records([branch.run_id])
        status, last = found[0]
        if status is None or (status.ended and last == branch.place.seq):
            await self._finish(branch)
        elif last != branch.place.seq:
            # Once, it was written since the log was read. Twice, the log is not what the record says.
            if branch.lacking:
                raise StoreUnavailable(LACKING)
            branch.lacking = True
            self.want(branch)
        else:
            branch.lacking = False
            branch.highest = max(branch.highest, last)

    async def _finish(self, branch: _Branch) -> None:
        """A run's own log was read to its end; what it has started may go on."""
        if not branch.over:
            await self._discover(branch)
            branch.over = True
            self._forget(branch)
            for child in branch.left:
                if child in self._waiting:
                    self.want(child)
        if branch is self._root and self._final is None:
            self.ended = True  # its reader had all of it
        await self._close(branch)

    async def _close(self, branch: _Branch) -> None:
        """Forget a branch that was read to its end with all of its own, and those above that so are."""
        while branch.over and not branch.left and branch.parent is not None:
            parent = branch.parent
            await self._drop(branch)
            parent.place.done |= 1 << branch.number
            branch = parent

    async def _drop(self, branch: _Branch) -> None:
        if branch.parent is not None:
            branch.parent.left.discard(branch)
            if branch.parent.place.begun.pop(branch.number, None) is not None:
                self._begun -= 1
        await self._stop(branch)

    async def _stop(self, branch: _Branch) -> None:
        """Read a branch no more; the cursor goes on to tell where its reader stands in it."""
        self._joined.discard(branch)
        self._forget(branch)
        await self._hub.leave(branch.run_id, branch)

    def _forget(self, branch: _Branch) -> None:
        self._worth.pop(branch, None)
        self._waiting.pop(branch, None)

    async def _discover(self, branch: _Branch) -> None:
        """Join the children that a run has started since it was asked for them."""
        if branch.depth == DEEPEST:
            return
        first = branch.known
        order = await _children(self._store, branch.run_id, first)
        branch.known += len(order)
        children = [
            _Branch(name, branch.place.begun.get(number, Place()), self.want, branch, number)
            for number, name in enumerate(order, first)
            if not branch.place.done >> number & 1
        ]
        for child in children:
            await self._join(child)
        # Looked at after somebody listens, so that what comes in between is heard.
        states = await self._records([child.run_id for child in children])
        for child, (status, last) in zip(children, states, strict=True):
            if status is None or status.ended or last > child.place.seq:
                self.want(child)
            if child.place.seq:  # else all that it has started is told in what is still to be read
                await self._discover(child)

    async def _end(self) -> list[Sighting] | None:
        """The root's final chunk, when all that has ended was told; what has not is not waited for."""
        if self._final is None or self._root is None:
            return None
        left = [branch for branch in self._joined if not branch.over]
        states = await self._records([branch.run_id for branch in left])
        for branch, (status, _) in zip(left, states, strict=True):
            if status is None or status.ended:
                self.want(branch)
            else:
                if branch in self._waiting:
                    await self._discover(branch)  # its log, which tells of them, is not read
                self._begun -= branch.begun
                await self._stop(branch)
        if self._worth or self._waiting:
            return []
        self.ended = True
        return [Sighting(str(self._final.last), self._final.wire[-1])]

    async def _records(self, run_ids: Sequence[str]) -> list[tuple[RunStatus | None, int]]:
        return await _records(self._store, run_ids)


async def _records(store: Store, run_ids: Sequence[str]) -> list[tuple[RunStatus | None, int]]:
    """The status and the last seq of runs; None for one that is there no more."""
    if not run_ids:
        return []
    async with store.guard(), store.redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hmget(store.keys.run(run_id), ["status", "lastSeq"])
        replies: list[Any] = await pipe.execute()
    return [(None if status is None else RunStatus(text(status)), int(last or 0)) for status, last in replies]


async def _children(store: Store, run_id: str, first: int = 0) -> list[str]:
    """The runs that one has started, in order, from that number on."""
    async with store.guard():
        order: list[Any] = await store.redis.lrange(store.keys.children_order(run_id), first, -1)
    return [text(name) for name in order]


async def _verify(store: Store, run_id: str, place: Place) -> None:
    """Look whether the logs that a cursor tells of have what it says.

    Raises:
        InvalidRequest: They have not.
    """
    if not place.done and not place.begun:
        return
    names = await _children(store, run_id)
    known = {number: names[number] for number in place.begun if number < len(names)}
    states = dict(zip(known, await _records(store, list(known.values())), strict=True))
    for number, child in place.begun.items():
        status, last = states.get(number, (RunStatus.QUEUED, -1))
        if status is not None and child.seq > last:
            raise InvalidRequest("The cursor lies outside of the log of a run's child.", child=number)
        await _verify(store, known[number], child)
    if place.done >> len(names):
        raise InvalidRequest("The cursor names children that the run has not.", children=len(names))
