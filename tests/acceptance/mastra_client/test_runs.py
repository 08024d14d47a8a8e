"""What a run gives to Mastra's client, in each flow of its protocol, from the first call to the last chunk."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.acceptance.mastra_client.driver import Call, MastraClient, function_that, new_id

pytestmark = pytest.mark.timeout(180)

ADD = 'call add {"a": 1, "b": 2}'
REFUND = 'call refund {"amount": 5}'
CALL = "call-0"
ALICE = "alice"


def in_thread(thread: str) -> dict[str, Any]:
    """The option that puts a run into a thread of Alice."""
    return {"memory": {"thread": thread, "resource": ALICE}}


def assert_one_list(client: MastraClient, *calls: Call) -> None:
    """What the calls gave one after the other is what an observer gets, from the beginning and from anywhere."""
    chunks = [chunk for call in calls for chunk in call.chunks]
    run_id = chunks[0]["runId"]
    assert client.observe(run_id).chunks == chunks
    assert client.start("recover", {"runId": run_id}).done().chunks == chunks
    for offset in (1, len(chunks) // 2, len(chunks) - 1, len(chunks)):
        assert client.observe(run_id, offset).chunks == chunks[offset:]


class TestText:
    """A run that only says something."""

    def test_an_application_reads_a_run_and_a_second_one_observes_it_as_in_mastras_own_example(
        self, roaming: MastraClient
    ) -> None:
        run_id = new_id()
        first = roaming.stream([{"role": "user", "content": "say one two"}], runId=run_id)
        assert first.types == [
            *["start", "step-start", "text-start", "text-delta", "text-delta", "text-end"],
            *["response-metadata", "step-finish", "finish"],
        ]
        assert {(chunk["runId"], chunk["from"]) for chunk in first.chunks} == {(run_id, "AGENT")}
        assert (first.text, first.reason, first.complaints) == ("one two ", "stop", [])
        assert_one_list(roaming, first)

    def test_a_second_application_follows_a_run_that_goes_on(self, roaming: MastraClient) -> None:
        run_id = new_id()
        first = roaming.begin("slowly 30 one two three four five six", runId=run_id).until_said("two")
        second = roaming.start_observe(run_id)
        third = roaming.start_observe(run_id, 4).until_open()
        chunks = first.done().chunks
        assert (second.done().chunks, third.done().chunks) == (chunks, chunks[4:])
        assert second.text == "one two three four five six "

    def test_a_run_that_fails_says_so_in_its_stream_and_ends_it(self, client: MastraClient) -> None:
        call = client.stream("break one two")
        assert call.text == "one two "
        assert call.types[-2:] == ["error", "finish"]
        assert call.reason == "error"
        assert_one_list(client, call)

    @pytest.mark.parametrize(
        "messages",
        [
            "say it",
            ["say it"],
            [{"role": "user", "content": "say it"}],
            [{"role": "user", "content": [{"type": "text", "text": "say it"}]}],
            [{"id": "m-1", "role": "user", "parts": [{"type": "text", "text": "say it"}]}],
            [{"id": "m-1", "role": "user", "content": "say it", "parts": [{"type": "text", "text": "say it"}]}],
        ],
        ids=["text", "texts", "message", "core parts", "interface parts", "interface message"],
    )
    def test_messages_may_come_in_every_form_that_the_client_takes(self, client: MastraClient, messages: Any) -> None:
        assert client.stream(messages).text == "it "

    def test_a_conversation_given_in_full_is_the_models_history(self, client: MastraClient) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "say one"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "tell"},
        ]
        told = json.loads(client.stream(messages).text)
        assert told["prompts"] == ["say one", "tell"]
        assert "Be brief." in [*told["system"], told["instructions"]]

    def test_files_and_earlier_calls_reach_the_model(self, client: MastraClient) -> None:
        pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        call = {"type": "tool-call", "toolCallId": "c-1", "toolName": "add", "args": {"a": 1, "b": 2}}
        result = {"type": "tool-result", "toolCallId": "c-1", "toolName": "add", "result": 3}
        messages = [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image", "image": pixel, "mimeType": "image/png"},
                ],
            },
            {"role": "assistant", "content": [call]},
            {"role": "tool", "content": [result]},
            {"role": "assistant", "content": [{"type": "text", "text": "3"}]},
            {"role": "user", "content": "tell"},
        ]
        told = json.loads(client.stream(messages).text)
        assert (told["prompts"][0], told["prompts"][-1], told["returns"]) == (["see", "image/png"], "tell", [3])


class TestTools:
    """A run that calls tools of the server."""

    def test_a_tools_call_and_its_result_come_in_one_stream_of_several_steps(self, roaming: MastraClient) -> None:
        call = roaming.stream(ADD)
        assert [kind for kind in call.types if not kind.startswith("text")] == [
            *["start", "step-start", "tool-call-input-streaming-start", "tool-call-delta"],
            *["tool-call-input-streaming-end", "response-metadata", "tool-call", "tool-result", "step-finish"],
            *["step-start", "response-metadata", "step-finish", "finish"],
        ]
        [called], [result] = call.of_type("tool-call"), call.of_type("tool-result")
        assert (called["toolName"], called["args"]) == ("add", {"a": 1, "b": 2})
        assert (result["toolCallId"], result["result"]) == (called["toolCallId"], 3)
        assert (call.text, call.reason, call.complaints) == ("The tool said 3 ", "stop", [])
        assert [step["stepResult"]["isContinued"] for step in call.of_type("step-finish")] == [True, False]
        assert_one_list(roaming, call)

    def test_an_approved_call_goes_on_in_the_approvals_stream(self, roaming: MastraClient) -> None:
        first = roaming.stream(REFUND)
        assert first.types[-1] == "tool-call-approval"
        [asked] = first.of_type("tool-call-approval")
        assert (asked["toolName"], asked["args"]) == ("refund", {"amount": 5})
        assert isinstance(asked["resumeSchema"], str)
        answer = {"runId": first.run_id, "toolCallId": asked["toolCallId"]}
        then = roaming.start("approveToolCall", answer).done()
        assert [result["result"] for result in then.of_type("tool-result")] == ["refunded 5"]
        assert "start" not in then.types
        assert (then.text, then.reason) == ("The tool said refunded 5 ", "stop")
        assert_one_list(roaming, first, then)

    def test_a_declined_call_is_not_made_and_the_model_hears_why(self, roaming: MastraClient) -> None:
        first = roaming.stream(REFUND)
        answer = {"runId": first.run_id, "toolCallId": CALL, "reason": "too much"}
        then = roaming.start("declineToolCall", answer).done()
        assert then.of_type("tool-result") == []
        [denied] = then.of_type("tool-output-denied")
        assert (denied["toolCallId"], denied["toolName"]) == (CALL, "refund")
        assert denied["approval"] == {"id": CALL, "approved": False, "reason": "too much"}
        assert "too much" in then.text
        assert_one_list(roaming, first, then)

    def test_a_tool_that_asks_goes_on_with_what_it_is_told(self, roaming: MastraClient) -> None:
        first = roaming.stream("call paint {}")
        [asked] = first.of_type("tool-call-suspended")
        assert first.types[-1] == "tool-call-suspended"
        assert asked["suspendPayload"] == {"question": "Which colour?"}
        assert "colour" in json.loads(asked["resumeSchema"])["properties"]
        again = roaming.start("resumeStream", {"colour": "tartan"}, {"runId": first.run_id}).done()
        assert again.types[-1] == "tool-call-suspended"
        then = roaming.start("resumeStream", {"colour": "red"}, {"runId": first.run_id, "toolCallId": CALL}).done()
        assert then.text == "The tool said painted red "
        assert_one_list(roaming, first, again, then)

    def test_every_call_waits_for_an_approval_where_the_caller_wants_it(self, client: MastraClient) -> None:
        first = client.stream(ADD, requireToolApproval=True)
        assert first.types[-1] == "tool-call-approval"
        then = client.start("approveToolCall", {"runId": first.run_id, "toolCallId": CALL}).done()
        assert then.text == "The tool said 3 "

    def test_a_run_that_waits_is_observed_across_its_answers(self, roaming: MastraClient) -> None:
        first = roaming.stream('calls refund {"amount": 1}; refund {"amount": 2}')
        observer = roaming.start_observe(first.run_id).until(lambda call: call.types.count("tool-call-approval") == 2)
        one = roaming.start("approveToolCall", {"runId": first.run_id, "toolCallId": "call-0"}).done()
        assert not observer.is_over
        two = roaming.start("declineToolCall", {"runId": first.run_id, "toolCallId": "call-1"}).done()
        assert two.reason == "stop"
        assert observer.done().chunks == roaming.observe(first.run_id).chunks
        assert observer.chunks[: len(first.chunks)] == first.chunks
        assert [chunk for chunk in one.chunks if chunk not in observer.chunks] == []

    def test_maxsteps_ends_a_run_that_would_go_on(self, client: MastraClient) -> None:
        call = client.stream(ADD, maxSteps=1)
        assert (call.text, call.reason) == ("", "tool-calls")


class TestOptions:
    """What a caller may ask of a run."""

    def test_the_model_gets_what_the_caller_asks_for(self, client: MastraClient) -> None:
        usual = json.loads(client.stream("tell").text)
        assert (usual["instructions"], usual["settings"]) == ("Be of help.", {})
        asked = client.stream(
            "tell",
            instructions="Rhyme.",
            modelSettings={"temperature": 0.5, "maxOutputTokens": 99, "topP": 0.9},
            activeTools=["add", "wait"],
            toolChoice="none",
        )
        told = json.loads(asked.text)
        assert told["instructions"] == "Rhyme."
        assert (
            told["settings"].items()
            >= {"temperature": 0.5, "max_tokens": 99, "top_p": 0.9, "tool_choice": "none"}.items()
        )
        assert told["tools"] == ["add", "wait"]

    def test_instructions_and_context_besides_the_agents_own_reach_the_model(self, client: MastraClient) -> None:
        context = [{"role": "user", "content": "It is Tuesday."}]
        told = json.loads(client.stream("tell", system="Be quick.", context=context).text)
        assert "Be quick." in json.dumps([told["instructions"], told["system"]])
        assert told["prompts"] == ["It is Tuesday.", "tell"]

    def test_the_request_context_is_what_tools_are_given(self, client: MastraClient) -> None:
        call = client.stream("call context {}", requestContext={"tenant": "acme"})
        assert json.loads(call.of_type("tool-result")[0]["result"]) == {"tenant": "acme"}

    @pytest.mark.parametrize(
        ("prompt", "native"),
        [('call final_result {"city": "Basel"}', False), ('say {"city":"Basel"}', True)],
        ids=["tool", "prompted"],
    )
    def test_structured_output_comes_as_an_object(self, client: MastraClient, prompt: str, native: bool) -> None:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        form = {"schema": schema, "jsonPromptInjection": True} if native else {"schema": schema}
        call = client.stream(prompt, structuredOutput=form)
        assert call.of_type("finish")[-1]["output"]["object"] == {"city": "Basel"}
        assert [chunk["object"] for chunk in call.chunks if chunk["type"] == "object-result"] == [{"city": "Basel"}]
        assert client.call("generate", prompt, {"structuredOutput": form})["object"] == {"city": "Basel"}


class TestClientTools:
    """Tools that the application itself executes."""

    @pytest.mark.parametrize("named", [False, True], ids=["no run id", "a run id"])
    @pytest.mark.parametrize("thread", [False, True], ids=["no thread", "a thread"])
    def test_a_tool_of_the_application_is_executed_once_and_its_result_told(
        self, roaming: MastraClient, named: bool, thread: bool
    ) -> None:
        options = ({"runId": new_id()} if named else {}) | (in_thread(new_id()) if thread else {})
        messages = [{"role": "user", "content": 'call locate {"city": "Basel"}'}]
        call = roaming.stream(messages, **options, clientTools=locate(returns={"lat": 47.5}))
        assert call.executed == [{"city": "Basel"}]
        [*_, last] = call.of_type("finish")
        assert last["stepResult"]["reason"] == "stop"
        assert call.text == 'The tool said {"lat":47.5} '
        assert call.complaints == []

    def test_a_tool_of_the_application_that_throws_is_told_to_the_model(self, client: MastraClient) -> None:
        call = client.stream(
            [{"role": "user", "content": "call locate {}"}], runId=new_id(), clientTools=locate(throws="no such place")
        )
        assert call.types.count("tool-error") == 1
        assert "no such place" in call.text
        assert call.reason == "stop"

    def test_tools_of_the_application_and_of_the_server_may_be_called_at_once(self, client: MastraClient) -> None:
        prompt = 'calls add {"a": 1, "b": 2}; locate {}; locate {}'
        for options in ({}, {"runId": new_id()}, in_thread(new_id())):
            messages = [{"role": "user", "content": prompt}]
            call = client.stream(messages, **options, clientTools=locate(returns="here"))
            assert len(call.executed) == 2
            assert call.text == "The tool said 3 and here and here "

    def test_several_rounds_follow_each_other_in_one_run(self, client: MastraClient) -> None:
        run_id = new_id()
        options = {"runId": run_id, "clientTools": locate(returns="here")}
        messages = [{"role": "user", "content": "then locate {}; locate {}; locate {}"}]
        call = client.stream(messages, **options)
        assert len(call.executed) == 3
        assert call.reason == "stop"
        # What the client tells of its own tools stands in the place of what the server tells of them.
        observed = client.observe(run_id)
        told_once = ("tool-result", "tool-call-decided")
        assert [chunk for chunk in call.chunks if chunk["type"] not in told_once] == [
            chunk for chunk in observed.chunks if chunk["type"] not in told_once
        ]
        assert len(call.chunks) == len(observed.chunks)
        assert call.complaints == []

    def test_generate_executes_them_as_well(self, client: MastraClient) -> None:
        messages = [{"role": "user", "content": "call locate {}"}]
        for options in ({}, {"runId": new_id()}, in_thread(new_id())):
            call = client.start("generate", messages, {**options, "clientTools": locate(returns="here")})
            assert call.value["text"].strip() == "The tool said here"
            assert call.executed == [{}]

    def test_a_call_that_the_client_does_not_make_is_answered_by_hand(self, client: MastraClient) -> None:
        # It makes no calls in the stream of a tool that was resumed: one that begins with a result is too much for it.
        run_id = new_id()
        first = client.stream("then paint {}; locate {}", runId=run_id, clientTools=locate(returns="here"))
        assert first.types[-1] == "tool-call-suspended"
        then = client.start("resumeStream", {"colour": "red"}, {"runId": run_id}).done()
        assert then.reason == "tool-calls"
        last = client.start("resumeStream", "there", {"runId": run_id, "toolCallId": "call-1"}).done()
        assert last.text == "The tool said there "
        assert_one_list(client, first, then, last)


def locate(**behaviour: Any) -> dict[str, Any]:
    """The application's tool."""
    return {
        "locate": {
            "id": "locate",
            "description": "Find a place.",
            "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}},
            "execute": function_that(**behaviour),
        }
    }


