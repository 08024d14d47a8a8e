"""The verbs that talk to a server: `run`, `observe`, `runs`, `cancel`, `retry`, `why` and `agents`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import typer
from rich.table import Table

from durable.cli.attendance import attend
from durable.cli.exits import Exit
from durable.cli.following import Following, come_back
from durable.cli.terminal import Terminal, cell
from durable.cli.values import read_json
from durable.client import Client
from durable.errors import InvalidRequest, UnknownAgent
from durable.trees.places import read_place
from durable.views import AgentView, RunStatus, RunView


class OnBusy(StrEnum):
    """What becomes of a run whose conversation has another one."""

    QUEUE = "queue"
    REJECT = "reject"


Detach: TypeAlias = Annotated[bool, typer.Option("--detach", "-d", help="Print the run's id and do not follow.")]
RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]

UntilIdle: TypeAlias = Annotated[
    bool, typer.Option("--until-idle", help="Go on when background tasks end; wait for them for 5 minutes in a row.")
]
MaxIdle: TypeAlias = Annotated[
    float | None, typer.Option(metavar="SECONDS", min=0.001, help="The same, for so many seconds.")
]


def run(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask it.")],
    *,
    run_id: Annotated[str | None, typer.Option(help="The id that the run shall have.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Model requests, at most.")] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Tries in a row after the model's provider failed.")
    ] = None,
    require_tool_approval: Annotated[
        bool, typer.Option("--require-tool-approval", help="Every tool call has to be approved.")
    ] = False,
    approval_policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="The agent's policy that tells which calls have to be approved.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that it may use.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Seconds that it may be executed.")] = None,
    end_on_budget: Annotated[
        bool, typer.Option("--end-on-budget", help="End when one of these is reached; it waits otherwise.")
    ] = False,
    step_seconds: Annotated[float | None, typer.Option(help="Seconds for a model request and its tools.")] = None,
    thread: Annotated[str | None, typer.Option(metavar="THREAD", help="The conversation to go on with.")] = None,
    resource: Annotated[str | None, typer.Option(help="Whose conversation it is.")] = None,
    on_busy: Annotated[
        OnBusy | None, typer.Option(help="Wait for the conversation's other runs (default), or be refused.")
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Make all tool calls in the run, none in the background.")
    ] = False,
    until_idle: UntilIdle = False,
    max_idle: MaxIdle = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the run. May be repeated.")
    ] = None,
    deps: Annotated[str | None, typer.Option(metavar="JSON", help="For the agent's dependencies.")] = None,
    instructions: Annotated[str | None, typer.Option(help="In place of the agent's own instructions.")] = None,
    active_tool: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Give the model this tool, and no others; may be repeated.")
    ] = None,
    output_schema: Annotated[
        str | None, typer.Option(metavar="JSON", help="JSON schema of the object that it shall return.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="With the provider's own events; --json shows them.")] = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Submit a run and follow it. Ctrl-C leaves it running.

    Exit codes: 0 completed or left, 1 failed, 3 cancelled, 4 refused, 5 no server.
    """
    terminal = Terminal()
    following = Following(terminal, as_json=as_json)
    labels = _labels(metadata or [])
    if require_tool_approval and approval_policy is not None:
        raise typer.BadParameter("every call or a policy, not both", param_hint="--approval-policy")
    approval = True if require_tool_approval else approval_policy
    for_deps = None if deps is None else read_json(deps, "--deps")
    schema = None if output_schema is None else read_json(output_schema, "--output-schema")

    async def work(client: Client) -> Exit:
        try:
            view = await client.submit(
                agent,
                prompt,
                run_id=run_id,
                max_steps=max_steps,
                retries=retries,
                metadata=labels or None,
                deps=for_deps,
                require_tool_approval=approval,
                max_tokens=max_tokens,
                max_seconds=max_seconds,
                on_budget="end" if end_on_budget else None,
                step_seconds=step_seconds,
                thread_id=thread,
                resource_id=resource,
                on_busy=on_busy,
                background=False if foreground else None,
                until_idle=_idle(until_idle=until_idle, max_idle=max_idle),
                instructions=instructions,
                active_tools=active_tool or None,
                output_schema=schema,
                include=["raw"] if raw else None,
            )
        except UnknownAgent as error:
            raise UnknownAgent(await _whom_else(client, agent)) from error
        if run_id is not None and (view.attempt or view.ended):
            shown = "" if detach else "; showing it"
            terminal.note(f"This run exists already ({view.status}){shown}.")
        return await _hand_over(client, view, terminal, None if detach else following, as_json=as_json)

    attend(context.obj, work, on_interrupt=following.interrupted, on_outage=following.outage)


def observe(
    context: typer.Context,
    run_id: RunId,
    *,
    after: Annotated[str, typer.Option(help="Begin after this chunk; with --tree, after this cursor.")] = "0",
    tree: Annotated[
        bool, typer.Option("--tree", help="With the tasks and the sub-agents' runs that it starts.")
    ] = False,
    until_idle: UntilIdle = False,
    max_idle: MaxIdle = None,
    as_json: AsJson = False,
) -> None:
    """Follow a run, from its start or from a chunk on. Ctrl-C leaves it running.

    Exit codes: as for `run`.
    """
    following = Following(Terminal(), as_json=as_json)

    async def work(client: Client) -> Exit:
        view = await client.get(run_id)  # no server or no such run is told at once, not after many tries
        if read_place(after).seq > view.last_seq:
            raise InvalidRequest(f"The run has no chunk {after} yet; its last one is {view.last_seq}.")
        idle = _idle(until_idle=until_idle, max_idle=max_idle)
        return await following.follow(client, run_id, after, tree=tree, until_idle=idle)

    attend(context.obj, work, on_interrupt=following.interrupted, on_outage=following.outage)


