from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import (
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    RetryFeedbackPart,
    RetryInfo,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from durable.transcripts import folded
from durable.views import MessagePage


def wire(*messages: ModelMessage) -> list[dict[str, Any]]:
    page = MessagePage(messages=folded(messages)).model_dump(mode="json", by_alias=True)
    found: list[dict[str, Any]] = page["messages"]
    return found


def test_prompts_answers_and_tools_have_roles_of_their_own() -> None:
    assert wire(
        ModelRequest(parts=[SystemPromptPart("Be kind."), UserPromptPart("Hello")]),
        ModelResponse(
            parts=[ThinkingPart("Hm"), TextPart("Let me "), TextPart("see."), ToolCallPart("add", '{"a":1}', "c1")]
        ),
        ModelRequest(parts=[ToolReturnPart("add", 3, "c1"), UserPromptPart("Go on")]),
        ModelResponse(parts=[TextPart("3")]),
    ) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "toolCalls": [{"toolCallId": "c1", "toolName": "add", "args": {"a": 1}}],
        },
        {"role": "tool", "content": "", "toolResults": [{"toolCallId": "c1", "toolName": "add", "result": 3}]},
        {"role": "user", "content": "Go on"},
        {"role": "assistant", "content": "3"},
    ]


@pytest.mark.parametrize("outcome", ["failed", "denied", "retried"])
def test_a_call_without_a_result_has_its_error(outcome: Any) -> None:
    [message] = wire(ModelRequest(parts=[ToolReturnPart("add", "No.", "c1", outcome=outcome)]))
    code = {"failed": "tool_failed", "denied": "tool_denied", "retried": "tool_retry"}[outcome]
    assert message["toolResults"] == [
        {"toolCallId": "c1", "toolName": "add", "error": {"code": code, "message": "No."}}
    ]


def test_the_providers_own_tools_are_told_with_the_answer() -> None:
    said, returned = wire(
        ModelResponse(
            parts=[
                NativeToolCallPart("web_search", {"q": "x"}, "n1"),
                NativeToolReturnPart("web_search", ["y"], "n1"),
                TextPart("Found."),
            ]
        )
    )
    assert said["content"] == "Found."
    assert said["toolCalls"][0]["providerExecuted"] is True
    assert returned["toolResults"] == [
        {"toolCallId": "n1", "toolName": "web_search", "providerExecuted": True, "result": ["y"]}
    ]


def test_more_than_text_is_a_list() -> None:
    [several, mixed] = wire(
        ModelRequest(parts=[UserPromptPart(["one", "two"]), UserPromptPart(["look", ImageUrl("https://x.test/a.png")])])
    )
    assert several["content"] == "one\ntwo"
    assert mixed["content"][0] == {"type": "text", "text": "look"}
    assert mixed["content"][1]["url"] == "https://x.test/a.png"


def test_what_the_framework_tells_the_model_is_not_the_users() -> None:
    feedback = RetryFeedbackPart("Again.", retry=RetryInfo(cause="model_retry"))
    [message] = wire(ModelRequest(parts=[feedback]))
    assert message["role"] == "system"
    assert "Again." in message["content"]


def test_a_response_without_words_and_calls_is_left_out() -> None:
    assert wire(ModelResponse(parts=[ThinkingPart("Hm")])) == []
