"""What this server refuses, in the words that Mastra's client reads, and so that it does not ask again."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.acceptance.faulty_proxy import FaultyProxy
from tests.acceptance.mastra_client.driver import ClientFailed, MastraClient, new_id

pytestmark = pytest.mark.timeout(180)

REFUND = 'call refund {"amount": 5}'
CALL = "call-0"
AGENT_METHODS: dict[str, list[Any]] = {
    "activateVersion": ["v"],
    "browserSession": [],
    "clone": [],
    "closeBrowser": [],
    "compareVersions": ["v", "w"],
    "createVersion": [],
    "deleteVersion": ["v"],
    "enhanceInstructions": ["be kind", "kinder"],
    "generateLegacy": [{"messages": "say x"}],
    "getVersion": ["v"],
    "listVersions": [],
    "network": ["say x", {}],
    "readPlan": ["plan.md"],
    "reorderModelList": [{"reorderedModelIds": []}],
    "resetModel": [],
    "restoreVersion": ["v"],
    "streamLegacy": [{"messages": "say x"}],
    "updateModel": [{"modelId": "m", "provider": "p"}],
    "updateModelInModelList": [{"modelConfigId": "m"}],
    "approveNetworkToolCall": [{"runId": "r"}],
    "declineNetworkToolCall": [{"runId": "r"}],
}
"""Methods of an agent that ask for what this system has not."""
CLIENT_METHODS: dict[str, list[Any]] = {
    "listWorkflows": [],
    "listMemoryThreads": [{"resourceId": "a", "agentId": "b"}],
    "listScorers": [],
    "listSchedules": [],
}
"""And of the client."""


def test_what_this_system_has_not_is_not_found_and_said_once(client: MastraClient) -> None:
    port = urlsplit(client.servers[0]).port
    assert port is not None
    with FaultyProxy(port) as proxy:
        counted = client.at(proxy.url)
        calls = [(method, counted.start(method, *args)) for method, args in AGENT_METHODS.items()]
        calls += [(method, counted.start_client(method, *args)) for method, args in CLIENT_METHODS.items()]
        for method, call in calls:
            with pytest.raises(ClientFailed) as failed:
                call.done()
            assert (method, failed.value.status) == (method, 404)
            assert isinstance(failed.value.body["error"], str), method
        assert len(proxy.requests) == len(calls)


def test_nothing_that_fails_for_good_is_asked_for_again(client: MastraClient) -> None:
    known = client.stream(REFUND)
    unknown = {"runId": new_id(), "toolCallId": CALL}
    refused: list[tuple[str, tuple[Any, ...], int]] = [
        ("observe", ({"runId": new_id()},), 404),
        ("recover", ({"runId": new_id()},), 404),
        ("approveToolCall", (unknown,), 404),
        ("declineToolCall", (unknown,), 404),
        ("approveToolCallGenerate", (unknown,), 404),
        ("declineToolCallGenerate", (unknown,), 404),
        ("approveToolCall", ({"runId": known.run_id, "toolCallId": "another"},), 404),
        ("resumeStream", ({}, {"runId": new_id()}), 404),
        ("resumeStreamUntilIdle", ({}, {"runId": new_id()}), 404),
        ("stream", ("say x", {"runId": known.run_id}), 409),
        ("generate", ("fail",), 422),
        ("stream", ("say x", {"toolsets": {"some": {"tool": {}}}}), 400),
        ("stream", ("say x", {"noSuchField": 1}), 400),
        ("generate", ("say x", {"returnScorerData": True}), 400),
        ("sendMessage", ({"message": "x", "runId": new_id()},), 404),
        ("sendToolApproval", ({"resourceId": "a", "threadId": new_id(), "toolCallId": "x", "approved": True},), 404),
    ]
    port = urlsplit(client.servers[0]).port
    assert port is not None
    with FaultyProxy(port) as proxy:
        counted = client.at(proxy.url)
        for number, (method, args, status) in enumerate(refused):
            with pytest.raises(ClientFailed) as failed:
                counted.start(method, *args).done()
            assert (method, failed.value.status) == (method, status)
            assert isinstance(failed.value.body["error"], str)
            assert len(proxy.requests) == number + 1, f"{method} was asked for again"
        for method in ("stream", "generate", "observe", "details"):
            with pytest.raises(ClientFailed) as failed:
                counted.at(agent="nobody").start(
                    method, {"runId": known.run_id} if method == "observe" else "hi"
                ).done()
            assert failed.value.status == 404


def test_a_refused_field_is_named(client: MastraClient) -> None:
    with pytest.raises(ClientFailed) as failed:
        client.stream("say x", toolsets={"some": {"tool": {}}})
    assert [issue["field"] for issue in failed.value.body["issues"]] == ["toolsets"]
    assert all(issue["message"] for issue in failed.value.body["issues"])
