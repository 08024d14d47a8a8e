"""Pages of other origins: let in when they are named, and only then."""

from __future__ import annotations

import httpx
import pytest
from pydantic import SecretStr

from api.app import create_app
from durable.settings import Settings

PAGE = "https://shop.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-mastra-client-type",
}


def browser(origins: str) -> httpx.AsyncClient:
    """What a browser sends goes to an app without a lifespan: nothing here needs a store."""
    app = create_app(Settings(redis_url=SecretStr("redis://127.0.0.1:1"), cors_origins=origins))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api")


@pytest.mark.parametrize("origins", [PAGE, f"https://other.example, {PAGE}/", "*"])
async def test_a_named_origin_may_send_and_read(origins: str) -> None:
    async with browser(origins) as client:
        asked = await client.options("/v1/runs", headers=PREFLIGHT)
        health = await client.get("/healthz", headers={"Origin": PAGE})
        unknown = await client.get("/v1/nothing", headers={"Origin": PAGE})
    assert asked.status_code == 200
    assert {answer.headers["access-control-allow-origin"] for answer in (asked, health, unknown)} <= {PAGE, "*"}
    assert unknown.status_code == 404


@pytest.mark.parametrize("origins", ["", "https://other.example"])
async def test_any_other_origin_may_not(origins: str) -> None:
    async with browser(origins) as client:
        asked = await client.options("/v1/runs", headers=PREFLIGHT)
        health = await client.get("/healthz", headers={"Origin": PAGE})
    assert not asked.is_success
    assert health.status_code == 200
    assert "access-control-allow-origin" not in health.headers
