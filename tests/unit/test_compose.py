"""The compose file and the Dockerfile, checked as far as that goes without an engine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from durable.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "durable-agents")


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]  # a miss fails here
    return float(number) * {"s": 1, "m": 60}[unit]


def with_defaults(text: str) -> str:
    """The text as compose reads it when no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_file_is_valid_compose() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, str(ROOT / "docker-compose.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_part_of_the_deployment_is_there() -> None:
    assert set(SERVICES) == {"redis", "api", "worker", "flower"}
    assert OURS == ["api", "flower", "worker"]


@pytest.mark.parametrize("name", OURS)
def test_a_command_runs_something_that_exists(name: str) -> None:
    program, *arguments = SERVICES[name]["command"]
    script = Path(sys.executable).with_name(program)
    assert script.is_file()
    if program == "celery":
        module = arguments[arguments.index("-A") + 1]
        check = [sys.executable, "-c", f"from {module} import app; assert app.tasks"]
        assert arguments[2] in {"worker", "flower"}
    else:
        assert program == "durable"
        check = [str(script), *arguments, "--help"]
    environment = {key: with_defaults(value or "") for key, value in SERVICES[name]["environment"].items()}
    done = subprocess.run(
        check, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_name_that_is_used_is_defined() -> None:
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists()
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= used
    assert set(COMPOSE["networks"]) == {name for service in SERVICES.values() for name in service["networks"]}


@pytest.mark.parametrize("name", OURS)
def test_our_variables_are_settings(name: str) -> None:
    set_here = {
        variable.removeprefix("DURABLE_").lower(): value
        for variable, value in SERVICES[name]["environment"].items()
        if variable.startswith("DURABLE_")
    }
    assert set(set_here) <= set(Settings.model_fields)
    settings = Settings.model_validate({field: with_defaults(value) for field, value in set_here.items()})
    assert settings.store_url == "redis://redis:6379/0"


def test_nothing_is_published_beyond_loopback_and_redis_not_at_all() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api", "flower"}
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)
    assert SERVICES["redis"]["networks"] == ["store"]
    assert COMPOSE["networks"]["store"]["internal"] is True


def test_redis_keeps_what_it_acknowledged() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "redis-data:/data" in SERVICES["redis"]["volumes"]


def test_redis_is_past_the_eviction_of_blocked_clients() -> None:
    version = tuple(int(part) for part in SERVICES["redis"]["image"].removeprefix("redis:").split("."))
    assert version >= (8, 6, 3)


def test_flower_lets_nobody_in_until_a_password_is_set() -> None:
    environment = SERVICES["flower"]["environment"]
    assert with_defaults(environment["FLOWER_BASIC_AUTH"]) == ""
    assert "FLOWER_UNAUTHENTICATED_API" not in environment


def test_a_stopping_worker_has_the_time_that_it_gives_to_its_runs() -> None:
    grace = Settings.model_fields["grace_seconds"].default
    assert seconds(SERVICES["worker"]["stop_grace_period"]) >= grace + 10


@pytest.mark.parametrize("name", OURS)
def test_our_programs_run_without_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert isinstance(service["command"], list), "the exec form, so that SIGTERM reaches the program"
    assert "container_name" not in service, "it would forbid more than one replica"


class Answer(BaseHTTPRequestHandler):
    """Answers every GET with the status of its server."""

    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]  # set by the test
        self.end_headers()
        self.wfile.write(b"body")

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def web_server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def health_of(name: str, *replacements: tuple[str, str]) -> int:
    kind, *command = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    argv = [part.replace("$$", "$") for part in command]
    for old, new in replacements:
        assert any(old in part for part in argv)
        argv = [part.replace(old, new) for part in argv]
    return subprocess.run(argv, capture_output=True, check=False).returncode


@pytest.mark.parametrize(("name", "port"), [("api", 8000), ("flower", 5555)])
def test_the_health_check_of_a_web_service_follows_its_status(name: str, port: int, web_server: HTTPServer) -> None:
    here = (f"/{port}", f"/{web_server.server_port}")
    web_server.status = 200  # type: ignore[attr-defined]  # read by Answer
    assert health_of(name, here) == 0
    web_server.status = 503  # type: ignore[attr-defined]  # read by Answer
    assert health_of(name, here) != 0
    web_server.server_close()
    assert health_of(name, here) != 0


def test_the_health_check_of_a_worker_follows_its_heartbeat(tmp_path: Path) -> None:
    path = SERVICES["worker"]["environment"]["DURABLE_HEARTBEAT_FILE"]
    heartbeat = tmp_path / "heartbeat"
    assert health_of("worker", (path, str(heartbeat))) != 0
    heartbeat.touch()
    assert health_of("worker", (path, str(heartbeat))) == 0
    long_ago = time.time() - 60
    os.utime(heartbeat, (long_ago, long_ago))
    assert health_of("worker", (path, str(heartbeat))) != 0


def dockerfile() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def copied_paths() -> list[str]:
    instructions = [words for words in dockerfile() if words[0] == "COPY" and "--from=build" not in words]
    return [source for words in instructions for source in words[1:-1]]


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for source in copied_paths():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, rule) for rule in allowed), source


def test_the_image_has_every_package_of_the_project() -> None:
    assert {"durable", "worker", "api", "examples"} <= set(copied_paths())


def test_the_image_installs_only_what_is_locked_and_runs_as_a_user() -> None:
    installs = [" ".join(words) for words in dockerfile() if words[0] == "RUN" and "pip" in " ".join(words)]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-deps --no-build-isolation" in install
    users = [words[1] for words in dockerfile() if words[0] == "USER"]
    assert users[-1] == "10001:10001"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-image.lock"])
def test_a_lock_pins_by_hash_and_names_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pinned = re.findall(r"^[A-Za-z0-9._-]+==\S+(?: ;[^\n]*?)? \\\n    --hash=sha256:", text, flags=re.MULTILINE)
    requirements = re.findall(r"^[A-Za-z0-9]\S*", text, flags=re.MULTILINE)
    assert len(pinned) == len(requirements) > 50
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text


def test_the_image_runs_the_versions_that_were_tested() -> None:
    def pins(lock: str) -> set[str]:
        return set(re.findall(r"^[A-Za-z0-9._-]+==\S+", (ROOT / lock).read_text(), flags=re.MULTILINE))

    assert pins("requirements-image.lock") <= pins("requirements.lock")


def test_the_lock_satisfies_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *(text for extra in project["project"]["optional-dependencies"].values() for text in extra),
        *(text for group in project["dependency-groups"].values() for text in group),
        *project["build-system"]["requires"],
    ]
    text = (ROOT / "requirements.lock").read_text()
    locked = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE)
    }
    for requirement in map(Requirement, asked):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"run `make lock`: {requirement.name} is missing"
        assert requirement.specifier.contains(version), f"run `make lock`: {requirement}, not {version}"
