"""What a ledger has of a tool that raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_ai.exceptions import ModelHTTPError

from durable import ledger
from durable.ledger import Outcome, Raised


class Refused(Exception):
    """With a message of its own, and a state."""

    def __init__(self, reason: str, *, code: int) -> None:
        super().__init__(reason)
        self.code = code

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.code})"


class Loud(Exception):
    """Can't be asked anything."""

    def __reduce__(self) -> Any:
        raise RuntimeError


class Forgetful(Exception):
    """Says something else each time."""

    said = 0

    def __str__(self) -> str:
        Forgetful.said += 1
        return str(Forgetful.said)


def noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


def invalid() -> Exception:
    class Model(BaseModel):
        n: int

    with pytest.raises(ValidationError) as caught:
        Model.model_validate({"n": "x"})
    return caught.value


def kept(error: Exception) -> Raised:
    """What is left of a failure after it was stored."""
    outcome = ledger.decode(ledger.encode(Outcome(raised=Raised("tool_failed", "It failed.", "Name", error))))
    assert outcome is not None
    assert outcome.raised is not None
    return outcome.raised


@pytest.mark.parametrize(
    "error",
    [
        ValueError("broken"),
        ValueError(),
        KeyError("a", 1, None, 2.5, True, ["x", {"y": []}]),
        FileNotFoundError(2, "No such file", "x.txt"),
        Refused("no", code=7),
        noted(LookupError("gone"), "look elsewhere"),
        ModelHTTPError(503, "a model", {"error": "busy"}),
        json.JSONDecodeError("bad", "{", 1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_of_plain_state_is_the_same_after_it_was_stored(error: Exception) -> None:
    raised = kept(error)

    assert raised.error is not None
    assert raised.error is not error
    assert type(raised.error) is type(error)
    assert (str(raised.error), repr(raised.error)) == (str(error), repr(error))
    assert (raised.error.args, vars(raised.error)) == (error.args, vars(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError(object()),
        ValueError(b"bytes"),
        ValueError((1, 2)),
        ValueError(float("nan")),
        ValueError("\ud800"),
        ValueError(10**30),
        type("Local", (Exception,), {"__module__": "nowhere"})("x"),
        invalid(),
        ExceptionGroup("several", [ValueError("x")]),
        Loud("x"),
        Forgetful("x"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.args!r:.12}",
)
def test_an_exception_that_would_come_back_as_another_is_not_kept(error: Exception) -> None:
    assert kept(error) == Raised("tool_failed", "It failed.", "Name", None)


@pytest.mark.parametrize(
    "stored",
    [
        ["os", "system", ["true"], None],
        ["builtins", "list", [], None],
        ["builtins", "KeyboardInterrupt", [], None],
        ["a.module.that.is.not.loaded", "Error", [], None],
        ["builtins", "NoSuchError", [], None],
        "builtins",
        {"a": 1},
    ],
)
def test_nothing_but_an_exception_is_made_of_what_is_stored(stored: Any) -> None:
    entry = json.dumps({"kind": "raised", "failure": ["tool_failed", "It failed.", "Name", stored]}).encode()

    outcome = ledger.decode(entry)
    assert outcome is not None
    assert outcome.raised == Raised("tool_failed", "It failed.", "Name", None)


@pytest.mark.parametrize("value", ["text", {"a": [1, None]}, None])
def test_what_hooks_made_of_a_failure_is_known_as_that(value: Any) -> None:
    assert ledger.decode(ledger.encode(Outcome(value=value, healed=True))) == Outcome(value=value, healed=True)
    assert ledger.decode(ledger.encode(Outcome(value=value))) == Outcome(value=value)
