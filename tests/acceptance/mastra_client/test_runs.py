"""What a run gives to Mastra's client, in each flow of its protocol."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from tests.acceptance.mastra_client.driver import ClientFailed, MastraClient, function_that

pytestmark = pytest.mark.timeout(180)


def new_id() -> str:
    """An id that nobody has used."""
    return secrets.token_hex(8)


def test_text_streams_in_the_order_of_the_protocol(roaming: MastraClient) -> None:
    call = roaming.stream("say one two")
    assert call.text == "one two "
    assert call.types == [
        "start",
        "step-start",
        "text-start",
        "text-delta",
        "text-delta",
        "text-end",
        "response-metadata",
        "step-finish",
        "finish",
    ]
    assert call.reason == "stop"
    assert call.complaints == []
