from __future__ import annotations

from typing import Any

import pytest

from durable.decisions import Answer, Call, Question
from durable.diagnosis import Circumstances, diagnose
from durable.diagnosis.children import Child
from durable.runs import RunRecord
from durable.views import Diagnosis

NOW = 1_795_507_200_000


def circumstances(fields: dict[str, Any], **around: Any) -> Circumstances:
    known = {
        "status": "queued",
        "agent": "weather",
        "kind": "evented",
        "queue": "durable.weather",
        "token": 0,
        "lastSeq": 0,
        "createdAt": NOW - 12_300,
    }
    record = RunRecord("r1", {name: str(value).encode() for name, value in {**known, **fields}.items()})
    return Circumstances(record, NOW, **{"workers": 2, **around})


def told(fields: dict[str, Any], **around: Any) -> tuple[Diagnosis, dict[str, str]]:
    found = diagnose(circumstances(fields, **around))
    return found, {fact.code: fact.message for fact in found.facts}


RUNNING = {"status": "running", "token": 2, "owner": "host:1:a", "claims": 1, "lastSeq": 9, "checkpointSeq": 5}


def test_a_queued_run_tells_since_when_and_when_it_is_woken_again() -> None:
    found, facts = told({"wakes": 3}, wakeup_at=NOW + 4000)
    assert (found.reason, found.summary) == ("waiting", "It waits for a worker to take it up.")
    assert facts["queued"] == "It was submitted 12.3 s ago."
    assert facts["wakeup"] == "It is woken again at 2026-11-24T08:00:04.000Z; that happened 3 times so far."
    assert facts["workers"] == "Live workers that serve 'weather': 2."
    assert "attempts" not in facts


def test_a_queued_run_tells_how_many_are_before_it() -> None:
    found, facts = told({}, ahead=7)
    assert found.reason == "behind_others"
    assert facts["ahead"] == "Queued runs of 'durable.weather' that are older: 7."
    assert "1000 or more" in told({}, ahead=1000)[1]["ahead"]


def test_a_run_at_its_last_attempt_waits_to_be_executed_alone() -> None:
    found, facts = told({"token": 4, "claims": 4}, ahead=7)
    assert found.reason == "last_attempt"
    assert found.summary == (
        "Its workers were lost again and again; its last attempt waits until a worker executes nothing else."
    )
    assert facts["attempts"] == "Attempts so far: 4; without progress: 4 of at most 5."
    assert told({"token": 3, "claims": 3})[0].reason == "waiting"
    assert told({}, max_attempts=1)[0].reason == "waiting"


def test_nobody_is_there() -> None:
    found, facts = told({}, workers=0)
    assert (found.reason, found.summary) == ("no_worker", "It waits: no live worker serves the agent 'weather'.")
    assert facts["workers"] == "No live worker serves 'weather'. Start one that has this agent."


def test_a_run_of_an_agent_that_is_executed_where_it_is_asked_for_needs_no_worker() -> None:
    found, facts = told({"kind": "durable"}, workers=0)
    assert found.reason == "waiting"
    assert facts["workers"].startswith("No worker serves 'weather'; the process that took the request executes it")


def test_a_run_that_is_tried_again_tells_when_and_why() -> None:
    fields = {
        "token": 1,
        "notBefore": NOW + 30_000,
        "retriesUsed": 2,
        "lastError": '{"code":"model_error","message":"No."}',
    }
    found, facts = told(fields, wakeup_at=NOW + 30_000)
    assert found.reason == "retrying"
    assert facts["retrying"] == "It is tried again at 2026-11-24T08:00:30.000Z; that is retry 2 in a row."
    assert facts["last_error"] == "model_error: No."


def test_a_running_run_tells_who_holds_it_and_until_when() -> None:
    found, facts = told(RUNNING, lease_until=NOW + 5000)
    assert (found.reason, found.summary) == ("executing", "It is being executed (attempt 2).")
    assert facts["lease"] == "host:1:a holds its lease until 2026-11-24T08:00:05.000Z."
    assert facts["attempts"] == "Attempts so far: 2; without progress: 1 of at most 5."
    assert facts["progress"] == "Its log has 9 chunks; its last checkpoint is at 5."


