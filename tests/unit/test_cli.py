from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import JSONResponse
from typer.testing import CliRunner, Result

from durable.chunks import from_wire
from durable.cli import app
from durable.cli.terminal import Terminal, visible
from durable.cli.transcript import Transcript
from tests.scripted_api import DEADLINE_SECONDS, ScriptedApi, Stream, chunk, problem, run_object, text_log


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi() as server:
        yield server


def durable(api: ScriptedApi, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["--url", api.url, *arguments])


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-X", "utf8", "-m", "durable.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read standard output up to these words; the test's own timeout is the deadline."""
    assert process.stdout is not None
    text = ""
    while words not in text:
        piece = process.stdout.read(1)
        assert piece, f"ended without {words!r}: {text!r}"
        text += piece
    return text


# --- run and observe ---


def test_run_prints_the_run_id_and_the_text_as_it_flows(api: ScriptedApi) -> None:
    result = durable(api, "run", "echo", "hi")
    assert result.exit_code == 0
    assert result.stdout.startswith("run run-1\n")
    assert "\nHello wörld\n" in result.stdout
    assert "✓ completed" in result.stdout
    assert result.stderr == ""


def test_run_sends_its_options(api: ScriptedApi) -> None:
    options = (
        "--run-id",
        "r-7",
        "--max-steps",
        "4",
        "--retries",
        "2",
        "--thread",
        "talk-1",
        "--resource",
        "alice",
        "--on-busy",
        "reject",
        "--deps",
        '{"customer": "ada"}',
        "--metadata",
        "team=blue",
        "--metadata",
        "q=a=b",
    )
    assert durable(api, "run", "echo", "hi", "--detach", *options).exit_code == 0
    body = json.loads(api.requests[0][3])
    assert body == {
        "prompt": "hi",
        "runId": "r-7",
        "maxSteps": 4,
        "retries": 2,
        "threadId": "talk-1",
        "resourceId": "alice",
        "onBusy": "reject",
        "deps": {"customer": "ada"},
        "metadata": {"team": "blue", "q": "a=b"},
    }


def test_run_detached_prints_nothing_but_the_id_to_standard_output(api: ScriptedApi) -> None:
    result = durable(api, "run", "echo", "hi", "--detach")
    assert (result.exit_code, result.stdout) == (0, "run-1\n")
    assert "durable observe run-1" in result.stderr
    assert api.cursors == []


def test_json_prints_the_chunks_and_nothing_else(api: ScriptedApi) -> None:
    for arguments in (("run", "echo", "hi", "--json"), ("observe", "run-1", "--json")):
        result = durable(api, *arguments)
        assert [json.loads(line) for line in result.stdout.splitlines()] == api.log


def test_observe_begins_after_a_chunk(api: ScriptedApi) -> None:
    result = durable(api, "observe", "run-1", "--after", "4")
    assert "lo wörld" in result.stdout
    assert "Hel" not in result.stdout
    assert api.cursors == [4]


def test_a_structured_output_is_printed_as_json(api: ScriptedApi) -> None:
    api.log = text_log()
    api.run = run_object(status="completed", lastSeq=len(api.log), output={"city": "Paris"})
    assert '= {"city":"Paris"}\n' in durable(api, "observe", "run-1").stdout


@pytest.mark.parametrize(
    ("status", "error", "code", "words"),
    [
        ("failed", {"code": "tool_failed", "message": "The tool failed."}, 1, "tool_failed: The tool failed."),
        ("cancelled", None, 3, "cancelled"),
    ],
)
def test_the_exit_code_tells_how_the_run_ended(
    api: ScriptedApi, status: str, error: dict[str, str] | None, code: int, words: str
) -> None:
    api.run = run_object(status=status, lastSeq=len(api.log), **({"error": error} if error else {}))
    result = durable(api, "run", "echo", "hi")
    assert result.exit_code == code
    assert words in result.stdout
    assert durable(api, "observe", "run-1", "--after", "8").exit_code == code


