"""What a client asks about background tasks, and tells them.

A task is a run, too: whatever can be asked of a run can be asked of one by its id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from durable.chunks import Chunk
from durable.chunks.base import Json
from durable.client.backoff import Backoff
from durable.client.bodies import beside, given
from durable.client.paths import TASKS, task_path
from durable.client.remote import Remote
from durable.client.subscription import FeedSubscription
from durable.views import TaskPage, TaskStatus, TaskView


class TaskRequests:
    """The methods of a client that are about background tasks.

    Args:
        server: Who is asked.
        retry: How what may be sent again is repeated while nobody answers.
        reconnect: How a stream comes back to a lost server.
    """

    def __init__(self, server: Remote, *, retry: Backoff, reconnect: Backoff) -> None:
        self._server = server
        self._retry = retry
        self._reconnect = reconnect

    async def tasks(
        self,
        *,
        status: TaskStatus | str | None = None,
        agent: str | None = None,
        run_id: str | None = None,
        tool_name: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> TaskPage:
        """Background tasks, newest first, without their results. `run_id`: what this run has started, its sub-agents
        included. `cursor` is the `next` of the page before."""
        params = {
            "status": status,
            "agent": agent,
            "run": run_id,
            "toolName": tool_name,
            "limit": limit,
            "cursor": cursor,
        }
        return await self._server.ask("GET", TASKS, TaskPage, params=params)

    async def task(self, task_id: str) -> TaskView:
        """A background task as it is now, with its result. Its log is that of the run with the same id.

        Raises:
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
        """
        return await self._server.ask("GET", task_path(task_id), TaskView)

    async def cancel_task(self, task_id: str, reason: str | None = None) -> TaskView:
        """End a background task: its run goes on, and the model is told.

        Raises:
            UnknownRun: There is none.
            RunEnded: It ended otherwise before.
        """
        path = f"{task_path(task_id)}/cancel"
        return await self._server.ask("POST", path, TaskView, body=given({"reason": reason}), backoff=self._retry)

    async def resume_task(
        self,
        task_id: str,
        data: Json = None,
        *,
        actor: str | None = None,
        question: str | None = None,
        until_idle: bool | float | None = None,
    ) -> TaskView:
        """Give the one call of a background task that waits its data. Otherwise as `resume`."""
        body = {"data": data, **beside(actor, question, until_idle)}
        return await self._server.ask("POST", f"{task_path(task_id)}/resume", TaskView, body=body, backoff=self._retry)

    def follow_tasks(
        self, *, agent: str | None = None, run_id: str | None = None, task_id: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """Follow all background tasks at once: those that are being executed, each as a `background-task-running`, and
        then what becomes of tasks, as it is written. It ends with the task of `task_id`; else only when its reader
        stops reading.

        The chunks have no `seq`: there is no cursor. A lost connection or server is come back to; then the tasks that
        are being executed are told anew, and what became of tasks meanwhile is not. The log of a run (`observe`) has
        all of it.

        Args:
            agent: Only tasks that this agent executes.
            run_id: Only what this run has started.
            task_id: Only this task, to its end; nothing when it has ended.

        Raises:
            UnknownRun, RunExpired: There is no such task.
            InvalidRequest: What was given can't be a name or an id.
            ServerUnreachable: The server was away for longer than `reconnect` is patient.
        """
        params = {"agent": agent, "run": run_id, "task": task_id}
        wanted = {name: value for name, value in params.items() if value is not None}
        return FeedSubscription(self._server, f"{TASKS}/stream", backoff=self._reconnect, params=wanted).chunks()
