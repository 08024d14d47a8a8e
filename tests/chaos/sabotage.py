"""The guarantees, broken on purpose one by one: what is to prove them has to fail then, or it proves nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from durable.execution.record import CallRecord
from durable.execution.turn import Turn
from durable.scripts import APPEND, CLAIM, FINISH, REQUEUE, Script
from durable.translate import Translator
from durable.writer import Note

# Script, what is replaced, and by what.
_TEXTS: Final[dict[str, list[tuple[Script, str, str]]]] = {
    # A writer is not asked for its token.
    "fencing": [
        (APPEND, "record[1] ~= 'running' or record[2] ~= ARGV[2]", "false"),
        (FINISH, "record[1] ~= 'running' or record[2] ~= token", "false"),
        (CLAIM, ", 'w:a' .. int(token - 1)", ""),  # else what it wrote last is forgotten, and its next batch is a gap
    ],
    # A batch is written as often as it is sent, as `XADD *` does.
    "retry": [
        (script, before, "false")
        for script in (APPEND, FINISH)
        for before in ("number == tonumber(batch)", "number + 1 ~= tonumber(batch)")
    ],
    # The sweeper takes a run from whoever has it.
    "sweep": [
        (REQUEUE, "not expiry or tonumber(expiry) > now", "false"),
        (REQUEUE, "status ~= 'running' or record[2] ~= token", "status ~= 'running'"),
    ],
}


def _without_ledger() -> None:
    def known(_self: CallRecord, _call: str, _round: int) -> None:
        return None

    setattr(CallRecord, "known", known)  # noqa: B010 - mypy knows that it must not be replaced


def _without_checkpoint() -> None:
    def keep(self: Turn, _progress: Any, chunks: list[Any]) -> None:
        self._write(chunks[:-1])
        self._writer.write(chunks[-1], Note())

    setattr(Turn, "_keep", keep)  # noqa: B010 - as above


def _without_void() -> None:
    begin_step = Translator.begin_step

    def begin(self: Translator, step: int, message_id: str, _void: Any = None) -> list[Any]:
        return begin_step(self, step, message_id)

    setattr(Translator, "begin_step", begin)  # noqa: B010 - as above


_PATCHES: Final[dict[str, Callable[[], None]]] = {
    "ledger": _without_ledger,
    "checkpoint": _without_checkpoint,
    "void": _without_void,
}


def apply(name: str) -> None:
    """Break something for the rest of this process's life; "" breaks nothing.

    Raises:
        LookupError: There is no such sabotage, or what it breaks is not there any more.
    """
    if name in _PATCHES:
        _PATCHES[name]()
    elif name:
        for script, before, after in _TEXTS[name]:
            if before not in script.text:
                raise LookupError(f"{script.name}.lua has no {before!r}: adapt the sabotage")
            _set(script, script.text.replace(before, after))


@contextmanager
def applied(name: str) -> Iterator[None]:
    """Break the scripts for a while."""
    before = [(script, script.text) for script, _, _ in _TEXTS.get(name, [])]
    apply(name)
    try:
        yield
    finally:
        for script, text in before:
            _set(script, text)


def _set(script: Script, text: str) -> None:
    object.__setattr__(script, "text", text)
    object.__setattr__(script, "sha", hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