def test_a_run_that_is_lost_from_sight_says_how_to_come_back(api: ScriptedApi) -> None:
    api.streams.extend([Stream(until=4, cut=True), problem(403, "forbidden", "Who are you?")])
    result = durable(api, "observe", "run-1")
    assert result.exit_code == 4
    assert "durable observe run-1 --after 4" in result.stdout
    assert result.stderr == "error: Who are you?\n"


@pytest.mark.parametrize("code", ["run_expired", "unknown_run", "invalid_request"])
def test_a_run_that_can_not_be_come_back_to_does_not_say_how(api: ScriptedApi, code: str) -> None:
    api.streams.extend([Stream(until=4, cut=True), problem(410, code, "No.")])
    result = durable(api, "observe", "run-1")
    assert (result.exit_code, result.stderr) == (4, "error: No.\n")
    assert "observe" not in result.stdout


def test_a_position_beyond_the_log_is_refused_with_the_number_of_its_last_chunk(api: ScriptedApi) -> None:
    result = durable(api, "observe", "run-1", "--after", "9999")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == f"error: The run has no chunk 9999 yet; its last one is {len(api.log)}.\n"
    assert api.cursors == []


def silent(api: ScriptedApi, monkeypatch: pytest.MonkeyPatch, reason: str) -> Result:
    """Follow a run that says nothing until somebody has asked why."""
    monkeypatch.setattr("durable.cli.following.SILENCE_SECONDS", 0)
    told = {"status": "queued", "reason": reason, "summary": "It waits: nobody is there.", "facts": []}
    api.diagnosis = {"runId": "run-1", "agent": "echo", **told}
    api.streams.append(Stream(until=0, hold=True))
    return durable(api, "observe", "run-1")


@pytest.mark.parametrize(("reason", "told"), [("no_worker", "It waits: nobody is there.\n"), ("executing", "")])
def test_a_silent_run_says_once_what_it_waits_for_unless_it_is_being_executed(
    api: ScriptedApi, monkeypatch: pytest.MonkeyPatch, reason: str, told: str
) -> None:
    result = silent(api, monkeypatch, reason)
    assert (result.exit_code, result.stderr) == (0, told)
    assert "✓ completed" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "This run exists already (completed); showing it.\n"), (("-d",), "This run exists already (completed).\n")],
)
def test_run_says_that_it_shows_a_run_that_was_there(api: ScriptedApi, options: tuple[str, ...], words: str) -> None:
    api.submits.append(JSONResponse(run_object(status="completed", lastSeq=8)))
    assert durable(api, "run", "echo", "hi", "--run-id", "run-1", *options).stderr.startswith(words)


def test_run_names_the_agents_that_there_are_when_nobody_knows_the_one_it_was_given(api: ScriptedApi) -> None:
    api.submits.append(problem(404, "unknown_agent", "No agent of this name was ever announced."))
    result = durable(api, "run", "ecco", "hi")
    assert (result.exit_code, result.stdout) == (4, "")
    words = "No agent 'ecco' was ever announced (known: echo); start a worker that has it."
    assert result.stderr == f"error: {words}\n"


def test_a_run_that_was_cancelled_says_why_in_one_line(api: ScriptedApi) -> None:
    api.log = [
        chunk(1, "start", {"id": "echo", "messageId": "m"}),
        chunk(2, "abort", {"reason": "enough"}),
        {**api.log[-1], "seq": 3},
    ]
    api.run = run_object(status="cancelled", lastSeq=3)
    assert durable(api, "observe", "run-1").stdout == "● echo\n✗ cancelled: enough\n"


def test_retry_follows_the_new_run_as_run_does_or_leaves_it(api: ScriptedApi) -> None:
    assert "✓ completed" in durable(api, "retry", "run-0").stdout
    detached = durable(api, "retry", "run-0", "--detach")
    assert (detached.exit_code, detached.stdout) == (0, "run-1\n")