class TestBackground:
    """Tools that go on after the model's turn."""

    NAP = 'call nap {"ms": 20}'

    @pytest.mark.parametrize("method", ["stream", "streamUntilIdle"])
    def test_until_idle_the_stream_goes_on_until_the_model_has_heard_of_the_end(
        self, roaming: MastraClient, method: str
    ) -> None:
        options = {"runId": new_id(), **in_thread(new_id())} | ({"untilIdle": True} if method == "stream" else {})
        call = roaming.start(method, self.NAP, options).done()
        assert call.types.count("background-task-started") == 1
        [completed] = call.of_type("background-task-completed")
        assert completed["result"] == "slept 20"
        assert call.text.endswith("Heard of a task ")
        assert call.types.index("background-task-completed") < len(call.types) - 1 - call.types[::-1].index(
            "text-delta"
        )
        assert_one_list(roaming, call)

    def test_without_it_the_stream_ends_with_the_turn(self, client: MastraClient) -> None:
        call = client.stream('call nap {"ms": 30000}')
        assert "background-task-started" in call.types
        assert call.reason == "stop"

    def test_a_resumed_run_goes_on_until_idle_as_well(self, client: MastraClient) -> None:
        for method, wish in (("resumeStreamUntilIdle", {}), ("resumeStream", {"untilIdle": True})):
            first = client.stream('then paint {}; nap {"ms": 20}')
            then = client.start(method, {"colour": "red"}, {"runId": first.run_id, **wish}).done()
            assert then.text.endswith("Heard of a task ")

    def test_a_bound_on_being_idle_ends_the_stream(self, client: MastraClient) -> None:
        call = client.stream('call nap {"ms": 30000}', untilIdle={"maxIdleMs": 50})
        assert "background-task-completed" not in call.types
        assert call.types[-1] == "finish"


