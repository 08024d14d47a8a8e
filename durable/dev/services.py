"""Our own services as children of a stack, and `durable dev`, which starts all of them.

Invariant: everything listens on the loopback address unless the settings say otherwise for the API; secrets such as
a Redis password travel in the environment, never on a command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, TextIO

import httpx
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from durable.agents import check_agents
from durable.dev.ports import LOOPBACK, free_port_near
from durable.dev.redis_server import PrivateRedis
from durable.dev.stack import Service, Stack, StopRequested
from durable.errors import ConfigurationError
from durable.settings import Settings
from durable.views import AgentPage

DATA_FOLDER: Final = Path(".durable")
FLOWER_PORT: Final = 5555
FLOWER_COLUMNS: Final = "name,uuid,state,args,received,started,runtime,worker"
CELERYS_WARNING_OF_ROOT: Final = "ignore:You're running the worker with superuser"
# The programs need a moment more than what they give to their runs and streams.
STOP_MARGIN_SECONDS: Final = 10.0


def celery_app() -> str:
    """The module of the Celery app: `durable_worker.app` in an installed wheel, `worker.app` in the repository.

    Decided by what lies beside this package, since a user's own package may be called `worker` as well.
    """
    installed = Path(__file__).parents[2] / "durable_worker"
    return "durable_worker.app" if installed.is_dir() else "worker.app"


def worker_service(
    redis_url: str, agents: str, *, name: str = "worker", grace_seconds: float = 10.0, env: dict[str, str] | None = None
) -> Service:
    """A Celery worker that executes `agents` (as in `DURABLE_AGENTS`)."""
    return Service(
        name,
        (sys.executable, "-m", "durable.cli", "worker"),
        env={
            **(env or {}),
            "DURABLE_REDIS_URL": redis_url,
            "DURABLE_AGENTS": agents,
            "DURABLE_GRACE_SECONDS": f"{grace_seconds:g}",
        },
        grace_seconds=grace_seconds + STOP_MARGIN_SECONDS,
    )


def api_service(
    redis_url: str,
    *,
    host: str = LOOPBACK,
    port: int = 8000,
    agents: str = "",
    env: dict[str, str] | None = None,
) -> Service:
    """The HTTP API. It hosts the in-process agents of `agents`; it needs none for those of the workers."""
    return Service(
        "api",
        (sys.executable, "-m", "durable.cli", "api"),
        env={
            **(env or {}),
            "DURABLE_REDIS_URL": redis_url,
            "DURABLE_AGENTS": agents,
            "DURABLE_HOST": host,
            "DURABLE_PORT": str(port),
        },
        ready=f"{api_address(host, port)}/readyz",
        grace_seconds=STOP_MARGIN_SECONDS,
    )


def flower_service(redis_url: str, *, port: int = FLOWER_PORT, env: dict[str, str] | None = None) -> Service:
    """Flower on the loopback address. Its API is open there: whoever can reach it can reach Redis as well."""
    return Service(
        "flower",
        (
            sys.executable,
            "-m",
            "celery",
            "-A",
            celery_app(),
            "flower",
            f"--address={LOOPBACK}",
            f"--port={port}",
            f"--tasks_columns={FLOWER_COLUMNS}",
            "--logging=warning",
        ),
        env={**(env or {}), "DURABLE_REDIS_URL": redis_url, "FLOWER_UNAUTHENTICATED_API": "true"},
        ready=f"http://{LOOPBACK}:{port}/healthcheck",
        grace_seconds=5.0,
    )


def has_flower() -> bool:
    """Whether Flower is installed (the extra `dev`)."""
    return importlib.util.find_spec("flower") is not None


def api_address(host: str, port: int) -> str:
    """The URL under which this machine reaches an API that listens on `host` and `port`."""
    reachable = LOOPBACK if host in {"0.0.0.0", "::", ""} else host  # noqa: S104  compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def dev(
    settings: Settings,
    *,
    workers: int = 1,
    flower: bool = True,
    verbose: bool = False,
    output: TextIO | None = None,
) -> int:
    """Run Redis, workers, the API and Flower in this terminal until Ctrl-C.

    Redis is the one of `settings.redis_url`, else a private one whose data stay in `.durable/` of the working
    folder, so that runs survive a restart of everything. A port that is taken is replaced by a free one. The API
    also gets `settings.agents`, so that in-process agents work too; it stops after the workers, so that observers
    see how the last runs end.

    Args:
        settings: What the services get; agents, host, port and grace time come from here.
        workers: How many worker processes.
        flower: Start Flower if it is installed.
        verbose: Also show every request to the API, and the banners of Celery.
        output: Where all lines go; standard output by default.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM, 1 when a service ended by itself. A worker that did is started
        again; only one that does so again and again counts.

    Raises:
        ConfigurationError: No agents are named, they can't be imported, or a service could not be started.
    """
    if not settings.agents:
        raise ConfigurationError("There is nothing to execute: set DURABLE_AGENTS=package.module first.")
    check_agents(settings.agents)  # before anything is started, or made in the user's folder
    console = Console(file=output, highlight=False)
    with contextlib.ExitStack() as cleanup:
        stack = Stack(output, handle_signals=True)
        redis_url, where = _redis(settings, cleanup, stack)  # first to start, hence last to stop
        cleanup.enter_context(stack)
        with contextlib.suppress(StopRequested):
            rows = _start_all(stack, settings, redis_url, workers=workers, flower=flower, verbose=verbose)
            _announce(console, settings, {**rows, "Redis": where})
            return stack.run_forever()
        return 0


def _redis(settings: Settings, cleanup: contextlib.ExitStack, stack: Stack) -> tuple[str, str]:
    """The URL of the Redis to use, and how to show it."""
    if settings.redis_url is not None:
        return settings.store_url, "as DURABLE_REDIS_URL says"
    DATA_FOLDER.mkdir(exist_ok=True)
    (DATA_FOLDER / ".gitignore").write_text("*\n")
    server = cleanup.enter_context(PrivateRedis(DATA_FOLDER / "redis"))
    stack.watch("redis", lambda: server.running)
    return server.url, f"{server.url} (private, data and log in {server.data_dir})"


def _start_all(
    stack: Stack, settings: Settings, redis_url: str, *, workers: int, flower: bool, verbose: bool
) -> dict[str, str]:
    """Start the services; give what to show of them, by title."""
    common, options = _environment(settings), () if verbose else ("--quiet",)
    host, port = settings.host, free_port_near(settings.port, settings.host)
    address = api_address(host, port)
    _say_if_moved(stack, "api", settings.port, port)
    api = api_service(redis_url, host=host, port=port, agents=settings.agents, env=common)
    stack.start(dataclasses.replace(api, argv=(*api.argv, *options)))
    rows = {"API": address, "API docs": f"{address}/docs"}
    started = [stack.start(service) for service in _worker_services(settings, redis_url, address, workers, options)]
    rows["Workers"] = ", ".join(f"{child.name} (pid {child.pid})" for child in started)
    if flower and has_flower():
        flower_port = free_port_near(FLOWER_PORT)
        _say_if_moved(stack, "flower", FLOWER_PORT, flower_port)
        stack.start(flower_service(redis_url, port=flower_port, env=common))
        rows["Flower"] = f"http://{LOOPBACK}:{flower_port}"
    elif flower:
        rows["Flower"] = "not installed (pip install 'durable-agents[dev]')"
    return rows


def _worker_services(
    settings: Settings, redis_url: str, address: str, workers: int, options: tuple[str, ...]
) -> Iterator[Service]:
    """Workers that come back when they are killed. One is ready when the API at `address` counts it."""
    # In development, being root is nobody's news, nor are the neighbours that come and go.
    given = os.environ.get("PYTHONWARNINGS")
    quiet = {"PYTHONWARNINGS": ",".join(filter(None, (given, CELERYS_WARNING_OF_ROOT)))}
    for number in range(1, workers + 1):
        service = worker_service(
            redis_url,
            settings.agents,
            name="worker" if workers == 1 else f"worker{number}",
            grace_seconds=settings.grace_seconds,
            env=_environment(settings) | quiet,
        )
        ready = partial(_has_workers, address, number)
        argv = (*service.argv, *options, "--without-mingle", "--without-gossip")
        yield dataclasses.replace(service, argv=argv, ready=ready, restarts=True)


def _environment(settings: Settings) -> dict[str, str]:
    """What was set on purpose, as variables: the children must not fall back to their defaults."""
    variables = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            variables[f"DURABLE_{name.upper()}"] = str(value)
    return variables


def _say_if_moved(stack: Stack, name: str, wanted: int, port: int) -> None:
    if wanted not in {0, port}:
        stack.emit(name, f"port {wanted} is taken, using {port}")


def _announce(console: Console, settings: Settings, addresses: dict[str, str]) -> None:
    table = Table(show_header=False, title="Durable Agents", title_justify="left")
    for title, value in addresses.items():
        table.add_row(title, value)
    agents = _agent_names(addresses["API"])
    table.add_row("Agents", ", ".join(agents) or "none yet; set DURABLE_AGENTS=package.module")
    console.print(table)
    elsewhere = "" if addresses["API"] == settings.url else f"DURABLE_URL={addresses['API']} "
    agent = agents[0] if agents else "AGENT"
    console.print(f'Submit a run:  {elsewhere}{_program()} run {agent} "your prompt"', soft_wrap=True)
    console.print("Stop:          Ctrl-C")


def _program() -> str:
    """How to call `durable` from this folder."""
    if shutil.which("durable"):
        return "durable"
    script = Path(sys.executable).with_name("durable")
    return str(script.relative_to(Path.cwd())) if script.is_relative_to(Path.cwd()) else str(script)


def _has_workers(address: str, number: int) -> bool:
    """Whether the API counts so many live workers. Its log has no line for the question."""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        answer = httpx.get(f"{address}/readyz", timeout=2, trust_env=False)
        return answer.is_success and int(answer.json().get("workers", 0)) >= number
    return False


def _agent_names(address: str) -> list[str]:
    """The agents that the API knows by now; none when it does not answer as it should."""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        answer = httpx.get(f"{address}/v1/agents", timeout=2, trust_env=False)
        return [agent.name for agent in AgentPage.model_validate_json(answer.content).agents]
    return []