AWAY = problem(503, "store_unavailable", "The store is away.")


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_an_outage_and_its_end_are_said_once_on_standard_error(
    api: ScriptedApi, monkeypatch: pytest.MonkeyPatch, as_json: list[str]
) -> None:
    monkeypatch.setattr("durable.client.outage.NOTICE_SECONDS", 0)
    api.streams.extend([Stream(until=5, cut=True), AWAY, AWAY])
    result = durable(api, "observe", "run-1", *as_json)
    assert result.exit_code == 0
    assert result.stderr == "The server does not answer; trying again …\nThe server answers again.\n"
    assert as_json or "\nHello \nwörld\n" in result.stdout


def test_a_server_that_is_not_ready_is_told_from_one_that_is_not_there(
    api: ScriptedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.client.outage.NOTICE_SECONDS", 0)
    api.submits.extend([AWAY, AWAY])
    result = durable(api, "run", "echo", "hi", "--detach")
    assert (result.exit_code, result.stdout) == (0, "run-1\n")
    assert result.stderr.startswith(
        "The server is not ready (The store is away); trying again …\nThe server answers again.\n"
    )


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_come_back(api: ScriptedApi) -> None:
    api.streams.append(Stream(until=5, hold=True))
    with started("--url", api.url, "run", "echo", "hi") as process:
        read_until(process, "Hello ")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0
    assert "The run goes on." in rest
    assert "durable observe run-1 --after 5" in rest
    assert errors == ""
    assert not [target for _, target, _, _ in api.requests if "cancel" in target]


def test_ctrl_c_before_there_is_a_run_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with started("--url", url, "run", "echo", "hi") as process:
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)  # the request is on its way
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, output) == (130, "")
    assert errors == "Interrupted before the server confirmed a run.\n"


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(api: ScriptedApi) -> None:
    api.streams.append(Stream(until=3, hold=True))
    with started("--url", api.url, "observe", "run-1", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline()) == api.log[0]
        read_until(process, '"text-start"')
        process.stdout.close()
        api.release()
        assert process.wait(DEADLINE_SECONDS) == 0
        assert process.stderr.read() == ""


# --- lists, cancel, errors ---


def test_runs_are_listed_as_a_table_whose_ids_are_whole(api: ScriptedApi) -> None:
    api.run = run_object(runId="r" * 60, status="suspended", reason="approval")
    result = durable(api, "runs", "--status", "suspended", "--agent", "echo", "--limit", "3")
    assert "r" * 60 in result.stdout
    assert "suspended (approval)" in result.stdout
    assert api.requests[0][1] == "/v1/runs?status=suspended&agent=echo&limit=3"


def test_lists_print_json_lines(api: ScriptedApi) -> None:
    assert json.loads(durable(api, "runs", "--json").stdout)["runId"] == "run-1"
    assert json.loads(durable(api, "agents", "--json").stdout)["name"] == "echo"


def test_agents_are_listed_with_their_tools(api: ScriptedApi) -> None:
    lines = durable(api, "agents").stdout.splitlines()
    assert lines[1].split() == ["echo", "1", "add", "Says", "it."]


def test_cancel_sends_the_reason_and_tells_the_state(api: ScriptedApi) -> None:
    api.run = run_object()
    result = durable(api, "cancel", "run-1", "--reason", "enough")
    assert (result.exit_code, result.stdout) == (0, "run run-1 is being cancelled\n")
    assert json.loads(api.requests[0][3]) == {"reason": "enough"}


