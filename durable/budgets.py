"""The budgets of a run: how many tokens and how many seconds it may use, and raising them when one was reached.

A run that reached a budget is suspended until somebody raises it. That is stored and announced in one step, and so is
raising it: of several at once one counts, and the same again changes nothing, also when it was raised again since.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from durable.chunks import BudgetRaised, BudgetRaisedPayload, encode_body
from durable.chunks.base import Wire
from durable.decisions import LONGEST_ACTOR
from durable.errors import BudgetNotReached, InvalidRequest, RunEnded, UnknownRun
from durable.runs import WAKE_GRACE, RunRecord, Runs
from durable.runs.collection import as_json
from durable.runs.record import BUDGET_REACHED, MaxSeconds, MaxTokens
from durable.scripts import RAISE
from durable.store import Store, text
from durable.views import RunStatus

BudgetName = Literal["max_tokens", "max_seconds"]
REMEMBERED: Final = 32
"""How many raises of a run are known again, the newest."""
_WIRE_NAMES: Final[dict[BudgetName, str]] = {"max_tokens": "maxTokens", "max_seconds": "maxSeconds"}


class Raise(Wire):
    """What a run may use from now on. What is not given stays.

    Attributes:
        max_tokens: Tokens, in all.
        max_seconds: Seconds of execution, in all.
        actor: Who raises it.
    """

    model_config = ConfigDict(extra="forbid")

    max_tokens: MaxTokens | None = None
    max_seconds: MaxSeconds | None = None
    actor: str | None = Field(None, max_length=LONGEST_ACTOR)

    def stored(self) -> tuple[str, str]:
        """Tokens and seconds as they are stored; "" for what is not raised."""
        given = (self.max_tokens, self.max_seconds)
        tokens, seconds = ("" if value is None else repr(value) for value in given)
        return tokens, seconds


_RAISE: Final = TypeAdapter(Raise)


class Budgets:
    """Raises the budgets of a deployment's runs."""

    def __init__(self, store: Store, runs: Runs) -> None:
        self._store = store
        self._runs = runs

    async def raise_(self, run_id: str, wanted: Raise) -> RunRecord | None:
        """Let a run that reached a budget go on. Returns the run when it has to be woken; None when this was done
        before.

        Raises:
            InvalidRequest: Nothing is raised, or not above what the run has used.
            UnknownRun, RunExpired: There is no such run.
            BudgetNotReached: It is not suspended because of a budget.
            RunEnded: It has ended.
            StoreUnavailable: Redis does not answer. The same may be asked again.
        """
        if wanted.max_tokens is None and wanted.max_seconds is None:
            raise InvalidRequest("Raise maxTokens, maxSeconds, or both.")
        while True:
            record = await self._runs.get(run_id)
            if not _raises(record, wanted):
                return None
            match await self._apply(record, wanted):
                case "raised":
                    return await self._runs.get(run_id)
                case "same":
                    return None
                case "ended":
                    raise RunEnded
                case "other":
                    raise BudgetNotReached
                case "unknown":
                    raise UnknownRun
                case _:  # changed: it was raised, and has reached another budget since
                    continue

    async def _apply(self, record: RunRecord, wanted: Raise) -> str:
        keys, run_id = self._store.keys, record.run_id
        given, (tokens, seconds) = wanted.model_dump(exclude_none=True), wanted.stored()
        with as_json():
            chunk = encode_body(BudgetRaised(payload=BudgetRaisedPayload(**given)))
        return text(
            await self._store.run(
                RAISE,
                [keys.run(run_id), keys.log(run_id), keys.wakeups],
                [
                    keys.channel(run_id),
                    run_id,
                    record.token,
                    chunk,
                    tokens,
                    seconds,
                    keys.status_indexes,
                    int(WAKE_GRACE * 1000),
                    REMEMBERED,
                ],
            )
        )


def read_raise(**given: Any) -> Raise:
    """What is given, as a raise.

    Raises:
        InvalidRequest: A value is out of range.
    """
    try:
        return _RAISE.validate_python(given)
    except ValidationError:
        raise InvalidRequest("maxTokens and maxSeconds are numbers above 0.") from None


def _raises(record: RunRecord, wanted: Raise) -> bool:
    """Whether this may let the run go on: not if it did so before, and was used up since.

    Raises:
        InvalidRequest: The run would reach a budget at once.
    """
    if record.status is not RunStatus.SUSPENDED or record.reason != BUDGET_REACHED:
        return True  # it is the script that tells what becomes of it
    usage = record.json("usage") or {}
    used: dict[BudgetName, float] = {
        "max_tokens": usage.get("totalTokens", 0),
        "max_seconds": record.seconds_used,
    }
    limits: dict[BudgetName, float | None] = {
        "max_tokens": wanted.max_tokens or record.max_tokens,
        "max_seconds": wanted.max_seconds or record.max_seconds,
    }
    for name, limit in limits.items():
        if limit is not None and limit <= used[name]:
            if " ".join(wanted.stored()) in record.raised:
                return False
            issue = {"field": _WIRE_NAMES[name], "message": f"must be more than {used[name]:g}, which it has used"}
            raise InvalidRequest("The budget is not above what the run has used.", issues=[issue])
    return True
