"""What a run adds to its thread, and what the next one is given of it."""

from __future__ import annotations

import pytest
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_core import from_json

from durable.conversation import Conversation
from durable.threads import UNFINISHED, closed, exchange


def asked(text: str, run_id: str | None = None) -> ModelMessage:
    return ModelRequest(parts=[UserPromptPart(content=text)], run_id=run_id)


def said(text: str, run_id: str | None = None) -> ModelMessage:
    return ModelResponse(parts=[TextPart(content=text)], run_id=run_id)


def called(*ids: str, state: str = "complete", text: str = "") -> ModelMessage:
    parts = [TextPart(content=text)] if text else []
    calls = [ToolCallPart(tool_name="add", args="{}", tool_call_id=call) for call in ids]
    return ModelResponse(parts=[*parts, *calls], state=state)  # type: ignore[arg-type]  # a name of the test's


def returned(*ids: str) -> ModelMessage:
    return ModelRequest(parts=[ToolReturnPart(tool_name="add", content=3, tool_call_id=call) for call in ids])


def told(messages: list[ModelMessage]) -> list[list[str]]:
    """The messages' parts as words."""
    return [
        [
            f"{part.tool_call_id}: {part.content}" if isinstance(part, ToolReturnPart)
            else part.tool_call_id if isinstance(part, ToolCallPart)
            else str(getattr(part, "content", part))
            for part in message.parts
        ]
        for message in messages
    ]  # fmt: skip


def stored(conversation: Conversation, messages: list[ModelMessage]) -> list[str]:
    """The texts of what is stored."""
    value = from_json(exchange("r", conversation, messages, whole=True))
    return [part["content"] for message in value["messages"] for part in message["parts"]]


class TestClosed:
    """A history without open ends."""

    def test_what_is_whole_stays_as_it_is(self) -> None:
        messages = [asked("a"), called("c1", "c2"), returned("c1", "c2"), said("b")]
        assert closed(messages) == messages
        assert closed(closed(messages)) == messages

    def test_a_call_without_a_result_has_one_that_says_so(self) -> None:
        alone = closed([asked("a"), called("c1")])
        assert told(alone) == [["a"], ["c1"], [f"c1: {UNFINISHED}"]]
        some = closed([asked("a"), called("c1", "c2"), returned("c2"), said("b")])
        assert told(some) == [["a"], ["c1", "c2"], [f"c1: {UNFINISHED}", "c2: 3"], ["b"]]
        followed = closed([asked("a"), called("c1"), asked("next")])
        assert told(followed) == [["a"], ["c1"], [f"c1: {UNFINISHED}", "next"]]
        twice = closed([asked("a"), called("c1"), said("b")])
        assert told(twice) == [["a"], ["c1"], [f"c1: {UNFINISHED}"], ["b"]]
        assert closed(some) == some

    def test_results_that_came_in_a_later_run_count_and_are_told_together(self) -> None:
        later = closed([asked("a"), called("c1", "c2", "c3"), returned("c2"), returned("c1"), said("b")])
        assert told(later) == [["a"], ["c1", "c2", "c3"], [f"c3: {UNFINISHED}", "c2: 3", "c1: 3"], ["b"]]
        whole = closed([asked("a"), called("c1", "c2"), returned("c2"), returned("c1")])
        assert told(whole) == [["a"], ["c1", "c2"], ["c2: 3", "c1: 3"]]

    def test_it_is_the_same_at_every_reading(self) -> None:
        messages = [asked("a"), called("c1")]
        assert closed(messages) == closed(messages)

    def test_calls_of_a_response_that_was_cut_off_are_left_out(self) -> None:
        assert told(closed([asked("a"), called("c1", state="interrupted", text="I wi")])) == [["a"], ["I wi"]]
        assert told(closed([asked("a"), called("c1", state="interrupted")])) == [["a"]]


class TestExchange:
    """What a run adds."""

    def test_it_is_what_comes_after_the_history(self) -> None:
        history = [asked("a"), said("b")]
        conversation = Conversation("c", history, None, inherited=2)
        assert stored(conversation, [*history, asked("c"), said("d")]) == ["c", "d"]

    def test_what_came_with_the_request_belongs_to_it(self) -> None:
        history = [asked("a"), said("b"), asked("given"), said("too")]
        conversation = Conversation("c", history, None, inherited=2)
        assert stored(conversation, [*history, asked("c"), said("d")]) == ["given", "too", "c", "d"]

    def test_a_history_that_was_rewritten_is_told_by_the_marks_of_its_runs(self) -> None:
        history = [asked("a", "r1.1"), said("b", "r1.1")]
        conversation = Conversation("c", history, None, inherited=2)
        own = [asked("c", "r2.1"), said("d", "r2.2")]
        assert stored(conversation, [asked("in short: a, b"), *own]) == ["c", "d"]
        assert stored(conversation, own) == ["c", "d"]
        resumed = Conversation(None, [*history, asked("given"), asked("c")], None, inherited=2)
        assert stored(resumed, own) == ["given", "c", "d"]

    def test_a_run_without_an_answer_or_that_failed_adds_nothing(self) -> None:
        conversation = Conversation("a", [], None)
        assert exchange("r", conversation, [asked("a")], whole=True) == b""
        assert exchange("r", conversation, [], whole=True) == b""
        assert exchange("r", conversation, [asked("a"), said("b")], whole=False) == b""

    @pytest.mark.parametrize("text", ["\ud83d", "line\nline\u2028", '"quoted"', "\x00"])
    def test_any_text_can_be_stored(self, text: str) -> None:
        found = stored(Conversation("a", [], None), [asked("a"), said(text)])
        assert found == ["a", text.encode("utf-8", "replace").decode()]