@pytest.mark.parametrize(
    ("answer", "arguments", "code"),
    [
        (problem(404, "unknown_run", "There is no such run."), ("observe", "nope"), 4),
        (problem(503, "store_unavailable", "The store is away."), ("observe", "r"), 5),
    ],
)
def test_an_error_is_one_line_on_standard_error(
    api: ScriptedApi, answer: JSONResponse, arguments: tuple[str, ...], code: int
) -> None:
    api.gets.append(answer)
    result = durable(api, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == f"error: {json.loads(bytes(answer.body))['error']['message']}\n"


def test_a_server_that_is_not_there_is_said_in_one_line(api: ScriptedApi) -> None:
    api.stop()
    for arguments in (("agents",), ("runs",), ("observe", "r")):
        result = durable(api, *arguments)
        assert (result.exit_code, result.stdout) == (5, "")
        assert result.stderr == f"error: The server at {api.url} can't be reached.\n"


@pytest.mark.parametrize(
    ("options", "sent"),
    [((), None), (("--require-tool-approval",), True), (("--approval-policy", "large"), "large")],
)
def test_run_may_ask_for_approvals(api: ScriptedApi, options: tuple[str, ...], sent: object) -> None:
    assert durable(api, "run", "echo", "hi", "--detach", *options).exit_code == 0
    assert json.loads(api.requests[0][3]).get("requireToolApproval") == sent


# --- people in the loop ---

WAITING = {
    "runId": "run-1",
    "agent": "echo",
    "toolCallId": "c[1]",
    "questionId": "2.0",
    "toolName": "refund",
    "args": {"amount": 500},
    "kind": "approval",
    "since": "2026-01-02T03:04:05Z",
}


def test_pending_lists_the_calls_that_wait(api: ScriptedApi) -> None:
    assert durable(api, "pending").stderr == "Nothing waits.\n"
    api.pending = [WAITING]
    lines = durable(api, "pending", "--agent", "echo", "--limit", "3").stdout.splitlines()
    assert lines[1].split()[:6] == ["run-1", "c[1]", "2.0", "echo", "approval", "refund(amount=500)"]
    assert api.requests[1][1] == "/v1/pending?agent=echo&limit=3"
    assert json.loads(durable(api, "pending", "--json").stdout)["toolCallId"] == "c[1]"


@pytest.mark.parametrize(
    ("arguments", "verb", "body"),
    [
        (("approve",), "approve", {}),
        (("approve", "--args", '{"amount": 1}'), "approve", {"args": {"amount": 1}}),
        (("decline", "--reason", "no"), "decline", {"reason": "no"}),
        (("resume", "--data", "null"), "resume", {"data": None}),
        (("resume", "--data", '{"a": [1]}'), "resume", {"data": {"a": [1]}}),
    ],
)
def test_an_answer_is_sent_with_who_gives_it(
    api: ScriptedApi, arguments: tuple[str, ...], verb: str, body: dict[str, Any]
) -> None:
    decision = {"toolCallId": "a/b", "toolName": "refund", "decision": verb, "actor": "ada", "at": WAITING["since"]}
    api.run = run_object(status="queued", decisions=[decision | {"questionId": "1.0"}], pending=[WAITING])
    result = durable(api, *arguments, "--actor", "ada", "run-1", "a/b")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"call a/b is {verb.rstrip('e')}ed by ada; run run-1 is queued",
        "  · refund still waits (call c[1])",
    ]
    [(_, looked, _, _), (_, target, _, sent)] = api.requests
    assert (looked, target) == ("/v1/runs/run-1", f"/v1/runs/run-1/tool-calls/a/b/{verb}")
    assert json.loads(sent) == {**body, "actor": "ada", "questionId": "1.0"}
    assert json.loads(durable(api, *arguments, "run-1", "a/b", "--json").stdout)["runId"] == "run-1"


def _decision(question: str, decision: str) -> dict[str, Any]:
    return {k: WAITING[k] for k in ("toolCallId", "toolName")} | {
        "questionId": question,
        "decision": decision,
        "at": WAITING["since"],
    }


@pytest.mark.parametrize(
    ("run", "options", "sent", "told"),
    [
        ({"pending": [WAITING], "decisions": [_decision("1.0", "decline")]}, (), "2.0", "answered"),
        ({"decisions": [_decision("1.0", "decline"), _decision("1.1", "approve")]}, (), "1.1", "approved"),
        ({"pending": [WAITING], "decisions": [_decision("1.0", "decline")]}, ("--question", "1.0"), "1.0", "declined"),
        ({"pending": [WAITING | {"toolCallId": "c2"}]}, (), None, "answered"),
        ({}, ("--question", ""), "", "answered"),
    ],
    ids=["what waits", "what was answered last", "what is named", "another call", "nothing is no default"],
)
def test_an_answer_names_what_it_answers(
    api: ScriptedApi, run: dict[str, Any], options: tuple[str, ...], sent: str | None, told: str
) -> None:
    api.run = run_object(status="queued", **run)
    result = durable(api, "approve", "run-1", "c[1]", *options)
    assert result.stdout.splitlines()[0].startswith(f"call c[1] is {told}")
    assert json.loads(api.requests[-1][3]).get("questionId") == sent
    assert len(api.requests) == (1 if options else 2)


