"""Compares a run that was torn with one that never was: what counts has to be the same."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from durable import ledger
from durable.chunks import Chunk
from durable.decisions import Answer
from durable.doctor import Doctor
from durable.fold import Folder
from tests.chaos.effective import TASKS, counted, effective, nameless
from tests.chaos.forks import Report
from tests.chaos.judge import log_faults
from tests.chaos.stage import Stage

SETTLED: Final = ("tool-call", "tool-result", "tool-error", "tool-output-denied", *TASKS)
ASKED: Final = ("tool-call-approval", "tool-call-suspended", "tool-call-decided")
"""Chunks that each call has, or has not, as often as in any other run that did the same."""


class Reference:
    """The run that never crashed.

    Attributes:
        passed: How often each point is passed, in each attempt.
        chunks: Its log.
        record: Its record's output and usage.
        messages: Its conversation.
        ledger: Its recorded outcomes, and its answers without when they were given, and where the log has them.
        effects: How often each call was executed, by its key without the run's id; and each model request.
    """

    def __init__(self) -> None:
        self.passed: list[dict[str, int]] = []
        self.chunks: list[Chunk] = []
        self.record: tuple[Any, Any, str] = (None, None, "")
        self.messages: list[Any] = []
        self.ledger: dict[str, bytes] = {}
        self.effects: Counter[str] = Counter()

    @classmethod
    async def of(cls, stage: Stage, run_id: str, *reports: Report) -> Reference:
        """What came of a run."""
        found = cls()
        record = await stage.record(run_id)
        found.passed = [report.passed for report in reports]
        found.chunks = await stage.bench.chunks(run_id)
        found.record = (nameless(record.json("output")), record.view().usage, record.status)
        found.messages = await stage.messages(run_id)
        entries = await stage.bench.runs.ledger(run_id)
        found.ledger = {name: _timeless(entry) if ledger.is_answer(name) else entry for name, entry in entries.items()}
        found.ledger = {name: nameless(entry.decode()).encode() for name, entry in found.ledger.items()}
        found.effects = Counter(nameless(effect.key.removeprefix(run_id)) for effect in stage.effects(run_id))
        return found


def _timeless(answer: bytes) -> bytes:
    """An answer without the moment at which it was given."""
    return Answer.model_validate_json(answer).model_copy(update={"at": None, "seq": None}).to_json()


async def recorded(stage: Stage, run_id: str) -> set[str]:
    """The calls that are complete, by their key without the run's id; those of its tasks, too."""
    found = set()
    for each in await stage.family(run_id):
        call = (await stage.bench.runs.request(each)).tool_call
        for field, entry in (await stage.bench.runs.ledger(each)).items():
            outcome = None if ledger.is_answer(field) else ledger.decode(entry)
            if outcome is not None and outcome.suspended is None and outcome.task is None:
                key = f"{each}:{ledger.key(ledger.step_of(field), field.partition(':')[2])}"
                found.add(nameless((call.idempotency_key if call is not None else key).removeprefix(run_id)))
    return found


async def compare(stage: Stage, whole: Reference, run_id: str, where: str, *, torn: int, complete: set[str]) -> None:
    """What counts of the run is what counts of the one that never crashed."""
    found = await Reference.of(stage, run_id)
    for task in (await stage.family(run_id))[1:]:
        assert log_faults(await stage.bench.chunks(task)) == [], where
    assert await Doctor(stage.bench.store).examine(run_id) == set(), where
    assert found.record == whole.record, where
    assert found.messages == whole.messages, where
    assert found.ledger == whole.ledger, where
    compare_logs(found.chunks, whole.chunks, where)
    compare_effects(found.effects, whole.effects, where, torn)
    assert {key: found.effects[key] for key in complete} == {key: whole.effects[key] for key in complete}, where


def compare_logs(found: list[Chunk], whole: list[Chunk], where: str) -> None:
    assert [chunk.seq for chunk in found] == list(range(1, len(found) + 1)), where
    assert [chunk.seq for chunk in found if chunk.final] == [len(found)], where
    attempts = [chunk.attempt for chunk in found if chunk.attempt]
    assert attempts == sorted(attempts), where
    assert effective(found) == effective(whole), where
    for kind in (*SETTLED, *ASKED):
        assert sorted(counted(found, kind)) == sorted(counted(whole, kind)), (where, kind)
    ours, theirs = folder(found), folder(whole)
    assert nameless(ours.text) == nameless(theirs.text), where
    assert (ours.reasoning, ours.object, ours.usage, ours.reason, ours.steps) == (
        (theirs.reasoning, theirs.object, theirs.usage, theirs.reason, theirs.steps)
    ), where


def compare_effects(found: Counter[str], whole: Counter[str], where: str, torn: int) -> None:
    """A torn call may be made once more, a torn request too; nothing else is, and nothing is left out."""
    assert set(found) == set(whole), where
    tools = {key: count - whole[key] for key, count in found.items() if ":" in key}
    models = {key: count - whole[key] for key, count in found.items() if ":" not in key}
    assert set(tools.values()) <= set(range(torn + 1)), (where, tools)
    assert sum(models.values()) <= torn, (where, models)
    steps = {key.split(":")[1] for key, more in tools.items() if more}
    assert len(steps) <= 1, (where, tools)


def folder(chunks: list[Chunk]) -> Folder:
    """What a log adds up to."""
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    return folder
