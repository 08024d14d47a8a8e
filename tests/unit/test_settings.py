"""Settings: what one value means to the different libraries that are given it."""

from __future__ import annotations

from typing import Any

import pytest
from kombu import Connection
from kombu.transport.redis import Channel
from pydantic import SecretStr

from durable.settings import Settings


@pytest.mark.parametrize(
    ("given", "broker"),
    [
        ("redis://localhost:6379/1", "redis://localhost:6379/1"),
        ("rediss://:secret@redis.example/0", "rediss://:secret@redis.example/0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix:///run/redis.sock?db=2", "redis+socket:///run/redis.sock?virtual_host=2"),
        ("unix://me:s%40@/run/redis.sock?db=2", "redis+socket://me:s%40@/run/redis.sock?virtual_host=2"),
        ("unix:///run/redis.sock?db=2&password=s%40", "redis+socket://:s%40@/run/redis.sock?virtual_host=2"),
    ],
)
def test_the_broker_is_named_as_celery_names_it(given: str, broker: str) -> None:
    assert Settings(redis_url=SecretStr(given)).celery_broker_url == broker
    assert Settings(broker_url=SecretStr(given)).celery_broker_url == broker


def test_celery_finds_the_socket_the_database_and_the_password() -> None:
    settings = Settings(redis_url=SecretStr("unix:///run/redis.sock?db=2&password=s%40"))
    connection = Connection(settings.celery_broker_url)
    channel: Any = Channel.__new__(Channel)
    channel.connection = connection.transport
    found = channel._connparams()
    assert (found["path"], found["db"], found["password"]) == ("/run/redis.sock", 2, "s@")
