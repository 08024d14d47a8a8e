"""The verbs for background tasks: `tasks`, and `tasks show`, `cancel` and `resume`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer
from rich.table import Table

from durable.cli.answers import Actor, Question
from durable.cli.attendance import attend
from durable.cli.exits import Exit
from durable.cli.runs import AsJson
from durable.cli.terminal import Terminal, cell
from durable.cli.values import arguments, read_json, short
from durable.client import Client
from durable.views import TaskStatus, TaskView

app = typer.Typer(
    help="List background tasks, newest first; look at one, cancel or resume it.",
    invoke_without_command=True,
    no_args_is_help=False,
)

TaskId: TypeAlias = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")]


@app.callback()
def tasks(
    context: typer.Context,
    *,
    status: Annotated[TaskStatus | None, typer.Option(help="Only tasks in this state.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only tasks that this agent executes.")] = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Only what this run has started, its sub-agents included.")
    ] = None,
    tool: Annotated[str | None, typer.Option(help="Only calls of this tool.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Tasks, at most.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on from an earlier list.")] = None,
    as_json: AsJson = False,
) -> None:
    """List background tasks, newest first; look at one, cancel or resume it.

    Exit codes: 0 listed, also when there are none, 4 refused, 5 no server.
    """
    if context.invoked_subcommand is not None:
        return
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        page = await client.tasks(status=status, agent=agent, run_id=run, tool_name=tool, limit=limit, cursor=cursor)
        wire = [view.to_wire() for view in page.tasks]
        terminal.listing(wire, _table(page.tasks), "No background tasks.", as_json=as_json)
        if page.next is not None:
            terminal.note(f"More:  --cursor {page.next}")
        return Exit.OK

    attend(context.obj, work)


@app.command()
def show(context: typer.Context, task_id: TaskId, *, as_json: AsJson = False) -> None:
    """Show a background task: its call, its state, its result or error.

    Its log is that of the run with the same id: `durable observe TASK`.
    """
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        _show(terminal, await client.task(task_id), as_json=as_json)
        return Exit.OK

    attend(context.obj, work)


@app.command()
def cancel(
    context: typer.Context,
    task_id: TaskId,
    *,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the task.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a background task. The model is told, and its run goes on."""
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        view = await client.cancel_task(task_id, reason)
        if as_json:
            terminal.json(view.to_wire())
        else:
            being = "" if view.status is TaskStatus.CANCELLED else "being "
            terminal.line(f"task {view.task_id} is {being}cancelled")
        return Exit.OK

    attend(context.obj, work)


@app.command()
def resume(
    context: typer.Context,
    task_id: TaskId,
    *,
    data: Annotated[str, typer.Option(metavar="JSON", help="What the call waits for.")],
    question: Question = None,
    actor: Actor,
    as_json: AsJson = False,
) -> None:
    """Give the call of a background task that waits its data. To approve or decline it: `durable approve TASK CALL`.

    Exit codes: 0 answered, 2 no JSON, 4 refused, 5 no server.
    """
    value, terminal = read_json(data, "--data"), Terminal()

    async def work(client: Client) -> Exit:
        asked = question
        if asked is None:  # what it is asked now is named: the answer is not one to what it may be asked by then
            waiting = (await client.task(task_id)).pending or []
            asked = waiting[0].question_id if len(waiting) == 1 else None
        view = await client.resume_task(task_id, value, actor=actor, question=asked)
        if as_json:
            terminal.json(view.to_wire())
        else:
            terminal.line(f"task {view.task_id} is resumed; it is {_state(view)}")
        return Exit.OK

    attend(context.obj, work)


def _show(terminal: Terminal, view: TaskView, *, as_json: bool) -> None:
    if as_json:
        terminal.json(view.to_wire())
        return
    terminal.line(f"task {view.task_id}: {_state(view)}", "bold")
    terminal.line(f"{view.tool_name}({arguments(view.args)})")
    attempt = f", attempt {view.attempt}" if view.attempt else ""
    again = f", made again {view.retries_used} times" if view.retries_used else ""
    terminal.line(
        f"  · {view.disposition} by run {view.run_id} (call {view.tool_call_id}), for {view.agent}{attempt}{again}",
        "dim",
    )
    for call in view.pending or []:
        terminal.line(f"  ? {call.tool_name} waits (call {call.tool_call_id}), {short(call.payload)}", "bold yellow")
    if view.error is not None:
        terminal.line(f"  ✗ {view.error.code}: {view.error.message}", "red")
    elif view.status is TaskStatus.COMPLETED:
        terminal.line(f"  ← {short(view.result)}", "green")


def _state(view: TaskView) -> str:
    return f"{view.status} ({view.reason})" if view.reason else str(view.status)


def _table(views: list[TaskView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("TASK", "STATUS", "WHAT", "RUN", "AGENT", "CREATED"):
        table.add_column(title, no_wrap=title in {"TASK", "RUN", "CREATED"}, overflow="fold")
    for view in views:
        created = view.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        what = f"{view.tool_name}({arguments(view.args)})"
        table.add_row(*map(cell, (view.task_id, _state(view), what, view.run_id, view.agent, created)))
    return table