@pytest.mark.parametrize("variable", ["LOGNAME", "USER"])
def test_who_answers_is_the_user_unless_they_say_otherwise(
    api: ScriptedApi, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "grace")
    assert durable(api, "approve", "run-1", "c1").exit_code == 0
    assert json.loads(api.requests[-1][3]) == {"actor": "grace"}


def test_a_refused_answer_is_one_line_with_the_code_of_a_refusal(api: ScriptedApi) -> None:
    api.answers.append(problem(409, "already_decided", "The call was answered before, in another way."))
    result = durable(api, "decline", "run-1", "c1")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == "error: The call was answered before, in another way.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("approve", "run-1", "c1", "--args", "{"),
        ("approve", "run-1", "c1", "--args", "[1]"),
        ("resume", "run-1", "c1"),
        ("resume", "run-1", "c1", "--data", "NaN"),
        ("resume", "run-1", "c1", "--data", "blue"),
        ("approve", "run-1"),
        ("run", "echo", "hi", "--require-tool-approval", "--approval-policy", "large"),
        ("run", "echo"),
        ("run", "echo", "hi", "--metadata", "nonsense"),
        ("run", "echo", "hi", "--deps", "{"),
        ("runs", "--status", "odd"),
        ("nonsense",),
    ],
)
def test_wrong_usage_has_an_exit_code_of_its_own(api: ScriptedApi, arguments: tuple[str, ...]) -> None:
    assert durable(api, *arguments).exit_code == 2
    assert api.requests == []


def test_a_setting_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_CONCURRENCY", "many")
    result = CliRunner().invoke(app, ["api"])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: DURABLE_CONCURRENCY: ")
    assert "many" not in result.stderr


def test_every_verb_explains_itself() -> None:
    for verb in (
        "run",
        "observe",
        "runs",
        "cancel",
        "pending",
        "approve",
        "decline",
        "resume",
        "agents",
        "dev",
        "worker",
        "api",
    ):
        result = CliRunner().invoke(app, [verb, "--help"])
        assert result.exit_code == 0
        assert verb in result.stdout


# --- what a transcript looks like ---


def transcript(capsys: pytest.CaptureFixture[str], *events: tuple[str, Any, int]) -> list[str]:
    shown = Transcript(Terminal())
    for seq, (kind, payload, attempt) in enumerate(events, 1):
        shown.show(from_wire(chunk(seq, kind, payload, attempt=attempt)))
    shown.close()
    return capsys.readouterr().out.splitlines()


STEP: dict[str, Any] = {"stepId": "step-3", "messageId": "m", "startedAt": 0, "request": {}}
CALL = {"toolCallId": "c", "toolName": "add"}


def test_tool_calls_and_their_outcomes_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "tool_failed", "message": "The tool failed."}
    lines = transcript(
        capsys,
        ("step-start", STEP, 1),
        ("reasoning-delta", {"id": "r", "text": "two\nlines"}, 1),
        ("tool-call", {**CALL, "args": {"a": 1, "b": "x\ny"}}, 1),
        ("tool-output", {"toolCallId": "c", "output": {"done": 1}}, 1),
        ("tool-result", {**CALL, "result": "first\nsecond"}, 1),
        ("tool-error", {**CALL, "error": error}, 1),
        ("tomorrow", {}, 1),
    )
    assert lines == [
        "┌ step 3",
        "two",
        "lines",
        '  → add(a=1, b="x\\ny")',
        '  … add: {"done":1}',
        "  ← add: first second",
        "  ✗ add: tool_failed: The tool failed.",
        "  · tomorrow",
    ]


