"""A run's writer: it gathers chunks, and cuts them into batches.

Who writes never waits for Redis: `RunWriter.write` only puts a chunk aside. A writer has at most one batch under way
and numbers them, so that a batch which is sent again after a broken connection is written once, and order is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from durable.chunks import Chunk, ObjectChunk, Raw, ReasoningDelta, StepStart, TextDelta, ToolCallDelta, encode_body
from durable.errors import DurableError, LeaseLost
from durable.files import RunFile
from durable.leases import Lease
from durable.scripts import APPEND, FINISH, Arg, Script
from durable.settings import Settings
from durable.store import Store, text

log = logging.getLogger(__name__)

LONGEST_MERGE: Final = 16_384
"""Characters beyond which a delta takes no more neighbours."""
OBJECT: Final = "object"
"""The key of an object that is still growing."""
LARGEST_BATCH: Final = 500
"""Chunks in one entry, at most."""
LARGEST_BATCH_BYTES: Final = 1_048_576
REFUSALS: Final = frozenset({"cancel", "open", "unheard"})
"""Why a run does not end as its writer wants it to; the writer goes on."""


class Sender(Protocol):
    """Sends the batches of writers."""

    store: Store
    settings: Settings

    def enqueue(self, writer: RunWriter) -> None:
        """Send the writer's batch soon."""


class _Piece:
    """A chunk that waits. A delta stays open for its neighbours of the same part; all else is encoded at once. An
    object that is still growing gives way to the next one."""

    __slots__ = ("_chunk", "_texts", "begins_step", "body", "key", "note", "size")

    def __init__(self, chunk: Chunk | None, key: str | None, text: str, note: Note | None = None) -> None:
        self._chunk = chunk
        self.begins_step = isinstance(chunk, StepStart)
        self._texts = [text]
        self.key = key
        merges = key not in {None, OBJECT}
        self.body = b"" if merges or chunk is None else encode_body(chunk)
        self.note = note
        self.size = len(text) if merges else len(self.body)
        if note is not None and note.file is not None:
            self.size += len(note.file.data)

    @property
    def is_chunk(self) -> bool:
        return self._chunk is not None

    def add(self, text: str) -> None:
        self._texts.append(text)
        self.size += len(text)

    def encode(self) -> bytes:
        """The chunk's body; b"" when there is only a note."""
        chunk, merged = self._chunk, "".join(self._texts)
        if self.key in {None, OBJECT} or chunk is None:
            return self.body
        if isinstance(chunk, ToolCallDelta):
            payload: Any = chunk.payload.model_copy(update={"args_text_delta": merged})
        else:
            payload = chunk.payload.model_copy(update={"text": merged})
        return encode_body(chunk.model_copy(update={"payload": payload}))


def _delta(chunk: Chunk) -> tuple[str | None, str]:
    """What a delta may be merged by, and its text. `(None, "")` for any other chunk."""
    match chunk:
        case TextDelta() | ReasoningDelta() if chunk.payload.provider_metadata is None:
            return f"{chunk.type} {chunk.payload.id}", chunk.payload.text
        case ToolCallDelta():
            return f"{chunk.type} {chunk.payload.tool_call_id}", chunk.payload.args_text_delta
        case ObjectChunk():
            return OBJECT, ""
        case _:
            return None, ""


@dataclass(frozen=True)
class Waiting:
    """A call that begins to wait for an answer from outside.

    Attributes:
        tool_call_id: The call.
        step: Its step.
        round: How many answers it has had before.
        body: What is asked, as stored.
        expires_in: Seconds until it is answered by itself; None for never.
    """

    tool_call_id: str
    step: int
    round: int
    body: bytes
    expires_in: float | None = None


@dataclass(frozen=True)
class Note:
    """What is stored in the same step as a chunk.

    Attributes:
        checkpoint: A checkpoint's entry, or b"".
        field: The field of a ledger entry, or "".
        value: The ledger entry.
        progress: Whether the run has got on with it.
        waiting: A call that begins to wait.
        file: What the chunk names.
    """

    checkpoint: bytes = b""
    field: str = ""
    value: bytes = b""
    progress: bool = True
    waiting: Waiting | None = None
    file: RunFile | None = None


@dataclass(frozen=True)
class Ending:
    """The end of a run: its terminal status, its last checkpoint entry, and fields of its record. `closed` says that no
    call of it may be open, or it does not end; `heard` that its model may have no more messages than so many."""

    status: str
    checkpoint: bytes
    fields: dict[str, bytes | str]
    closed: bool = False
    heard: int | None = None


