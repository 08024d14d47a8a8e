"""Bare Celery, beside which background tasks are measured: workers of its own, the same broker, the same bodies.

`python -m benchmarks.bare NAME THREADS` starts one.
"""

from __future__ import annotations

import sys
from typing import Final

from celery import Celery

from benchmarks.bodies import note, work
from durable.settings import Settings

QUEUE: Final = "bare"
NOTE: Final = "bare.note"
WORK: Final = "bare.work"


def bare(broker_url: str) -> Celery:
    """Celery as it comes, but for results, which nobody reads, and a prefetch that lets no worker hold what another
    could do: a worker's app, and a producer's."""
    found = Celery("bare", broker=broker_url, set_as_current=False)
    found.conf.update(
        task_ignore_result=True,
        task_default_queue=QUEUE,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    found.task(name=NOTE)(note)
    found.task(name=WORK)(work)
    return found


def main() -> None:
    """Be a worker with so many threads: `python -m benchmarks.bare NAME THREADS`."""
    name, threads = sys.argv[1:]
    options = ["--pool", "threads", "--concurrency", threads, "--hostname", f"{name}@bench", "--loglevel", "warning"]
    bare(Settings().celery_broker_url).worker_main(["worker", *options, "--without-mingle", "--without-gossip"])


if __name__ == "__main__":
    main()