def test_a_live_worker_that_has_fallen_silent_is_told() -> None:
    _, facts = told(RUNNING, lease_until=NOW + 5000, silences=[6.2])
    assert facts["workers"] == "Live workers that serve 'weather': 2 (one was silent for 6 s)."


@pytest.mark.parametrize(("until", "words"), [(NOW - 2500, "ran out at 2026-11-24T07:59:57.500Z"), (None, "is gone")])
def test_a_lost_lease_tells_since_when(until: int | None, words: str) -> None:
    found, facts = told(RUNNING, lease_until=until)
    assert (found.reason, found.summary) == ("lease_lost", "Its worker fell silent; it is about to be taken over.")
    assert words in facts["lease_lost"]
    assert told(RUNNING, lease_until=until, workers=0)[0].reason == "no_worker"


def test_a_lease_that_was_lost_before_is_remembered() -> None:
    assert told({"lostAt": NOW - 1000, "token": 1})[1]["lost_before"].endswith("at 2026-11-24T07:59:59.000Z.")


@pytest.mark.parametrize("workers", [0, 1], ids=["gone", "just killed"])
@pytest.mark.parametrize(
    ("fields", "around"),
    [
        ({}, {"wakeup_at": NOW + 4000}),
        ({"wakes": 2}, {"wakeup_at": NOW - 4000, "ahead": 3}),
        ({"token": 1, "notBefore": NOW, "lastError": "{}"}, {"wakeup_at": NOW}),
        (RUNNING, {"lease_until": NOW - 1}),
        (RUNNING, {"lease_until": NOW + 1}),
    ],
    ids=["queued", "overdue", "retrying", "lost", "leased"],
)
def test_where_nobody_looks_for_lost_runs_nothing_promises_that_somebody_does(
    fields: dict[str, Any], around: dict[str, Any], workers: int
) -> None:
    found, facts = told(fields, **around, workers=workers, swept=False)

    assert facts["unswept"] == "Nobody looks for lost runs until a worker starts."
    words = " ".join([found.summary, *facts.values()])
    for promise in ("about to be taken over", "is woken again", "tried again at", "Live workers"):
        assert promise not in words


def test_a_run_that_lost_its_worker_just_now_says_that_nobody_takes_it_over() -> None:
    found, facts = told(RUNNING, lease_until=NOW - 1, workers=1, swept=False)

    assert found.reason == "lease_lost"
    assert found.summary == "Its worker fell silent. Nobody looks for lost runs until a worker starts."
    assert facts["workers"] == "Workers that served 'weather' a moment ago: 1."


def test_a_cancel_that_is_under_way_tells_who_and_why() -> None:
    fields = {**RUNNING, "cancelRequested": '{"reason":"enough","actor":null}'}
    found, facts = told(fields, lease_until=NOW + 1)
    assert found.reason == "cancelling"
    assert facts["cancel"] == "A cancel was requested, reason: enough."


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_run_that_was_told_to_end_waits_for_no_worker(workers: int) -> None:
    fields = {**RUNNING, "cancelRequested": '{"reason":"enough"}'}
    found, facts = told(fields, lease_until=NOW - 1, workers=workers, swept=False)
    assert found.reason == "cancelling"
    assert found.summary == "Its worker fell silent; it was told to end, and is about to be cancelled."
    assert "unswept" not in facts


def test_a_suspended_run_tells_what_for() -> None:
    assert told({"status": "suspended", "reason": "budget"})[0].reason == "budget"


def waiting(call: str, *, until: int | None = None, answer: Answer | None = None, **asked: Any) -> Call:
    question = Question(**{"tool_name": "refund", "kind": "approval", **asked})
    return Call(call, 1, 0, question, since=NOW - 60_000, until=until, answer=answer)