def test_a_sub_agent_is_heard_and_changes_of_state_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    def nested(kind: str, payload: Any, outer: str = "tool-output") -> tuple[str, Any, int]:
        return (outer, {**CALL, "taskId": "t", "output": chunk(1, kind, payload)}, 0)

    usage = {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}
    step = {"stepResult": {"reason": "stop"}, "output": {"usage": usage}, "metadata": {}}
    lines = transcript(
        capsys,
        (
            "watch",
            {"workflowState": {"status": "suspended", "reason": "decision", "attempt": 1}, "eventTimestamp": 1},
            0,
        ),
        nested("text-start", {"id": "p"}),
        nested("text-delta", {"id": "p", "text": "half "}),
        nested("text-delta", {"id": "p", "text": "way"}),
        nested("tool-call", {"toolCallId": "x", "toolName": "look", "args": {"a": 1}}),
        nested("tool-result", {"toolCallId": "x", "toolName": "look", "result": 2}),
        nested("text-delta", "not as it should be"),
        nested("step-finish", step, "step-output"),
    )
    assert lines == [
        "◦ suspended: decision",
        "half way",
        "    → add: look(a=1)",
        "    ← add: look: 2",
        "    └ add: a step finished, 3 tokens in, 2 out",
    ]


def test_a_call_that_waits_says_how_to_answer_it(capsys: pytest.CaptureFixture[str]) -> None:
    refund = {"toolCallId": "c 1", "toolName": "refund", "args": {"amount": 500}}
    paint = {
        "toolCallId": "-c2",
        "questionId": "2.1",
        "toolName": "paint",
        "args": {},
        "suspendPayload": {"question": "which?"},
    }
    wrong = [{"field": "args.amount", "message": "does not fit 'value_error'"}]
    denied = {"approval": {"id": "-c2", "approved": False, "reason": "enough", "actor": "ada"}}
    lines = transcript(
        capsys,
        ("tool-call-approval", {**refund, "resumeSchema": "{}"}, 1),
        ("tool-call-approval", {**refund, "questionId": "1.0", "resumeSchema": "{}"}, 1),
        ("tool-call-suspended", {**paint, "resumeSchema": "{}"}, 1),
        ("tool-call-approval", {**refund, "resumeSchema": "{}", "issues": wrong}, 1),
        ("tool-call-decided", {**refund, "args": {"amount": 1}, "decision": "approve", "actor": "ada"}, 0),
        ("tool-call-decided", {**CALL, "decision": "resume"}, 0),
        ("tool-call-decided", {**CALL, "decision": "fail", "actor": "deadline"}, 0),
        ("tool-output-denied", {**paint, **denied}, 0),
    )
    assert lines == [
        "  ? waits for approval of refund(amount=500):  durable approve run-1 'c 1'",
        "  ? waits for approval of refund(amount=500):  durable approve run-1 'c 1' --question 1.0",
        (
            '  ? waits for an answer to paint(), {"question":"which?"}:  '
            "durable resume --question 2.1 --data JSON -- run-1 -c2"
        ),
        (
            "  ? waits for approval of refund(amount=500), again, as args.amount does not fit 'value_error':"
            "  durable approve run-1 'c 1'"
        ),
        "  ✓ refund: approved by ada, as refund(amount=1)",
        "  ✓ add: resumed",
        "  ✗ add: nobody answered in time",
        "  ✗ paint: declined by ada: enough",
    ]


