"""What Mastra's client is told of agents, their tools and background tasks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.mastra_client.agents import KINDS
from tests.acceptance.mastra_client.driver import ClientFailed, MastraClient, date, new_id

pytestmark = pytest.mark.timeout(180)


class TestAgents:
    """The agents of the deployment."""

    def test_all_agents_are_listed_with_their_tools(self, roaming: MastraClient) -> None:
        agents = roaming.ask("listAgents")
        assert {f"{kind}-helper" for kind in KINDS} <= set(agents)
        agent = agents[roaming.agent]
        assert (agent["id"], agent["name"]) == (roaming.agent, roaming.agent)
        assert {"add", "refund", "paint", "nap"} <= set(agent["tools"])
        add = agent["tools"]["add"]
        assert (add["id"], add["description"]) == ("add", "Add two numbers.")
        assert set(json.dumps(json.loads(add["inputSchema"]))) >= {"a", "b"}
        assert agent["tools"]["refund"]["requireApproval"] is True

    def test_a_partial_list_leaves_the_schemas_out(self, client: MastraClient) -> None:
        tool = client.ask("listAgents", None, True)[client.agent]["tools"]["add"]
        assert tool["description"] == "Add two numbers."
        assert "inputSchema" not in tool

    def test_the_details_of_an_agent_are_those_of_the_list(self, roaming: MastraClient) -> None:
        details = roaming.call("details")
        listed = roaming.ask("listAgents")[roaming.agent]
        assert {**details, "id": roaming.agent} == listed


class TestTools:
    """The tools of an agent, each by itself."""

    def test_a_tool_is_described(self, client: MastraClient) -> None:
        tool = client.call("getTool", "add")
        assert (tool["id"], tool["description"]) == ("add", "Add two numbers.")
        assert "inputSchema" in tool

    def test_a_tool_is_executed_without_a_conversation(self, roaming: MastraClient) -> None:
        assert roaming.call("executeTool", "add", {"data": {"a": 1, "b": 2}}) == 3
        context = {"data": {}, "requestContext": {"tenant": "acme"}}
        assert json.loads(roaming.call("executeTool", "context", context)) == {"tenant": "acme"}

    @pytest.mark.parametrize(
        ("tool", "data", "status"),
        [
            ("none", {}, {404}),
            ("add", {"a": "x"}, {400, 422}),
            ("explode", {}, {400, 422}),
            ("refund", {"amount": 1}, {409}),
        ],
        ids=["unknown", "bad arguments", "a tool that fails", "a tool to be approved"],
    )
    def test_what_cannot_be_executed_is_refused_once_and_for_all(
        self, client: MastraClient, tool: str, data: dict[str, object], status: set[int]
    ) -> None:
        with pytest.raises(ClientFailed) as failed:
            client.call("executeTool", tool, {"data": data})
        assert failed.value.status in status
        assert isinstance(failed.value.body["error"], str)
        assert "hunter2" not in json.dumps(failed.value.body)


class TestBackgroundTasks:
    """What goes on after a model's turn."""

    def test_a_task_is_followed_listed_and_looked_at(self, roaming: MastraClient) -> None:
        thread = new_id()
        run_id = new_id()
        with roaming.open_client("streamBackgroundTasks", {"runId": run_id}) as followed:
            options = {"runId": run_id, "memory": {"thread": thread, "resource": "alice"}, "untilIdle": True}
            roaming.stream('call nap {"ms": 20}', **options)
            followed.until_type("background-task-completed")
        [running] = followed.of_type("background-task-running")
        [completed] = followed.of_type("background-task-completed")
        assert (running["toolName"], running["agentId"], running["args"]) == ("nap", roaming.agent, {"ms": 20})
        assert (completed["taskId"], completed["result"]) == (running["taskId"], "slept 20")
        task = roaming.ask("getBackgroundTask", completed["taskId"])
        for wanted in (
            {"runId": run_id},
            {"threadId": thread},
            {"runId": run_id, "status": "completed", "toolName": "nap"},
        ):
            listed = roaming.ask("listBackgroundTasks", {"agentId": roaming.agent, **wanted})
            assert listed == {"tasks": [task], "total": 1}
        assert (task["id"], task["status"], task["toolCallId"]) == (completed["taskId"], "completed", "call-0")
        assert (task["runId"], task["threadId"], task["resourceId"]) == (run_id, thread, "alice")
        assert (task["args"], task["result"], task["agentId"]) == ({"ms": 20}, "slept 20", roaming.agent)
        assert datetime.fromisoformat(task["createdAt"]) <= datetime.fromisoformat(task["completedAt"])

    def test_tasks_are_listed_in_pages_and_by_time(self, client: MastraClient) -> None:
        run_id = client.stream('calls nap {"ms": 0}; nap {"ms": 1}; nap {"ms": 2}', untilIdle=True).run_id
        pages = [client.ask("listBackgroundTasks", {"runId": run_id, "perPage": 2, "page": page}) for page in (0, 1)]
        assert [(len(page["tasks"]), page["total"]) for page in pages] == [(2, 3), (1, 3)]
        assert len({task["id"] for page in pages for task in page["tasks"]}) == 3
        later = {"fromDate": date(datetime.now(UTC) + timedelta(hours=1))}
        assert client.ask("listBackgroundTasks", {"runId": run_id, **later}) == {"tasks": [], "total": 0}

    def test_a_task_that_nobody_knows_is_not_found(self, client: MastraClient) -> None:
        with pytest.raises(ClientFailed) as failed:
            client.ask("getBackgroundTask", new_id())
        assert (failed.value.status, failed.value.body) == (404, {"error": "Background task not found"})