def test_a_suspended_run_tells_which_calls_wait_since_when_and_until_when() -> None:
    calls = [
        waiting("c1", until=NOW + 60_000, on_expiry="cancel"),
        waiting("c2", answer=Answer(kind="approve")),
        waiting("c3", kind="resume"),
    ]
    found = diagnose(circumstances({"status": "suspended", "reason": "decision"}, calls=calls))
    assert (found.reason, found.summary) == ("decision", "It waits for somebody to answer 2 tool calls.")
    assert [fact.message for fact in found.facts] == [
        (
            "refund (call c1) waits for an approval since 2026-11-24T07:59:00.000Z; "
            "if nobody answers until 2026-11-24T08:01:00.000Z, the run is cancelled."
        ),
        "refund (call c3) waits for data since 2026-11-24T07:59:00.000Z, and has no deadline.",
    ]
    assert found.facts[0].details == {
        "toolCallId": "c1",
        "questionId": "1.0",
        "toolName": "refund",
        "kind": "approval",
        "since": "2026-11-24T07:59:00.000Z",
        "until": "2026-11-24T08:01:00.000Z",
        "onExpiry": "cancel",
    }
    _, facts = told({"status": "suspended", "reason": "decision"}, calls=calls, swept=False)
    assert "unswept" in facts, "nobody keeps the deadline"


@pytest.mark.parametrize("status", ["queued", "running"])
def test_calls_that_wait_while_their_run_goes_on_are_told_as_well(status: str) -> None:
    _, facts = told({"status": status}, calls=[waiting("c1", kind="external")])
    assert facts["pending_call"].startswith("refund (call c1) waits for its result from outside since ")
    assert "pending_call" not in told({"status": "failed", "finishedAt": NOW}, calls=[waiting("c1")])[1]


def test_an_ended_run_tells_how() -> None:
    error = '{"code":"attempts_exhausted","message":"Lost each time."}'
    found, facts = told({"status": "failed", "error": error, "finishedAt": NOW - 1000, "token": 6, "claims": 6})
    assert (found.reason, found.summary) == ("failed", "It failed: attempts_exhausted.")
    assert facts["error"] == "attempts_exhausted: Lost each time."
    assert facts["attempts"] == "Attempts: 6."
    assert "retry" in facts
    found, facts = told({"status": "completed", "reason": "max_steps", "finishedAt": NOW})
    assert found.summary == "It completed. The step limit ended it."
    assert "retry" not in facts
    assert told({"status": "cancelled", "finishedAt": NOW})[0].summary == "It was cancelled."


def child(n: int) -> Child:
    fields = {"status": "queued", "kind": "task", "agent": "weather", "queue": "heavy", "toolName": "work"}
    fields |= {"disposition": "deferred", "parentCall": f"1 0 c{n}"}
    return Child(RunRecord(f"task-{n}", {name: value.encode() for name, value in fields.items()}))


def test_of_very_many_tasks_some_are_named_and_the_others_counted() -> None:
    fields = {"status": "suspended", "reason": "background", "idleUntil": NOW + 5000}
    found, facts = told(fields, children=[child(n) for n in range(33)], wakeup_at=NOW + 5000, swept=False)
    assert found.summary == "It waits for 33 background tasks."
    assert [fact.code for fact in found.facts].count("task") == 20
    assert facts["more_tasks"] == "It waits for 13 more background tasks."
    assert facts["idle"] == "If none of them ends until 2026-11-24T08:00:05.000Z, it ends with what it has."
    assert "unswept" in facts, "nobody ends it then"
    assert found.facts[0].message == ("work (call c0, task task-0) is queued: it waits for a worker to take it up.")


def test_a_run_that_waits_for_tasks_of_which_none_is_there_says_so() -> None:
    found, _ = told({"status": "suspended", "reason": "background"})
    assert found.summary == "It waits for background tasks, and has none that is under way."
