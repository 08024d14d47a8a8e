"""What Mastra's protocol says, as the request of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pydantic_ai
import pydantic_ai.models
import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter

from api.mastra.bodies import CLIENT_TOOL_SECONDS, Asked, read_execution
from api.mastra.messages import read_messages, system_texts, tool_results
from api.mastra.options import PROVIDERS, SETTINGS
from api.mastra.outcome import _messages
from api.mastra.problems import Refused
from durable.conversation import read_conversation

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def asked(messages: Any = "hello", **fields: Any) -> Asked:
    return read_execution({"messages": messages, **fields})


def terms(**fields: Any) -> dict[str, Any]:
    """What a body asks for beside the prompt."""
    found = asked(**fields).request.model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in found.items() if name != "prompt"}


def refused(**fields: Any) -> list[str]:
    """The fields that a body is refused for."""
    with pytest.raises(Refused) as caught:
        asked(**fields)
    assert caught.value.status == 400
    return [issue["field"] for issue in caught.value.issues]


def parts(*messages: Any) -> list[tuple[str, str, Any]]:
    """Messages as Pydantic AI has them: side, kind and content of each part."""
    found = read_messages(list(messages))
    ModelMessagesTypeAdapter.validate_python(found)
    return [
        (message["kind"], part["part_kind"], part.get("content", part.get("args")))
        for message in found
        for part in message["parts"]
    ]


@pytest.mark.parametrize(
    ("given", "request_fields"),
    [
        ({"maxSteps": 3}, {"max_steps": 3}),
        ({"requireToolApproval": True}, {"require_tool_approval": True}),
        ({"requireToolApproval": False}, {}),
        ({"instructions": ["Be brief.", {"role": "system", "content": "Be kind."}]},
         {"instructions": "Be brief.\n\nBe kind."}),
        ({"activeTools": ["add"]}, {"active_tools": ["add"]}),
        ({"activeTools": []}, {"active_tools": []}),
        ({"modelSettings": {"temperature": 0, "maxOutputTokens": 9, "stopSequences": ["x"], "maxRetries": 2}},
         {"model_settings": {"temperature": 0, "max_tokens": 9, "stop_sequences": ["x"]}, "retries": 2}),
        ({"toolChoice": "none", "modelSettings": {"topP": 1}}, {"model_settings": {"top_p": 1, "tool_choice": "none"}}),
        ({"toolChoice": {"type": "tool", "toolName": "add"}}, {"model_settings": {"tool_choice": ["add"]}}),
        ({"providerOptions": {"anthropic": {"thinking": {"type": "enabled", "budgetTokens": 2048}}}},
         {"model_settings": {"anthropic_thinking": {"type": "enabled", "budget_tokens": 2048}}}),
        ({"providerOptions": {"openai": {"reasoningEffort": "low", "parallelToolCalls": False}}},
         {"model_settings": {"openai_reasoning_effort": "low", "parallel_tool_calls": False}}),
        ({"structuredOutput": {"schema": SCHEMA}}, {"output_schema": SCHEMA}),
        ({"structuredOutput": {"schema": SCHEMA, "jsonPromptInjection": True, "errorStrategy": "strict"}},
         {"output_schema": SCHEMA, "output_mode": "prompted"}),
        ({"requestContext": {"tenant": "a"}}, {"deps": {"tenant": "a"}}),
        ({"memory": {"thread": {"id": "t"}, "resource": "r"}}, {"thread_id": "t", "resource_id": "r"}),
        ({"untilIdle": True}, {"max_idle": 300.0}),
        ({"untilIdle": {"maxIdleMs": 1500}}, {"max_idle": 1.5}),
        ({"maxIdleMs": 500}, {"max_idle": 0.5}),
        ({"untilIdle": False, "abortSignal": {}, "scorers": {}}, {}),
    ],
)  # fmt: skip
def test_each_field_is_a_field_of_the_request(given: dict[str, Any], request_fields: dict[str, Any]) -> None:
    assert terms(**given) == request_fields


def test_a_clients_tools_end_the_run_unless_the_caller_can_come_back_to_it() -> None:
    tools = {"look": {"id": "look", "description": "Look.", "inputSchema": SCHEMA, "outputSchema": {}}, "plain": {}}
    told = [
        {"name": "look", "description": "Look.", "parameters": SCHEMA},
        {"name": "plain", "parameters": {"type": "object", "properties": {}}},
    ]
    assert terms(clientTools=tools) == {"client_tools": told, "on_client_tools": "end"}
    waits = {"on_client_tools": "suspend", "client_tool_seconds": CLIENT_TOOL_SECONDS}
    assert terms(clientTools=tools, runId="r") == {"client_tools": told, **waits}
    assert terms(clientTools={}) == {}


def test_settings_are_ones_that_models_have() -> None:
    # Of the sources: not every provider's own library is installed here.
    sources = [
        Path(pydantic_ai.__file__).parent / "settings.py",
        *Path(pydantic_ai.models.__file__).parent.rglob("*.py"),
    ]
    known = {name for path in sources for name in re.findall(r"^    (\w+): ", path.read_text("utf-8"), re.MULTILINE)}
    named = {*SETTINGS.values(), *(name for names in PROVIDERS.values() for name in names.values())}
    assert named - known == set()


def test_one_text_of_the_user_is_a_prompt_and_all_else_messages() -> None:
    assert asked("hello").request.prompt == "hello"
    assert asked([{"role": "user", "content": [{"type": "text", "text": "hello"}]}]).request.prompt == "hello"
    image = {"type": "image", "image": "https://example.com/a.png"}
    seen = asked([{"role": "user", "content": ["look", image]}]).request.prompt
    assert seen == ["look", {"kind": "image-url", "url": "https://example.com/a.png"}]
    both = asked([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]).request
    assert [part["content"] for part in (both.messages or [])[0]["parts"]] == ["a", "b"]
    framed = asked("hello", system="Be brief.", context=[{"role": "assistant", "content": "Hi."}]).request
    assert [message["kind"] for message in framed.messages or []] == ["request", "response", "request"]


def test_equal_bodies_are_equal_requests_whenever_they_are_read() -> None:
    said = [
        {"role": "user", "content": "a", "createdAt": "2026-11-24T08:00:00Z"},
        {"role": "assistant", "content": "b"},
    ]
    said.append({"role": "user", "content": "c"})
    first, second = (asked(said).request for _ in range(2))
    read_conversation(first)
    assert first.digest("agent", None) == second.digest("agent", None)


CALL = {"toolCallId": "c1", "toolName": "add", "args": {"a": 1}}
MADE = ("response", "tool-call", {"a": 1})
RETURNED = ("request", "tool-return", 2)


@pytest.mark.parametrize(
    ("messages", "as_parts"),
    [
        ([{"role": "assistant", "content": [{"type": "text", "text": "t"}, {"type": "tool-call", **CALL}]},
          {"role": "tool", "content": [{"type": "tool-result", **CALL, "result": 2}]}],
         [("response", "text", "t"), MADE, RETURNED]),
        ([{"role": "tool", "content": [{"type": "tool-result", **CALL, "output": {"type": "json", "value": 2}}]}],
         [RETURNED]),
        ([{"role": "tool", "content": [{"type": "tool-result", **CALL, "result": {"long": 1}, "providerOptions": {
            "mastra": {"modelOutput": {"type": "text", "value": 2}}}}]}],
         [RETURNED]),
        # An interface's own message: a call with its result, then what the model said of it.
        ([{"role": "assistant", "content": "u", "parts": [
            {"type": "step-start"},
            {"type": "tool-invocation", "toolInvocation": {**CALL, "state": "result", "result": 2}},
            {"type": "step-start"}, {"type": "text", "text": "u"}], "toolInvocations": [CALL]}],
         [MADE, RETURNED, ("response", "text", "u")]),
        ([{"role": "assistant", "parts": [
            {"type": "tool-add", "toolCallId": "c1", "state": "output-available", "input": {"a": 1}, "output": 2},
            {"type": "dynamic-tool", "toolName": "add", "toolCallId": "c2", "state": "input-available",
             "input": {"a": 1}},
            {"type": "source-url", "url": "https://example.com"}, {"type": "data-x", "data": 1}]}],
         [MADE, MADE, RETURNED]),
        # As the other system stores it.
        ([{"role": "assistant", "content": {"format": 2, "parts": [{"type": "text", "text": "t"}], "content": "t"}}],
         [("response", "text", "t")]),
        ([{"role": "assistant", "content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "t"}]}],
         [("response", "thinking", "hm"), ("response", "text", "t")]),
        ([{"role": "user", "content": [{"type": "file", "data": "data:application/pdf;base64,aGk=", "filename": "a"}]}],
         [("request", "user-prompt", [{"kind": "binary", "data": "aGk=", "media_type": "application/pdf"}])]),
        ([{"role": "user", "content": [{"type": "file", "data": "https://e.com/a.mp3", "mediaType": "audio/mpeg"}]}],
         [("request", "user-prompt",
           [{"kind": "audio-url", "url": "https://e.com/a.mp3", "media_type": "audio/mpeg"}])]),
    ],
)  # fmt: skip
def test_messages_of_each_form_are_read(messages: list[Any], as_parts: list[tuple[str, str, Any]]) -> None:
    assert parts(*messages) == as_parts


def test_what_generate_tells_of_a_turn_is_read_again_as_that_turn() -> None:
    call = {"toolCallId": "c1", "toolName": "add", "args": {"a": 1}}
    step = {"text": "t", "toolCalls": [call], "toolResults": [{**call, "result": 2}]}
    assert parts(*_messages(step)) == [("response", "text", "t"), MADE, RETURNED]


def test_results_of_the_callers_tools_are_those_of_the_last_message() -> None:
    result = {"role": "tool", "content": [{"type": "tool-result", **CALL, "result": 2}]}
    assert tool_results([{"role": "user", "content": "a"}, result]) == [("c1", 2)]
    assert tool_results([result, {"role": "user", "content": "a"}]) == []
    assert tool_results("hello") == []
    in_thread = asked([{"role": "assistant", "content": "x"}, result], memory={"thread": "t"})
    assert [message["kind"] for message in in_thread.request.messages or []] == ["request"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["messages.0.content.0"]),
        ({"messages": [{"role": "tool", "content": [{"type": "text", "text": "x"}]}]}, ["messages.0.content.0.type"]),
        ({"messages": [{"role": "tool", "content": [{"type": "tool-result"}]}]}, ["messages.0.content.0"]),
        ({"messages": [{"role": "user", "content": "x", "providerOptions": {"a": 1}}]}, ["messages.0.providerOptions"]),
        ({"messages": [{"role": "user", "content": 7}]}, ["messages.0.content"]),
        ({"messages": " "}, ["messages"]),
        ({"system": 7}, ["system"]),
        ({"instructions": {"role": "user", "content": "x"}}, ["instructions"]),
        ({"modelSettings": {"maxRetries": "x"}}, ["modelSettings.maxRetries"]),
        ({"structuredOutput": {"schema": "x"}}, ["structuredOutput.schema"]),
        ({"structuredOutput": {"schema": SCHEMA, "errorStrategy": "fallback"}}, ["structuredOutput.errorStrategy"]),
        ({"clientTools": []}, ["clientTools"]),
        ({"untilIdle": 3}, ["untilIdle"]),
        ({"memory": {"thread": {"id": "t", "title": "x"}}}, ["memory.thread.title"]),
        ({"memory": {"thread": "t", "readOnly": True}}, ["memory.readOnly"]),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(fields: dict[str, Any], named: list[str]) -> None:
    assert refused(**fields) == named


def test_instructions_may_be_texts_or_system_messages() -> None:
    assert system_texts(["a", {"role": "system", "content": "b"}, " "], "system") == ["a", "b"]
    assert system_texts(None, "system") == []


def test_a_body_that_repeats_the_terms_of_a_run_does_not_differ_from_it() -> None:
    fields: dict[str, Any] = {"maxSteps": 3, "modelSettings": {"temperature": 0}, "memory": {"thread": "t"}}
    begun = asked("hello", **fields).request
    assert asked("bye", **fields).differing(begun) == []
    assert asked("bye", **{**fields, "maxSteps": 4, "toolChoice": "none"}).differing(begun) == [
        "maxSteps",
        "modelSettings",
    ]
    assert asked("bye").differing(begun) == []
