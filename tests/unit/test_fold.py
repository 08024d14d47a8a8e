from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from durable.chunks import Chunk, from_wire
from durable.fold import Folder, fold_text, void_range

USAGE = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}


class Log:
    """Writes a log chunk by chunk."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def add(self, kind: str, payload: Any, **envelope: Any) -> int:
        seq = len(self.chunks) + 1
        self.chunks.append(from_wire({"type": kind, "runId": "r", "seq": seq, "payload": payload, **envelope}))
        return seq

    def step(self, void: tuple[int, int] | None = None) -> int:
        payload: dict[str, Any] = {"stepId": "s", "messageId": "m", "startedAt": 0, "request": {}}
        if void:
            payload["void"] = {"from": void[0], "to": void[1]}
        return self.add("step-start", payload)

    def text(self, text: str) -> int:
        return self.add("text-delta", {"id": "t", "text": text})

    def call(self, call_id: str, args: Any = None) -> int:
        return self.add("tool-call", {"toolCallId": call_id, "toolName": "add", "args": args})

    def result(self, call_id: str, result: Any) -> int:
        return self.add("tool-result", {"toolCallId": call_id, "toolName": "add", "result": result})

    def finish(self, **output: Any) -> int:
        payload = {"output": {"text": "", "usage": USAGE, "steps": [], **output}, "stepResult": {"reason": "stop"}}
        return self.add("finish", payload, final=True)

    @property
    def folded(self) -> Folder:
        folder = Folder()
        for chunk in self.chunks:
            folder.add(chunk)
        return folder


def test_a_call_that_was_declined_has_ended_and_counts_whatever_is_void() -> None:
    log = Log()
    log.step()
    log.call("c1")
    payload = {"toolCallId": "c1", "toolName": "add", "args": {"a": 1}}
    log.add("tool-output-denied", {**payload, "approval": {"id": "c1", "approved": False, "reason": "no"}})
    log.step(void=(1, 3))
    call = log.folded.calls["c1"]
    assert (call.ended, call.args, call.result, call.error) == (True, {"a": 1}, None, None)
    assert call.denied is not None
    assert (call.denied.approved, call.denied.reason) == (False, "no")


def test_the_text_is_all_deltas_in_order() -> None:
    log = Log()
    log.step()
    log.text("Hello, ")
    log.text("world")
    assert fold_text(log.chunks) == "Hello, world"


def test_text_and_reasoning_of_a_torn_response_do_not_count() -> None:
    log = Log()
    log.step()
    log.text("kept. ")
    torn = log.step()
    log.add("reasoning-delta", {"id": "r", "text": "hmm"})
    end = log.text("torn")
    log.step(void=(torn, end))
    log.text("again")
    assert (log.folded.text, log.folded.reasoning, log.folded.steps) == ("kept. again", "", 2)


def test_both_ends_of_a_void_range_are_void_and_their_neighbours_are_not() -> None:
    log = Log()
    before = log.text("a")
    log.text("b")
    log.text("c")
    log.text("d")
    log.step(void=(before + 1, before + 2))
    assert log.folded.text == "ad"


def test_a_recorded_outcome_counts_though_its_call_lies_in_a_void_range() -> None:
    log = Log()
    start = log.step()
    log.call("kept", {"a": 1})
    log.call("torn", {"a": 2})
    log.add("tool-output", {"toolCallId": "torn", "output": "half"})
    end = log.result("kept", 3)
    log.step(void=(start, end))
    calls = log.folded.calls
    assert list(calls) == ["kept"]
    assert (calls["kept"].result, calls["kept"].args, calls["kept"].ended) == (3, {"a": 1}, True)


def test_a_torn_call_that_comes_again_is_told_afresh() -> None:
    log = Log()
    start = log.step()
    log.add("tool-call-input-streaming-start", {"toolCallId": "c", "toolName": "add"})
    end = log.add("tool-call-delta", {"toolCallId": "c", "argsTextDelta": '{"a"'})
    log.step(void=(start, end))
    log.add("tool-call-delta", {"toolCallId": "c", "toolName": "add", "argsTextDelta": '{"a":1}'})
    call = log.call("c", {"a": 1})
    assert (log.folded.calls["c"].args_text, log.folded.calls["c"].seq) == ('{"a":1}', call - 1)


def test_an_output_that_a_guardrail_stopped_does_not_count_but_its_tools_do() -> None:
    log = Log()
    log.step()
    log.text("kept. ")
    start = log.step()
    log.text("stopped")
    log.call("tool", {"a": 1})
    log.call("output", {"text": "stopped"})
    log.result("tool", 3)
    end = log.result("output", "Final result processed.")
    log.add(
        "tripwire",
        {"reason": "no", "processorId": "g", "void": {"from": start, "to": end}, "withheld": ["output"]},
    )
    assert (log.folded.text, log.folded.steps, list(log.folded.calls)) == ("kept. ", 1, ["tool"])


def test_sources_and_files_of_a_torn_response_do_not_count() -> None:
    log = Log()
    start = log.add("source", {"id": "s", "sourceType": "url", "title": "S", "url": "http://localhost/"})
    end = log.add("file", {"data": "AA==", "mimeType": "image/png"})
    log.add("file", {"data": "AA==", "mimeType": "image/gif"})
    log.step(void=(start, end))
    folder = log.folded
    assert (folder.sources, [file.payload.mime_type for file in folder.files]) == ([], ["image/gif"])


def test_a_tool_error_ends_its_call() -> None:
    log = Log()
    log.call("c")
    log.add("tool-output", {"toolCallId": "c", "output": "halfway"})
    error = {"code": "tool_failed", "message": "The tool failed."}
    log.add("tool-error", {"toolCallId": "c", "toolName": "add", "error": error})
    call = log.folded.calls["c"]
    assert call.error is not None
    assert (call.error.code, call.ended, call.outputs) == ("tool_failed", True, ["halfway"])


def test_the_end_is_told_by_the_final_chunk_with_reason_usage_and_object() -> None:
    log = Log()
    log.step()
    assert not log.folded.final
    log.finish(object={"city": "Paris"})
    folder = log.folded
    assert folder.usage is not None
    assert (folder.final, folder.reason, folder.object) == (True, "stop", {"city": "Paris"})
    assert folder.usage.total_tokens == 3


def test_an_output_that_streams_is_known_in_part_until_it_is_valid_and_begins_anew_with_each_step() -> None:
    log = Log()
    log.step()
    log.add("object", None, object={"city": "Pa"})
    folder = log.folded
    assert (folder.partial, folder.object) == ({"city": "Pa"}, None)
    log.step(void=(1, 2))
    folder = log.folded
    assert folder.partial is None
    log.add("object", None, object={"city": "Par"})
    log.add("object-result", None, object={"city": "Paris"})
    folder = log.folded
    assert (folder.partial, folder.object) == ({"city": "Paris"}, {"city": "Paris"})


def test_an_output_that_a_guardrail_stopped_is_not_known_in_part_either() -> None:
    log = Log()
    log.step()
    log.add("object", None, object={"city": "Pa"})
    log.add("tripwire", {"reason": "no", "processorId": "p", "void": {"from": 1, "to": 2}})
    assert log.folded.partial is None


def test_chunks_of_a_sub_agent_add_up_beside_those_of_who_asks() -> None:
    inner = Log()
    inner.step()
    inner.text("torn")
    inner.step(void=(1, 2))
    inner.text("whole")
    log = Log()
    log.call("c")
    names = {"toolCallId": "c", "toolName": "ask", "taskId": "other"}
    for chunk in inner.chunks:
        log.add("tool-output", {"output": chunk.to_wire(), **names})
    log.add("tool-output", {"output": {"type": "text-delta", "payload": "not as it should be"}, **names})
    log.add("step-output", {"output": {"type": "tomorrow", "seq": 9}, **names})
    log.add("tool-output", {"output": "halfway", "toolCallId": "c"})
    call = log.folded.calls["c"]
    assert call.nested is not None
    assert (call.nested.text, call.nested.last_seq) == ("whole", 9)
    assert (call.outputs, log.folded.text) == (["halfway"], "")


def test_a_chunk_that_comes_twice_counts_once() -> None:
    log = Log()
    log.text("a")
    log.text("b")
    assert fold_text([log.chunks[0], log.chunks[0], *log.chunks]) == "ab"


def test_an_unknown_chunk_is_no_obstacle() -> None:
    log = Log()
    log.text("a")
    log.add("tomorrow", ["anything"])
    log.text("b")
    assert (log.folded.text, log.folded.last_seq) == ("ab", 3)


def test_a_void_range_is_read_from_its_step_only() -> None:
    log = Log()
    log.text("a")
    log.step()
    log.step(void=(1, 2))
    ranges = [void_range(chunk) for chunk in log.chunks]
    assert ranges[:2] == [None, None]
    assert ranges[2] is not None
    assert (ranges[2].from_, ranges[2].to) == (1, 2)


@given(st.lists(st.tuples(st.lists(st.text(max_size=3), max_size=4), st.booleans()), max_size=5))
def test_torn_steps_fold_to_the_same_text_as_if_they_had_never_been(steps: list[tuple[list[str], bool]]) -> None:
    log = Log()
    void: tuple[int, int] | None = None
    for deltas, torn in steps:
        start = log.step(void)
        for delta in deltas:
            log.text(delta)
        void = (start, len(log.chunks)) if torn else None
    log.step(void)
    whole = [delta for deltas, torn in steps if not torn for delta in deltas]
    assert log.folded.text == "".join(whole)
    assert log.folded.steps == 1 + sum(not torn for _, torn in steps)
