from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer

from durable.dispatch import EXECUTE
from durable.execution import Outcome
from worker.tasks import register


class Host:
    """Whose runs end in one way."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def execute(self, run_id: str) -> Outcome:  # noqa: ARG002  as hosts have it
        return self._outcome


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
def test_a_run_that_did_not_complete_is_not_said_to_be_ignored(
    outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    app: Any = Celery("log", broker="memory://", set_as_current=False)
    register(app, lambda: Host(outcome))
    trace = build_tracer(EXECUTE, app.tasks[EXECUTE], app=app)
    with caplog.at_level(logging.INFO, "celery.app.trace"):
        trace("run-1", ["run-1"], {}, {"id": "run-1"})
    app.close()
    [message] = [record.getMessage() for record in caplog.records if record.name == "celery.app.trace"]
    assert message == f"Task {EXECUTE}[run-1] ended: its run did not complete"