def runs(
    context: typer.Context,
    *,
    status: Annotated[RunStatus | None, typer.Option(help="Only runs in this state.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only runs of this agent.")] = None,
    thread: Annotated[str | None, typer.Option(help="Only runs of this conversation.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Runs, at most.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on from an earlier list.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        page = await client.runs(status=status, agent=agent, thread_id=thread, limit=limit, cursor=cursor)
        wire = [view.to_wire() for view in page.runs]
        terminal.listing(wire, _runs_table(page.runs), "No runs.", as_json=as_json)
        if page.next is not None:
            terminal.note(f"More:  --cursor {page.next}")
        return Exit.OK

    attend(context.obj, work)


def cancel(
    context: typer.Context,
    run_id: RunId,
    *,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a run. Cancelling a cancelled run again is fine; one that ended otherwise is refused."""
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        view = await client.cancel(run_id, reason)
        if as_json:
            terminal.json(view.to_wire())
        elif view.status is RunStatus.CANCELLED:
            terminal.line(f"run {view.run_id} is cancelled")
        else:
            terminal.line(f"run {view.run_id} is being cancelled")
        return Exit.OK

    attend(context.obj, work)


def retry(
    context: typer.Context,
    run_id: RunId,
    *,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Start a new run where a failed or cancelled one stopped, and follow it. Ctrl-C leaves it running.

    Exit codes: as for `run`.
    """
    terminal = Terminal()
    following = Following(terminal, as_json=as_json)

    async def work(client: Client) -> Exit:
        view = await client.retry(run_id)
        return await _hand_over(client, view, terminal, None if detach else following, as_json=as_json)

    attend(context.obj, work, on_interrupt=following.interrupted, on_outage=following.outage)


def why(context: typer.Context, run_id: RunId, *, as_json: AsJson = False) -> None:
    """Explain why a run stands where it stands: what it waits for, who holds it, what became of its attempts."""
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        found = await client.diagnosis(run_id)
        if as_json:
            terminal.json(found.model_dump(mode="json", by_alias=True))
        else:
            terminal.line(f"run {found.run_id} of {found.agent}: {found.status}", "bold")
            terminal.line(found.summary)
            for fact in found.facts:
                terminal.line(f"  · {fact.message}", "dim")
        return Exit.OK

    attend(context.obj, work)


def agents(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the agents that can be asked for runs."""
    terminal = Terminal()

    async def work(client: Client) -> Exit:
        views = await client.agents()
        wire = [view.model_dump(mode="json", by_alias=True) for view in views]
        nothing = "No agents. Start a worker with DURABLE_AGENTS=package.module."
        terminal.listing(wire, _agents_table(views), nothing, as_json=as_json)
        return Exit.OK

    attend(context.obj, work)


def _idle(*, until_idle: bool, max_idle: float | None) -> bool | float | None:
    """For how long a run waits for its tasks; None when nobody says."""
    return (until_idle or None) if max_idle is None else max_idle


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter("it must look like KEY=VALUE", param_hint="--metadata")
        labels[key] = value
    return labels


async def _whom_else(client: Client, agent: str) -> str:
    """Words for somebody who asked for an agent that nobody knows."""
    known = ", ".join(view.name for view in await client.agents())
    return f"No agent {agent!r} was ever announced (known: {known or 'none'}); start a worker that has it."


async def _hand_over(
    client: Client, view: RunView, terminal: Terminal, following: Following | None, *, as_json: bool
) -> Exit:
    """Follow a run that was just started, or say how to."""
    if following is None:
        _announce_detached(terminal, view, as_json=as_json)
        return Exit.OK
    if as_json:
        terminal.note(f"run {view.run_id}")
    else:
        terminal.line(f"run {view.run_id}", "bold")
    return await following.follow(client, view.run_id)


def _announce_detached(terminal: Terminal, view: RunView, *, as_json: bool) -> None:
    """Only the id, or the run, goes to standard output, for scripts."""
    if as_json:
        terminal.json(view.to_wire())
    else:
        terminal.line(view.run_id)
    terminal.note(f"Follow it:  {come_back(view.run_id, '0')}")


def _runs_table(views: list[RunView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("RUN", "AGENT", "STATUS"):
        table.add_column(title, no_wrap=title == "RUN", overflow="fold")
    for title in ("ATTEMPT", "CHUNKS"):
        table.add_column(title, justify="right")
    table.add_column("CREATED", no_wrap=True)
    for view in views:
        status = f"{view.status} ({view.reason})" if view.reason else view.status
        created = view.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        cells = (view.run_id, view.agent, status, str(view.attempt), str(view.last_seq), created)
        table.add_row(*map(cell, cells))
    return table


def _agents_table(views: list[AgentView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("AGENT", "WORKERS", "TOOLS", "DESCRIPTION"):
        table.add_column(title, justify="right" if title == "WORKERS" else "left", overflow="fold")
    for view in views:
        workers = "?" if view.workers is None else str(view.workers)
        tools = ", ".join(tool.name for tool in view.tools)
        table.add_row(*map(cell, (view.name, workers, tools, view.description or "")))
    return table