def test_verdicts_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    judged = {"iteration": 1, "results": [], "duration": 0, "timedOut": False, "suppressFeedback": False}
    task = {**judged, "maxIterationReached": False}
    goal = {**judged, "objective": "a car", "maxRuns": 5, "passed": False, "maxRunsReached": False}
    stopped = {"reason": "a secret", "processorId": "no_secrets"}
    lines = transcript(
        capsys,
        ("is-task-complete", {**task, "passed": False, "reason": "length: too\nlong"}, 1),
        ("is-task-complete", {**task, "passed": True}, 1),
        ("goal", {**goal, "status": "active", "pending": True}, 1),
        ("goal", {**goal, "status": "paused", "pausedReason": "which colour?"}, 1),
        ("tripwire", stopped, 1),
        ("tripwire", {**stopped, "void": {"from": 1, "to": 2}}, 1),
    )
    assert lines == [
        "◇ the task is not complete: length: too long",
        "◇ the task is complete",
        "◇ the goal is being judged",
        "◇ the goal is paused: which colour?",
        "✗ stopped by no_secrets: a secret",
        "✗ stopped by no_secrets: a secret; what the model said last no longer counts",
    ]


@pytest.mark.parametrize(
    ("first", "line"), [(("step-start", STEP, 1), "└ step 3 finished (2)"), (("raw", {}, 1), "└ step finished (2)")]
)
def test_the_end_of_a_step_tells_its_position_and_its_number_if_its_begin_was_seen(
    capsys: pytest.CaptureFixture[str], first: tuple[str, Any, int], line: str
) -> None:
    usage = {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}
    output = {"stepResult": {"reason": "stop"}, "output": {"text": "", "usage": usage}, "metadata": {}}
    lines = transcript(capsys, first, ("step-finish", {"messageId": "m", **output}, 1))
    assert lines[-1] == line


def test_a_torn_response_is_announced_as_void(capsys: pytest.CaptureFixture[str]) -> None:
    lines = transcript(
        capsys,
        ("step-start", STEP, 1),
        ("text-delta", {"id": "t", "text": "torn"}, 1),
        ("step-start", {**STEP, "void": {"from": 1, "to": 2}}, 2),
        ("text-delta", {"id": "t2", "text": "again"}, 2),
    )
    assert lines == [
        "┌ step 3",
        "torn",
        "↻ attempt 2 goes on from here: that response was cut off and no longer counts; it comes again",
        "┌ step 3",
        "again",
    ]


@pytest.mark.parametrize(
    ("first", "line"),
    [
        (("step-start", STEP, 2), "┌ step 3"),
        (("tool-output", {**CALL, "output": 1}, 2), "  … add: 1"),
        (("tool-result", {**CALL, "result": 1}, 2), "  ← add: 1"),
        (("text-delta", {"id": "t", "text": "hi\n"}, 2), "hi"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_another_attempt_is_announced_with_whatever_it_writes_first(
    capsys: pytest.CaptureFixture[str], first: tuple[str, Any, int], line: str
) -> None:
    lines = transcript(capsys, ("start", {"id": "echo", "messageId": "m"}, 1), first, first)
    assert lines[:3] == ["● echo", "↻ attempt 2 goes on from here", line]
    assert "".join(lines).count("↻") == 1


def test_a_reader_who_comes_in_a_later_attempt_is_told_of_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert transcript(capsys, ("tool-output", {**CALL, "output": 1}, 3)) == ["  … add: 1"]


def test_a_response_that_begins_anew_within_its_attempt_is_announced_as_void(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = transcript(capsys, ("step-start", STEP, 1), ("step-start", {**STEP, "void": {"from": 1, "to": 1}}, 1))
    assert lines[1] == "↻ that response was cut off and no longer counts; it comes again"


def test_a_long_value_is_cut_and_text_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    lines = transcript(
        capsys,
        ("tool-result", {**CALL, "result": "x" * 1000}, 1),
        ("text-delta", {"id": "t", "text": "y" * 1000}, 1),
    )
    assert [len(line) < 200 for line in lines] == [True, False]
    assert lines[1] == "y" * 1000


def test_nothing_that_was_written_by_a_model_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "a\x1b[2Jb\x9b1mc\x07[red]d"
    lines = transcript(
        capsys, ("text-delta", {"id": "t", "text": nasty}, 1), ("tool-result", {**CALL, "result": nasty}, 1)
    )
    assert lines == ["a[2Jb1mc[red]d", "  ← add: a[2Jb1mc[red]d"]
    assert visible("tab\tand\r\nline") == "tab\tand\nline"
