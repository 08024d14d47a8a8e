"""Judges runs after the fact: by their records, their logs, their effects and what their observers saw."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from durable.chunks import Chunk
from durable.decisions import Decisions
from durable.doctor import Doctor
from durable.fold import Folder
from durable.journal import read
from durable.runs import Runs
from durable.store import Store, text
from durable.views import RunStatus
from tests.chaos.effective import counted
from tests.chaos.effects import Effect
from tests.chaos.programs import AGAIN, DECIDED, HEARD, TASKS, Program

_OUTCOMES: Final = frozenset({"tool-result", "tool-error", "tool-output-denied"})
_ENDS: Final = ("background-task-completed", "background-task-failed", "background-task-cancelled")
_ANSWERS: Final = frozenset({"tool-call-decided", "tool-output-denied"})

Accepted = Mapping[tuple[str, str], set[str]]
"""Who was told that his answer stands, by run and call."""


def sight(chunk: Chunk) -> bytes:
    """A chunk as an observer saw it, in a form that can be compared."""
    return orjson.dumps(chunk.to_wire(), option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True)
class Followed:
    """What one observer saw of a run, in order."""

    run_id: str
    seen: Sequence[bytes]

    @property
    def digest(self) -> str:
        return hashlib.sha256(b"\n".join(self.seen)).hexdigest()


@dataclass
class Verdict:
    """What was found.

    Attributes:
        counts: What there was.
        faults: What should not be, one line each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Judge:
    """Judges the runs of one store.

    Args:
        store: Where they are.
        runs: Their records.
        effects: All that was done.
        accepted: Who was told that his answer stands.
    """

    def __init__(self, store: Store, runs: Runs, effects: Iterable[Effect], accepted: Accepted) -> None:
        self._accepted = accepted
        self._decisions = Decisions(store, runs)
        self._doctor = Doctor(store)
        self._store = store
        self._runs = runs
        self._effects: dict[str, list[Effect]] = defaultdict(list)
        for effect in effects:
            if ":" in effect.key:
                self._effects[effect.key].append(effect)

    async def all(self, programs: Mapping[str, Program], cancelled: set[str], followed: Iterable[Followed]) -> Verdict:
        """Judge all runs."""
        verdict, digests = Verdict(), {}
        for run_id, program in programs.items():
            chunks = await self._log(run_id)
            digests[run_id] = Followed(run_id, [sight(chunk) for chunk in chunks]).digest
            faults = await self._run(run_id, program, chunks, verdict.counts, may_be_cancelled=run_id in cancelled)
            verdict.faults += [f"{run_id}: {fault}" for fault in faults]
        for each in followed:
            verdict.counts["observers"] += 1
            if each.digest != digests[each.run_id]:
                verdict.faults.append(f"{each.run_id}: an observer saw another log")
        return verdict

    async def _log(self, run_id: str) -> list[Chunk]:
        log = await read(self._store, run_id, 0, limit=100_000, max_bytes=2**30)
        return [chunk for entry in log for chunk in entry.chunks()]

    async def _run(
        self, run_id: str, program: Program, chunks: list[Chunk], counts: Counter[str], *, may_be_cancelled: bool
    ) -> list[str]:
        record = await self._runs.get(run_id)
        counts[record.status.value] += 1
        counts["chunks"] += len(chunks)
        attempts = [chunk.attempt for chunk in chunks if chunk.attempt]
        counts["takeovers"] += len(set(attempts)) - 1 if attempts else 0
        faults = log_faults(chunks)
        if record.status is RunStatus.COMPLETED:
            faults += self._completed(run_id, program, chunks)
        elif not (record.status is RunStatus.CANCELLED and may_be_cancelled):
            faults.append(f"is {record.status}")
        tasks, wrong = await self._tasks(run_id, program, chunks, counts)
        faults += [*wrong, *self._effect_faults(run_id, chunks, tasks, counts)]
        faults += await self._decision_faults(run_id, program, chunks, counts)
        faults += [f"{finding.check}: {finding.message}" for finding in await self._doctor.examine(run_id)]
        return faults

    def _completed(self, run_id: str, program: Program, chunks: list[Chunk]) -> list[str]:
        """What is wrong with a completed run, beside its log as such."""
        faults, folder = [], Folder()
        for chunk in chunks:
            folder.add(chunk)
        if folder.text.replace(HEARD, "") != program.text:
            faults.append(f"its text is {folder.text!r} instead of {program.text!r}")
        names = sorted(name.partition(":")[2] for name in program.calls)
        if sorted(counted(chunks, "tool-call")) != names:
            faults.append("its calls are not those of its program")
        if sorted(call for kind in _OUTCOMES for call in counted(chunks, kind)) != names:
            faults.append("not every call has one outcome")
        denied = set(counted(chunks, "tool-output-denied"))
        asked = {_call(name) for name, call in program.calls.items() if call.tool in DECIDED}
        answers = [chunk.payload.tool_call_id for chunk in chunks if chunk.type in _ANSWERS]
        if sorted(answers) != sorted(asked):
            faults.append("not every call that waits has one answer in the log")
        undone = [name for name in program.calls if _call(name) not in denied and not self._made(run_id, name)]
        undone += [
            name + AGAIN
            for name, call in program.calls.items()
            if call.tool == "inquire" and _call(name) not in denied and not self._made(run_id, name + AGAIN)
        ]
        if undone:
            faults.append(f"calls were recorded and never made: {undone}")
        return faults

    def _made(self, run_id: str, name: str) -> list[Effect]:
        return self._effects.get(f"{run_id}:{name}", [])

    async def _decision_faults(
        self, run_id: str, program: Program, chunks: list[Chunk], counts: Counter[str]
    ) -> list[str]:
        """Answers that the log and the calls do not have alike, that were given twice, or that were not heeded."""
        faults = []
        told = {chunk.payload.tool_call_id: chunk for chunk in chunks if chunk.type in _ANSWERS}
        counts["decisions"] += len(told)
        [calls] = await self._decisions.calls([run_id])
        stored = {call.tool_call_id: call.answer for call in calls if call.answer is not None}
        if sorted(told) != sorted(stored) or len(told) != sum(chunk.type in _ANSWERS for chunk in chunks):
            faults.append(f"its log has answers to {sorted(told)}, its calls to {sorted(stored)}")
        for call_id, answer in stored.items():
            accepted = self._accepted.get((run_id, call_id), set())
            if accepted - {answer.actor}:
                faults.append(f"{call_id} was answered by {answer.actor}; also told so: {accepted}")
        for name, call in program.calls.items():
            decided = stored.get(_call(name))
            guarded = {"risk": name, "inquire": name + AGAIN}.get(call.tool)
            if guarded and self._made(run_id, guarded) and (decided is None or decided.kind == "decline"):
                faults.append(f"{guarded} was made without an answer that allows it")
        return faults

    async def _tasks(
        self, run_id: str, program: Program, chunks: list[Chunk], counts: Counter[str]
    ) -> tuple[dict[str, int], list[str]]:
        """Which attempt at its task has recorded each call, 0 for none; and what is wrong with the tasks."""
        found: dict[str, int] = {}
        faults: list[str] = []
        completed = (
            bool(chunks) and chunks[-1].type == "finish" and (await self._runs.get(run_id)).status == "completed"
        )
        expected = {_call(name) for name, call in program.calls.items() if call.tool in TASKS}
        begun = Counter(counted(chunks, "background-task-started"))
        told = Counter(call for kind in _ENDS for call in counted(chunks, kind))
        if max([*begun.values(), *told.values()], default=1) > 1 or not set(told) <= set(begun) <= expected:
            faults.append(f"tasks were started {begun}, and have ended {told}")
        if completed and not set(told) == set(begun) == expected:
            faults.append(f"not every task was started, and told: {begun}, {told}")
        async with self._store.guard():
            children = await self._store.redis.hkeys(self._store.keys.children(run_id))
        for task in map(text, children):
            record, log = await self._runs.get(task), await self._log(task)
            call = record.fields["parentCall"].decode().split(" ", 2)[2]
            counts["tasks"] += 1
            counts["task takeovers"] += record.token > 1
            faults += [f"{task}: {fault}" for fault in log_faults(log)]
            faults += [f"{task}: {finding.message}" for finding in await self._doctor.examine(task)]
            if not (record.status is RunStatus.COMPLETED or (record.status is RunStatus.CANCELLED and not completed)):
                faults.append(f"{task}: is {record.status}")
            found[call] = max((chunk.attempt for chunk in log if chunk.type in _OUTCOMES), default=0)
        return found, faults

    def _effect_faults(
        self, run_id: str, chunks: list[Chunk], tasks: Mapping[str, int], counts: Counter[str]
    ) -> list[str]:
        """Calls that were made after they were recorded, or twice by one attempt."""
        faults = []
        outcomes: dict[str, int] = {}
        again: set[str] = set()
        for chunk in chunks:
            if chunk.type == "tool-call-suspended":  # what came of its first part
                again.add(chunk.payload.tool_call_id)
                outcomes[chunk.payload.tool_call_id] = chunk.attempt
            elif chunk.type in _OUTCOMES:
                call = chunk.payload.tool_call_id
                outcomes[call + AGAIN if call in again else call] = chunk.attempt
        outcomes |= tasks
        for key, made in self._effects.items():
            if not key.startswith(f"{run_id}:"):
                continue
            counts["tool executions"] += len(made)
            counts["tool calls"] += 1
            by_attempt = Counter(effect.attempt for effect in made)
            recorded_by = outcomes.get(key.rpartition(":")[2])
            if max(by_attempt.values()) > 1:
                faults.append(f"{key} was made twice by one attempt")
            if recorded_by and max(by_attempt) > recorded_by:
                faults.append(f"{key} was made again after attempt {recorded_by} had recorded it")
        return faults


def _call(name: str) -> str:
    """The id of a call, of its name in the ledger."""
    return name.partition(":")[2]


def log_faults(chunks: Sequence[Chunk]) -> list[str]:
    """What is wrong with a log, whatever it says."""
    faults = []
    if [chunk.seq for chunk in chunks] != list(range(1, len(chunks) + 1)):
        faults.append("its log is not dense")
    if [chunk.seq for chunk in chunks if chunk.final] != [len(chunks)]:
        faults.append("its log has not one final chunk at its end")
    attempts = [chunk.attempt for chunk in chunks if chunk.attempt]
    if attempts != sorted(attempts):
        faults.append("an attempt wrote after a later one")
    return faults
