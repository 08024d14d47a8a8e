"""The verbs for people in the loop: `pending`, `approve`, `decline` and `resume`."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeAlias

import typer
from rich.table import Table

from durable.cli.attendance import attend
from durable.cli.exits import Exit
from durable.cli.runs import AsJson, RunId
from durable.cli.terminal import Terminal, cell
from durable.cli.values import arguments, read_json
from durable.client import Client
from durable.views import InboxCall, RunView

_Send: TypeAlias = Callable[[Client, str, str | None], Awaitable[RunView]]

_DONE: Final = {"approve": "approved", "decline": "declined", "resume": "resumed", "fail": "failed"}


def _user() -> str | None:
    """The name of whoever sits here; None where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


CallId: TypeAlias = Annotated[str, typer.Argument(metavar="CALL", help="The call's id, as `durable pending` shows it.")]
Question: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="ID", help="What is answered, as `durable pending` shows it; by default what it is asked now."
    ),
]
Actor: TypeAlias = Annotated[
    str | None,
    typer.Option(default_factory=_user, show_default="your user name", help="Who answers; kept in the run's log."),
]


def pending(
    context: typer.Context,
    *,
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent's runs.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Calls, at most.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on from an earlier list.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the tool calls of all runs that wait for somebody, longest first.

    Exit codes: 0 listed, also when there are none, 4 refused, 5 no server.
    """
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        page = await client.pending(agent=agent, limit=limit, cursor=cursor)
        wire = [call.model_dump(mode="json", by_alias=True) for call in page.pending]
        terminal.listing(wire, _table(page.pending), "Nothing waits.", as_json=as_json)
        if page.next is not None:
            terminal.note(f"More:  --cursor {page.next}")
        return Exit.OK

    attend(context.obj, work)


def approve(
    context: typer.Context,
    run_id: RunId,
    call: CallId,
    *,
    args: Annotated[
        str | None, typer.Option(metavar="JSON", help="All arguments to call the tool with, in place of the model's.")
    ] = None,
    question: Question = None,
    actor: Actor,
    as_json: AsJson = False,
) -> None:
    """Let a tool call be made. Approving it again is fine; another answer than the first is refused.

    Exit codes: 0 answered, 2 no JSON, 4 refused, 5 no server.
    """
    edited = None if args is None else read_json(args, "--args")
    if edited is not None and not isinstance(edited, dict):
        raise typer.BadParameter("arguments are a JSON object", param_hint="--args")

    async def send(client: Client, run: str, asked: str | None) -> RunView:
        return await client.approve(run, call, args=edited, actor=actor, question=asked)

    _answer(context, run_id, call, question, send, as_json=as_json)


def decline(
    context: typer.Context,
    run_id: RunId,
    call: CallId,
    *,
    reason: Annotated[str | None, typer.Option(help="Why; the model is told.")] = None,
    question: Question = None,
    actor: Actor,
    as_json: AsJson = False,
) -> None:
    """Refuse a tool call that waits. The model is told, and the run goes on.

    Exit codes: as for `approve`.
    """

    async def send(client: Client, run: str, asked: str | None) -> RunView:
        return await client.decline(run, call, reason=reason, actor=actor, question=asked)

    _answer(context, run_id, call, question, send, as_json=as_json)


def resume(
    context: typer.Context,
    run_id: RunId,
    call: CallId,
    *,
    data: Annotated[str, typer.Option(metavar="JSON", help="What the call waits for.")],
    question: Question = None,
    actor: Actor,
    as_json: AsJson = False,
) -> None:
    """Give a suspended tool call its data, or one that is executed elsewhere its result.

    Exit codes: as for `approve`.
    """
    value = read_json(data, "--data")

    async def send(client: Client, run: str, asked: str | None) -> RunView:
        return await client.resume(run, call, value, actor=actor, question=asked)

    _answer(context, run_id, call, question, send, as_json=as_json)


def _answer(
    context: typer.Context, run_id: str, call: str, question: str | None, send: _Send, *, as_json: bool
) -> None:
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        # What is asked now is named: the answer is not one to what may be asked by the time that it arrives.
        run, asked = await _asked(client, run_id, call) if question is None else (run_id, question)
        view = await send(client, run, asked)
        if as_json:
            terminal.json(view.to_wire())
            return Exit.OK
        decided = [
            found for found in view.decisions or [] if found.tool_call_id == call and asked in {None, found.question_id}
        ]
        what = _DONE.get(decided[-1].decision, "answered") if decided else "answered"
        by = f" by {decided[-1].actor}" if decided and decided[-1].actor else ""
        terminal.line(f"call {call} is {what}{by}; run {view.run_id} is {view.status}")
        for other in view.pending or []:
            terminal.line(f"  · {other.tool_name} still waits (call {other.tool_call_id})", "dim")
        return Exit.OK

    attend(context.obj, work)


async def _asked(client: Client, run_id: str, call: str) -> tuple[str, str | None]:
    """What a call is asked now, or was asked last, and the run whose call it is: it may be one of a run below. No
    question when the run tells of none, or it is not clear which call is meant."""
    view = await client.get(run_id)
    waiting = [found for found in view.pending or [] if found.tool_call_id == call]
    if len(waiting) > 1:
        return run_id, None  # the server says which there are
    if waiting:
        return waiting[0].run_id or run_id, waiting[0].question_id
    decided = [found.question_id for found in view.decisions or [] if found.tool_call_id == call]
    return run_id, decided[-1] if decided else None


def _table(calls: list[InboxCall]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("RUN", "CALL", "QUESTION", "AGENT", "WAITS FOR", "WHAT", "SINCE", "UNTIL"):
        table.add_column(title, no_wrap=title in {"RUN", "CALL", "QUESTION", "SINCE", "UNTIL"}, overflow="fold")
    for call in calls:
        since, until = (
            "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            for moment in (call.since, call.expires_at)
        )
        what = f"{call.tool_name}({arguments(call.args)})"
        cells = (
            call.run_id,
            call.tool_call_id,
            call.question_id or "",
            call.agent,
            call.kind or "",
            what,
            since,
            until,
        )
        table.add_row(*map(cell, cells))
    return table
