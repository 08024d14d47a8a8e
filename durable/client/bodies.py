"""What requests have in common: fields of their bodies and queries. Invariant: what is not given is not sent."""

from __future__ import annotations

from collections.abc import Mapping

from durable.chunks.base import Json


def idle(until_idle: bool | float | None) -> Json:  # noqa: FBT001 - it is the value itself
    """For how long a run waits for its tasks, on the wire."""
    return until_idle if until_idle is None or isinstance(until_idle, bool) else {"maxIdleMs": int(until_idle * 1000)}


def beside(actor: str | None, question: str | None, until_idle: bool | float | None) -> dict[str, Json]:  # noqa: FBT001
    """What any answer to a call may say besides."""
    return given({"actor": actor, "questionId": question, "untilIdle": idle(until_idle)})


def idle_params(until_idle: bool | float | None) -> dict[str, str]:  # noqa: FBT001 - it is the value itself
    """The same, as a query."""
    match idle(until_idle):
        case True:
            return {"untilIdle": "true"}
        case {"maxIdleMs": int(ms)}:
            return {"maxIdleMs": str(ms)}
    return {}


def given(fields: Mapping[str, Json]) -> dict[str, Json]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
