"""What all background tasks of a deployment do, as it happens: who comes is told of those that are being executed, and
then of each change. There is no log of it: a reader that is too slow, or that may have missed something, comes to an
end, and begins anew with what is being executed then.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import orjson

from durable.background.tasks import Tasks
from durable.chunks import BackgroundTaskRunning, TaskRunningPayload, encode_body
from durable.chunks.background import TASK_ENDS
from durable.observer import Hub
from durable.store import Store
from durable.views import TaskStatus, TaskView


@dataclass(frozen=True)
class News:
    """Something that became of a task.

    Attributes:
        task_id: The task.
        run_id: The run that has started it.
        agent: The agent that executes it.
        over: Whether the task has ended.
        wire: The chunk as its readers see it: JSON. It has no seq: the feed has no cursor.
    """

    task_id: str
    run_id: str
    agent: str
    over: bool
    wire: bytes


class Feed:
    """Tells what all background tasks do.

    Args:
        store: Where they are.
        hub: What all readers of the process listen with.
        tasks: The tasks.
    """

    def __init__(self, store: Store, hub: Hub, tasks: Tasks) -> None:
        self._channel = store.keys.task_channel
        self._hub = hub
        self._tasks = tasks

    async def pages(
        self, *, agent: str = "", run: str = "", task: str = "", silence: float | None = None
    ) -> AsyncGenerator[list[News]]:
        """What is being executed, and then what changes. Ends after the end of `task`, when something was missed, and
        when the hub dismisses its readers.

        Args:
            agent: Only of this agent.
            run: Only of what this run has started.
            task: Only of this task.
            silence: Seconds without news after which an empty page comes; None for never.

        Raises:
            UnknownRun, RunExpired: There is no such task.
            StoreUnavailable: Redis does not answer.
        """

        def wanted(news: News) -> bool:
            return agent in {"", news.agent} and run in {"", news.run_id} and task in {"", news.task_id}

        async with self._hub.listen(self._channel, read_news) as listener:
            async with aclosing(self._under_way(agent=agent, run=run, task=task)) as found:
                async for views in found:
                    yield [news for news in _running(views) if wanted(news)]
                    if task and all(view.status.ended for view in views):
                        return
            while not (listener.missed or self._hub.dismissed):
                page = [news for message in listener.take() for news in message if wanted(news)]
                if page:
                    yield page
                if task and any(news.over for news in page):
                    return
                if not listener.heard and not await listener.wait(silence):
                    yield []

    async def _under_way(self, *, agent: str, run: str, task: str) -> AsyncGenerator[list[TaskView]]:
        if task:
            yield [await self._tasks.get(task)]
            return
        async with aclosing(self._tasks.running(agent=agent, run=run)) as pages:
            async for views in pages:
                yield views


def read_news(message: bytes) -> Sequence[News]:
    """What one message on the channel of tasks tells: bodies of chunks, joined by newlines."""
    found = []
    for body in message.split(b"\n"):
        chunk = orjson.loads(body)
        payload = chunk["payload"]
        wire = b'{"runId":%b,"from":"AGENT",%b' % (orjson.dumps(payload["runId"]), body[1:])
        over = chunk["type"] in TASK_ENDS
        found.append(News(payload["taskId"], payload["runId"], payload["agentId"], over, wire))
    return found


def _running(views: Sequence[TaskView]) -> list[News]:
    """Those of some tasks that are being executed, as if they had just begun."""
    found: list[News] = []
    for view in views:
        if view.status is not TaskStatus.RUNNING:
            continue
        since = (view.started_at or view.created_at).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        payload = TaskRunningPayload(
            task_id=view.task_id,
            tool_name=view.tool_name,
            tool_call_id=view.tool_call_id,
            run_id=view.run_id,
            agent_id=view.agent,
            started_at=since,
            args=view.args,
        )
        found += read_news(encode_body(BackgroundTaskRunning(payload=payload)))
    return found
