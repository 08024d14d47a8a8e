"""Whether a run whose model's provider failed is tried again, and when.

There is one owner of retries: without `retries` the provider's own client, which asks again a few times; with `retries`
the run, which asks once, gives its worker free, and goes on from its checkpoint later. Never both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic_ai import exceptions
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError

from durable.chunks import ErrorInfo
from durable.client.backoff import Backoff, Tries
from durable.execution.failures import describe

PLAN: Final = Backoff(first=2.0, cap=60.0, patience=None)
"""Pauses are random, up to 2 s, 4 s, 8 s … 60 s, on top of what the provider asks for."""
LONGEST: Final = 3600.0
"""Seconds. A provider that asks for more is not waited for."""

_PASSING_STATUSES: Final = frozenset({408, 409, 425, 429})
# Releases that have these kinds raise them for what waiting does not help.
_LASTING: Final[tuple[type[BaseException], ...]] = tuple(
    kind
    for name in ("ModelRequestRejectedError", "ModelQuotaExceededError")
    if isinstance(kind := getattr(exceptions, name, None), type)
)


@dataclass(frozen=True)
class Postponement:
    """A failure that the run is tried again after.

    Attributes:
        delay: Seconds to wait.
        error: What failed.
        retry: The number of the retry, since the run last got on.
    """

    delay: float
    error: ErrorInfo
    retry: int

    @property
    def fields(self) -> dict[str, str | bytes]:
        """What is kept of it in the run's record."""
        return {"retriesUsed": str(self.retry), "lastError": self.error.model_dump_json(exclude_none=True)}


def postponement(error: BaseException, *, retries: int, used: int) -> Postponement | None:
    """When to try again; None when the run fails for good.

    Args:
        error: What ended the attempt.
        retries: How often in a row the run may be tried again.
        used: How often it was, since it last got on.
    """
    if used >= retries or not is_passing(error):
        return None
    asked = retry_after(error)
    if asked > LONGEST:
        return None
    pause = Tries(PLAN, failures=used).pause(at_least=asked)
    return Postponement(pause or 0.0, describe(error), used + 1)


def is_passing(error: BaseException) -> bool:
    """Whether the model's provider may well answer later: no connection, a timeout, too many requests, its own fault.

    Of several models that all failed, one that may answer later is enough.
    """
    match error:
        case BaseExceptionGroup():
            return any(is_passing(each) for each in error.exceptions)
        case _ if isinstance(error, _LASTING):
            return False
        case ModelHTTPError():
            return error.status_code >= 500 or error.status_code in _PASSING_STATUSES
        case _:
            return isinstance(error, ModelAPIError)


def retry_after(error: BaseException) -> float:
    """For how many seconds the provider wants to be left alone; 0 if it does not say."""
    if isinstance(error, BaseExceptionGroup):
        return min((retry_after(each) for each in error.exceptions if is_passing(each)), default=0.0)
    told: Any = getattr(error, "retry_after", None)  # not in the oldest releases
    return max(0.0, float(told)) if isinstance(told, int | float) else 0.0