class TestGenerate:
    """Runs that are answered when they are over."""

    def test_the_whole_output_comes_at_once(self, roaming: MastraClient) -> None:
        run_id = new_id()
        output = roaming.call("generate", ADD, {"runId": run_id})
        assert output["text"] == "The tool said 3 "
        assert (output["finishReason"], output["runId"], len(output["steps"])) == ("stop", run_id, 2)
        [called], [result] = output["toolCalls"], output["toolResults"]
        assert called["payload"]["toolName"] == "add"
        assert result["payload"]["result"] == 3
        assert output["usage"]["totalTokens"] > 0
        assert output["response"]["messages"]
        assert roaming.observe(run_id).text == output["text"]

    @pytest.mark.parametrize(
        ("method", "told"), [("approveToolCallGenerate", "refunded 5"), ("declineToolCallGenerate", "too much")]
    )
    def test_a_call_that_waits_is_named_and_answered(self, roaming: MastraClient, method: str, told: str) -> None:
        output = roaming.call("generate", REFUND)
        assert output["finishReason"] == "suspended"
        asked = output["suspendPayload"]
        assert (asked["toolCallId"], asked["toolName"], asked["args"]) == (CALL, "refund", {"amount": 5})
        assert json.loads(output["resumeSchema"])["type"] == "object"
        answer: dict[str, Any] = {"runId": output["runId"], "toolCallId": CALL}
        if method.startswith("decline"):
            answer["reason"] = "too much"
        then = roaming.call(method, answer)
        assert then["finishReason"] == "stop"
        assert told in then["text"]
        assert roaming.call(method, answer) == then


class TestAbort:
    """Who leaves, and who stops a run."""

    def test_leaving_a_stream_leaves_the_run_going(self, roaming: MastraClient) -> None:
        run_id = new_id()
        first = roaming.begin("slowly 30 one two three four five six", runId=run_id).until_said("two")
        first.tell("abort")
        first.until_over()
        rest = roaming.observe(run_id, len(first.chunks))
        assert rest.reason == "stop"
        assert first.text + rest.text == "one two three four five six "

    def test_aborting_a_thread_ends_its_run_with_the_reason_abort(self, roaming: MastraClient) -> None:
        thread = new_id()
        call = roaming.begin("slowly 30 " + "word " * 400, **in_thread(thread)).until_said("word word")
        whose = {"threadId": thread, "resourceId": ALICE}
        assert roaming.call("abortThread", {**whose, "expectedRunId": "another"}) == {"aborted": False}
        assert roaming.call("abortThread", {**whose, "expectedRunId": call.run_id}) == {"aborted": True}
        assert call.done().reason == "abort"
        assert roaming.call("abortThread", whose) == {"aborted": False}
        assert roaming.call("abortThread", {"threadId": new_id()}) == {"aborted": False}
        assert_one_list(roaming, call)
