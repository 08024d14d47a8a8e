"""Sending the wake-up of a run: a hint that it is time to claim it. It carries the run's id and nothing else.

A lost or doubled wake-up does no harm: what is true stands in the store. This is the one module of the package that
knows Celery, and only as a producer that sends a task by its name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from celery import Celery
from celery.app.amqp import AMQP
from kombu.exceptions import OperationalError

from durable.runs import WAKE_GRACE, RunRecord

log = logging.getLogger(__name__)

EXECUTE: Final = "durable.execute"
"""The name of the Celery task that executes a run."""
NEW: Final = 6
AGAIN: Final = 0
"""Celery priorities (0 is served first): runs that were begun before go ahead of new ones."""
PATIENCE: Final = 1.0
"""Seconds that whoever asks for a run is held by a broker that does not answer."""
SENDERS: Final = 8
"""Threads that send messages; fewer than the connections of Celery's pool."""


class Dispatcher(Protocol):
    """Wakes somebody who executes the run."""

    async def dispatch(self, record: RunRecord) -> None:
        """Send the wake-up. A failure is logged, not raised: the wake-up is repeated later."""


class InProcessDispatcher:
    """Executes runs in this process, as tasks of their own: nobody who asked for a run holds it.

    Args:
        execute: Executes a run, by its id.
        concurrency: Runs at a time, at most. The others wait, queued.
    """

    def __init__(self, execute: Callable[[str], Awaitable[Any]], concurrency: int) -> None:
        self._execute = execute
        self._free = asyncio.Semaphore(concurrency)
        self._waiting: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def dispatch(self, record: RunRecord) -> None:
        """Execute the run as soon as there is a place for it."""
        if record.run_id in self._waiting:
            return  # the wake-up of a run that waits is repeated again and again
        self._waiting.add(record.run_id)
        task = asyncio.get_running_loop().create_task(self._run(record.run_id), name=f"execute-{record.run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, run_id: str) -> None:
        try:
            async with self._place(run_id):
                await self._execute(run_id)
        except Exception as error:  # noqa: BLE001 - nobody awaits this task; the run is still in the store
            log.warning("run %s could not be executed: %s", run_id, type(error).__name__)

    @asynccontextmanager
    async def _place(self, run_id: str) -> AsyncIterator[None]:
        try:
            await self._free.acquire()
        finally:
            self._waiting.discard(run_id)
        try:
            yield
        finally:
            self._free.release()


class CeleryDispatcher:
    """Sends the wake-up to the Celery queue of the run's agent, from threads of its own: Celery's producer blocks.

    Args:
        broker_url: Celery's broker.
    """

    def __init__(self, broker_url: str) -> None:
        self._app = producer(broker_url)
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="wake-up")

    async def dispatch(self, record: RunRecord) -> None:
        """Send the message. After `PATIENCE` seconds it is not waited for any more: it may still go out, and is
        repeated if it does not."""
        overdue = time.monotonic() + WAKE_GRACE
        sending = asyncio.get_running_loop().run_in_executor(self._senders, self._try_to_send, record, overdue)
        try:
            await asyncio.wait_for(asyncio.shield(sending), PATIENCE)
        except TimeoutError:
            log.warning("run %s: the broker is slow to take its wake-up", record.run_id)

    async def open(self) -> None:
        """Connect ahead of the first wake-up, so that it takes no longer than others. A broker that is away is met
        again when there is something to send."""
        try:
            async with asyncio.timeout(2):
                await asyncio.get_running_loop().run_in_executor(self._senders, self._connect)
        except (OperationalError, OSError, TimeoutError) as error:
            log.warning("the broker does not answer yet: %s", type(error).__name__)

    def close(self) -> None:
        """Close the connections to the broker. A thread that waits for it is not waited for."""
        self._senders.shutdown(wait=False, cancel_futures=True)
        self._app.close()

    def _connect(self) -> None:
        with self._app.producer_or_acquire() as pooled:
            pooled.connection.ensure_connection(max_retries=1)

    def _try_to_send(self, record: RunRecord, overdue: float) -> None:
        """Send the message, unless it has waited for a thread until it is repeated anyway: what piles up while the
        broker hangs would be sent for long after."""
        if time.monotonic() > overdue:
            return
        try:
            self._send(record)
        except (OperationalError, OSError) as error:
            log.warning("run %s: its wake-up was not sent: %s", record.run_id, type(error).__name__)

    def _send(self, record: RunRecord) -> None:
        again = record.token > 0
        self._app.send_task(
            EXECUTE,
            args=[record.run_id],
            task_id=f"{record.run_id}.{record.token + 1}" if again else record.run_id,
            queue=record.queue,
            priority=AGAIN if again else NEW,
            shadow=f"agent:{record.agent}",
            ignore_result=True,
            retry=True,
            retry_policy={"max_retries": 1, "interval_start": 0.05},
        )


class _Messages(AMQP):
    """Celery's messages, with one name for a run in all of its events.

    The event of a message that was sent has the task's name, while those of the worker have the shadow's. The sender's
    may come last, and monitors show the last one.
    """

    def as_task_v2(self, *args: Any, **options: Any) -> Any:
        message: Any = super().as_task_v2(*args, **options)
        if message.sent_event and message.headers["shadow"]:
            message.sent_event["name"] = message.headers["shadow"]
        return message


def producer(broker_url: str) -> Celery:
    """A Celery app that sends wake-ups. Workers use the same settings."""
    app = Celery("durable", broker=broker_url, amqp=_Messages, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_send_sent_event=True,
        task_default_queue="durable",
        task_create_missing_queues=True,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"priority_steps": [AGAIN, NEW], "socket_connect_timeout": 2, "socket_timeout": 5},
    )
    return app
