"""Configuration of a process, read from `DURABLE_*` environment variables; every default is stated here only."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from durable.errors import ConfigurationError


class Settings(BaseSettings):
    """What a process of a deployment needs to know. Times are seconds unless the name says otherwise.

    Raises `pydantic.ValidationError` for a value that does not fit.
    """

    model_config = SettingsConfigDict(
        env_prefix="DURABLE_", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    redis_url: SecretStr | None = Field(None, description="The store. `durable dev` starts a private one when unset.")
    broker_url: SecretStr | None = Field(None, description="Celery's broker; the store's server when unset.")
    agents: str = Field("", description="Modules with wrapped agents: `package.module[:name],…`.")
    prefix: str = Field(
        "durable",
        pattern=r"^[A-Za-z0-9_.{}-]{1,64}$",
        description="Starts every key. In braces (`{durable}`) all keys share one slot of a Redis Cluster.",
    )
    lease_seconds: float = Field(6, gt=0.2, le=3600, description="A worker that is silent for so long loses its runs.")
    heartbeat_seconds: float = Field(2, gt=0.05, description="How often a worker renews its leases.")
    stall_seconds: float = Field(30, gt=0, description="An event loop that stands still for so long gives up its runs.")
    sweep_seconds: float = Field(1, gt=0.05, description="How often lost runs are looked for.")
    flush_ms: float = Field(20, ge=0, le=5000, description="How long deltas may wait for company; 0 sends each alone.")
    max_attempts: int = Field(5, ge=1, description="Attempts in a row that got nothing done, before a run fails.")
    retention_seconds: int = Field(604_800, ge=1, description="How long an ended run can be read.")
    tombstone_seconds: int = Field(2_592_000, ge=1, description="How long an expired run answers 410 and not 404.")
    concurrency: int = Field(200, ge=1, description="Runs at a time in one process.")
    max_tasks: int = Field(0, ge=0, description="Background tasks at a time, over all workers; 0 for no limit.")
    task_retention_seconds: int = Field(3600, ge=1, description="How long a completed background task can be read.")
    failed_task_retention_seconds: int = Field(86_400, ge=1, description="How long any other can.")
    tool_threads: int = Field(64, ge=1, description="Synchronous tools at a time in one worker.")
    grace_seconds: float = Field(10, ge=0, description="How long a stopping worker lets its runs go on.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body that the API reads.")
    max_tool_result_bytes: int = Field(4_194_304, ge=1024, description="Largest tool result, as JSON.")
    max_inline_file_bytes: int = Field(
        262_144, ge=0, description="Largest file of a model that its chunk holds itself."
    )
    max_buffer_bytes: int = Field(16_777_216, ge=65_536, description="Chunks of one run that wait for Redis, at most.")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    cors_origins: str = Field(
        "", description="Origins of pages that may call the API from a browser: `https://…,…`, or `*` for all."
    )
    url: str = Field("http://127.0.0.1:8000", description="The API that the command line and `Client` talk to.")
    heartbeat_file: Path | None = Field(None, description="Touched by a worker while its event loop turns.")
    always_resume: bool = Field(default=False, description="Give the lease back after every step (for tests).")

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("heartbeat_seconds must be at most half of lease_seconds")
        return self

    @cached_property
    def store_url(self) -> str:
        """The Redis URL of the store.

        Raises:
            ConfigurationError: `DURABLE_REDIS_URL` is not set.
        """
        if self.redis_url is None:
            raise ConfigurationError(
                "No Redis is configured: set DURABLE_REDIS_URL (for example redis://localhost:6379/0), "
                "pass cache= to the agent, or start everything with `durable dev`."
            )
        return self.redis_url.get_secret_value()

    @cached_property
    def celery_broker_url(self) -> str:
        """The URL of Celery's broker: `DURABLE_BROKER_URL`, else the store's."""
        url = self.broker_url.get_secret_value() if self.broker_url is not None else self.store_url
        return _as_broker(url) if url.startswith("unix://") else url


def _as_broker(unix_url: str) -> str:
    """A Unix socket in Celery's words. Both write user and password before the path; redis-py reads them from the query
    too, and names the database there."""
    parts = urlsplit(unix_url)
    query = dict(parse_qsl(parts.query))
    user = parts.username or quote(query.get("username", ""), safe="")
    password = parts.password or quote(query.get("password", ""), safe="")
    who = f"{user}:{password}@" if user or password else ""
    database = f"?virtual_host={quote(query['db'], safe='')}" if "db" in query else ""
    return f"redis+socket://{who}{parts.path}{database}"
