"""Where to go from here: paths of what can be asked of a run, or of a call of it."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote

from durable.decisions import verbs_of
from durable.runs import BUDGET_REACHED
from durable.views import PendingCall, RunStatus, RunView, TaskView

AnyCall = TypeVar("AnyCall", bound=PendingCall)


def linked(view: RunView) -> RunView:
    """A run with its links. Only one that can be retried, or resumed, has that link; a call that waits has its own.
    What comes of a retry of a run that another has started would not reach that one."""
    path = _run(view.run_id)
    names = ["chunks", "messages", "diagnosis", "cancel"]
    if view.status in {RunStatus.FAILED, RunStatus.CANCELLED} and view.parent_run_id is None:
        names.append("retry")
    if view.status is RunStatus.SUSPENDED and view.reason == BUDGET_REACHED:
        names.append("resume")
    links = {"self": path, **{name: f"{path}/{name}" for name in names}}
    pending = view.pending and [with_call_links(call, call.run_id or view.run_id) for call in view.pending]
    return view.model_copy(update={"links": links, "pending": pending})


def linked_task(view: TaskView) -> TaskView:
    """A background task with its links; a call of it that waits has its own."""
    path, run = f"/v1/background-tasks/{view.task_id}", _run(view.task_id)
    links = {"self": path, "cancel": f"{path}/cancel", "chunks": f"{run}/chunks", "run": _run(view.run_id)}
    pending = view.pending and [with_call_links(call, view.task_id) for call in view.pending]
    return view.model_copy(update={"links": links, "pending": pending})


def with_call_links(call: AnyCall, run_id: str) -> AnyCall:
    """A call that waits with a link for each answer that it takes to what it is asked now, and to its run where that is
    not around it."""
    path, asked = _run(run_id), f"?questionId={call.question_id}"
    answers: dict[str, str] = {
        verb: f"{path}/tool-calls/{quote(call.tool_call_id, safe='')}/{verb}{asked}" for verb in verbs_of(call.kind)
    }
    links: dict[str, str] = {"run": path, **answers} if call.run_id is not None else answers
    return call.model_copy(update={"links": links})


def _run(run_id: str) -> str:
    return f"/v1/runs/{run_id}"