@dataclass(eq=False)
class _Batch:
    """Chunks and notes that are written in one step; `step_at` is the place among them of the last `step-start`."""

    number: int
    bodies: list[bytes]
    notes: list[Note]
    ending: Ending | None
    step_at: int | None = None
    done: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def stored(self, run_id: str) -> list[Arg]:
        """What is stored in the same step, as `append` takes it."""
        entries = [note for note in self.notes if note.field]
        args: list[Arg] = ["1" if any(note.progress for note in self.notes) else "0"]
        files = [note.file for note in self.notes if note.file is not None]
        args += [next((note.checkpoint for note in self.notes if note.checkpoint), b""), run_id]
        args += [len(entries), len(files)]
        for note in entries:
            args += [note.field, note.value]
        for file in files:
            args += [file.file_id, file.encode()]
        for call in [note.waiting for note in self.notes if note.waiting is not None]:
            due = "" if call.expires_in is None else int(call.expires_in * 1000)
            args += [call.tool_call_id, f"{call.step} {call.round}", call.body, due]
        return args


class RunWriter:
    """Writes the chunks of one attempt.

    Args:
        sender: Sends the batches.
        lease: The claim that fences the writes.

    Attributes:
        last_seq: The log's newest seq, as far as this writer knows.
        step_seq: The seq of the newest `step-start` that it has written; as `next_seq` told it, until that is stored. 0
            before any.
        on_fenced: Called when Redis refuses a write because the run has another owner, or has ended.
        on_stored: Called when chunks are stored.
        on_progress: Called when what gets the run on is stored.
    """

    def __init__(self, sender: Sender, lease: Lease) -> None:
        self.lease = lease
        self.on_fenced: Callable[[], None] = lambda: None
        self.on_stored: Callable[[], None] = lambda: None
        self.on_progress: Callable[[], None] = lambda: None
        self.last_seq = lease.last_seq
        self.step_seq = 0
        self.under_way: _Batch | None = None
        self._sender = sender
        self._patience = sender.settings.flush_ms / 1000
        self._pieces: list[_Piece] = []
        self._size = 0
        self._number = 0
        self._urgent = False
        self._first_delta = False
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._error: DurableError | None = None
        self._changed = asyncio.Event()

    def write(self, chunk: Chunk, note: Note | None = None) -> None:
        """Put a chunk aside; it is sent soon, in order. Once the run is lost, chunks are dropped.

        The first delta of a step leaves at once, and so does everything that is no delta and no event of a provider.

        Args:
            chunk: What observers see.
            note: What is stored in the same step.
        """
        if self._error is not None:
            return
        if isinstance(chunk, StepStart):
            self.step_seq = self.next_seq
        if note is not None:
            self._put(_Piece(chunk, None, "", note))
            return
        key, piece_text = _delta(chunk)
        last = self._pieces[-1] if self._pieces else None
        if key and key != OBJECT and last and last.key == key and self._patience and last.size < LONGEST_MERGE:
            last.add(piece_text)
            self._size += len(piece_text)
        else:
            if key == OBJECT:
                self._supersede()
            self._pieces.append(_Piece(chunk, key, piece_text))
            self._size += self._pieces[-1].size
        if self._first_delta or not (key or isinstance(chunk, Raw)):
            self._urgent = True
            self._first_delta = isinstance(chunk, StepStart) or (key is None and self._first_delta)
        self._schedule()

    def note(self, note: Note) -> None:
        """Put aside what observers do not see."""
        if self._error is None:
            self._put(_Piece(None, None, "", note))

    @property
    def next_seq(self) -> int:
        """The seq that the next chunk gets, as long as nobody else writes to this log."""
        under_way = len(self.under_way.bodies) if self.under_way is not None else 0
        return self.last_seq + under_way + sum(1 for piece in self._pieces if piece.is_chunk) + 1

    @property
    def full(self) -> bool:
        """Whether more waits for Redis than may: then `room` is worth awaiting."""
        return self._size > self._sender.settings.max_buffer_bytes

    async def room(self) -> None:
        """Wait until the buffer is not full.

        Raises:
            LeaseLost: The run has another owner.
        """
        await self._until(lambda: not self.full)

    async def flush(self) -> None:
        """Wait until all that was put aside is in the log.

        Raises:
            LeaseLost: The run has another owner, or Redis was away for longer than the lease.
        """
        await self._until(lambda: not self._pieces and self.under_way is None)

    async def finish(self, ending: Ending, *chunks: Chunk) -> str:
        """Write the last chunks and end the run, in one step. Returns `written`, or `seen`; `cancel` when a cancel came
        before; `open` when a call is, and none may be; `unheard` when somebody has told the model something since.

        Raises:
            LeaseLost: The run has another owner.
        """
        await self.flush()
        self._pieces.extend(_Piece(chunk, None, "") for chunk in chunks)
        batch = self._send(ending)
        return await batch.done

    def fail(self, error: DurableError) -> None:
        """Write no more, and drop what was not sent."""
        self._error = self._error or error
        self._pieces.clear()
        batch, self.under_way = self.under_way, None
        if batch is not None and not batch.done.done():
            batch.done.set_exception(self._error)
            batch.done.exception()  # whoever waits for it gets it; nobody has to
        self._stop_timer()
        self._changed.set()

    def call(self) -> tuple[Script, list[str], list[Arg]]:
        """The script, keys and arguments that write the batch under way."""
        batch, store, run_id, token = self.under_way, self._sender.store, self.lease.run_id, self.lease.token
        if batch is None:
            raise LookupError("no batch is under way")
        keys = store.keys
        args: list[Arg] = [keys.channel(run_id), token, f"a{token}", batch.number, len(batch.bodies)]
        args.append(b"\n".join(batch.bodies))
        names = [keys.run(run_id), keys.log(run_id), keys.checkpoints(run_id), keys.ledger(run_id)]
        names += [keys.calls(run_id), keys.pending, keys.deadlines]
        if batch.ending is None:
            return APPEND, names, [*args, *batch.stored(run_id)]
        names += [keys.request(run_id), keys.tombstone(run_id), keys.leases]
        args += [batch.ending.checkpoint, run_id, batch.ending.status, keys.status_indexes]
        args += [self._sender.settings.tombstone_seconds, "1" if batch.ending.closed else "0"]
        args.append("" if batch.ending.heard is None else batch.ending.heard)
        for item in batch.ending.fields.items():
            args += item
        return FINISH, names, args

    def acknowledge(self, reply: Any) -> None:
        """Take the answer to the batch under way."""
        batch, self.under_way = self.under_way, None
        verdict = text(reply[0])
        if verdict == "fenced":
            log.warning("run %s: a write of attempt %d was refused", self.lease.run_id, self.lease.token)
        if batch is None:
            return
        if verdict in {"fenced", "gap"}:
            self.under_way = batch
            self.fail(LeaseLost())
            self.on_fenced()
            return
        if verdict in REFUSALS:
            self._number -= 1
            self.lease.ending = False
        else:
            self.last_seq = int(reply[2])
            if batch.step_at is not None and not any(piece.begins_step for piece in self._pieces):
                self.step_seq = int(reply[1]) + batch.step_at
            if batch.bodies and batch.ending is None:
                self.on_stored()
            if any(note.progress for note in batch.notes):
                self.on_progress()
        if not batch.done.done():
            batch.done.set_result(verdict)
        self._size = sum(piece.size for piece in self._pieces)
        self._changed.set()
        self._schedule()

    def _supersede(self) -> None:
        """Drop an object that only deltas have followed: the next one says it all. Only their seqs change by that."""
        for index in range(len(self._pieces) - 1, -1, -1):
            piece = self._pieces[index]
            if piece.key is None:
                return
            if piece.key == OBJECT:
                self._size -= piece.size
                del self._pieces[index]
                return

    def _put(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        self._size += piece.size
        self._urgent = True
        self._schedule()

    def _schedule(self) -> None:
        if not self._pieces or self.under_way is not None:
            return  # what waits behind a batch leaves when that is acknowledged
        now = asyncio.get_running_loop().time()
        wait = 0.0 if self._urgent else self._sent_at + self._patience - now
        if wait <= 0:
            self._send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._send)

    def _send(self, ending: Ending | None = None) -> _Batch:
        self._stop_timer()
        self._sent_at = asyncio.get_running_loop().time()
        count = len(self._pieces) if ending is not None else self._fitting()
        pieces = self._pieces[:count]
        told = [(piece, body) for piece in pieces if (body := piece.encode())]
        bodies = [body for _, body in told]
        step_at = max((place for place, (piece, _) in enumerate(told) if piece.begins_step), default=None)
        notes = [piece.note for piece in pieces if piece.note is not None]
        del self._pieces[:count]
        self._urgent = self._urgent and bool(self._pieces)
        self._number += 1
        self.lease.ending = ending is not None
        self.under_way = _Batch(self._number, bodies, notes, ending, step_at)
        self._sender.enqueue(self)
        return self.under_way

    def _fitting(self) -> int:
        """How many of the waiting chunks make the next entry."""
        count = size = 0
        for piece in self._pieces[:LARGEST_BATCH]:
            if count and size + piece.size > LARGEST_BATCH_BYTES:
                break
            count, size = count + 1, size + piece.size
            if piece.note is not None and piece.note.checkpoint:
                break  # the log's last seq at a checkpoint is that of its own chunk
        return count

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _until(self, condition: Callable[[], bool]) -> None:
        while self._error is None and not condition():
            self._changed.clear()
            self._urgent = bool(self._pieces)
            self._schedule()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
