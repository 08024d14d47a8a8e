"""The error tree. Each class has one stable `code`; the API maps classes to HTTP statuses in one place.

    DurableError
    ├── ConfigurationError        something this process needs is not set up
    ├── InvalidRequest            the caller's input is wrong
    │   └── RequestTooLarge       … in size
    ├── UnknownAgent              no worker ever announced this name, and it is not imported here
    ├── UnknownRun                there never was such a run, or it is forgotten
    ├── RunExpired                the run was there; its retention has passed
    ├── RunConflict               the run id or idempotency key belongs to another request
    ├── UnknownThread             there is no such conversation, or it is forgotten
    ├── ThreadBusy                the conversation has a run that has not ended, and the new one is not to wait for it
    ├── ThreadConflict            the conversation belongs to another resource
    ├── UnknownCall               the run has no call of this id that waits or waited for an answer
    ├── AmbiguousCall             several calls of what the run has started may be meant
    ├── AlreadyDecided            the call was answered before, in another way
    ├── BudgetNotReached          the run is not suspended because of a budget: there is nothing to raise
    ├── LimitReached              as many background tasks are executed as may be, and this one is not to wait
    ├── RunEnded                  the run has ended; it can't change any more
    ├── StoreUnavailable          Redis does not answer; nothing was written, or the same call may be repeated
    ├── LeaseLost                 this attempt no longer owns its run; whatever it writes is refused
    ├── RunUnsuccessful           raised by `result()` of a run that did not complete
    │   ├── RunFailed
    │   └── RunCancelled
    ├── ToolResultInvalid         a tool returned what can't be recorded
    ├── DecisionExpired           nobody answered a call in time, and its tool says that the run fails then
    ├── UnfitRequest              the run was asked for what its agent can't do
    ├── GuardrailFailed           a guardrail could not say whether the run may go on
    ├── LedgerCorrupt             a recorded tool outcome can't be read
    └── ServerUnreachable         raised by the client: no server answers at its URL, or not one of ours

A message never carries a prompt, a secret, an exception text of user code or a stack trace: it may be shown to anybody
who may see the run.
"""

from __future__ import annotations

from typing import Any


class DurableError(Exception):
    """An error of the run layer."""

    # Each class sets it. Only the client sets it on an instance: for a code that its version has no class for.
    code: str = "internal_error"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        self.message = message or (type(self).__doc__ or "").splitlines()[0]
        self.details = details
        super().__init__(self.message)


class ConfigurationError(DurableError):
    """This process lacks something that it needs."""

    code = "configuration_error"


class InvalidRequest(DurableError):
    """The request is not valid."""

    code = "invalid_request"


class RequestTooLarge(InvalidRequest):
    """The request is larger than this server accepts."""

    code = "request_too_large"


class UnknownAgent(DurableError):
    """No agent of this name was ever announced."""

    code = "unknown_agent"


class UnknownRun(DurableError):
    """There is no run with this id."""

    code = "unknown_run"


class UnknownFile(DurableError):
    """The run has no file of this name."""

    code = "unknown_file"


class RunExpired(DurableError):
    """The run has ended and its retention has passed."""

    code = "run_expired"


class RunConflict(DurableError):
    """The run id or idempotency key was used for a different request."""

    code = "run_conflict"


class UnknownThread(DurableError):
    """There is no thread with this id."""

    code = "unknown_thread"


class ThreadBusy(DurableError):
    """A run of this thread has not ended."""

    code = "thread_busy"


class ThreadConflict(DurableError):
    """The thread belongs to another resource."""

    code = "thread_conflict"


class UnknownCall(DurableError):
    """The run has no call of this id that waits for an answer."""

    code = "unknown_call"


class AmbiguousCall(DurableError):
    """Several calls may be meant."""

    code = "ambiguous_call"


class AlreadyDecided(DurableError):
    """The call was answered before, in another way."""

    code = "already_decided"


class BudgetNotReached(DurableError):
    """The run is not suspended because it reached a budget."""

    code = "budget_not_reached"


class LimitReached(DurableError):
    """As many background tasks are executed as may be."""

    code = "limit_reached"


class RunEnded(DurableError):
    """The run has already ended."""

    code = "run_ended"


class StoreUnavailable(DurableError):
    """The store does not answer. The same request may be sent again."""

    code = "store_unavailable"


class LeaseLost(DurableError):
    """This attempt no longer owns the run."""

    code = "lease_lost"


class RunUnsuccessful(DurableError):
    """The run ended without completing."""

    def __init__(self, run_id: str, code: str, message: str) -> None:
        super().__init__(message, runId=run_id)
        self.run_id = run_id
        self.failure_code = code


class RunFailed(RunUnsuccessful):
    """The run failed."""

    code = "run_failed"


class RunCancelled(RunUnsuccessful):
    """The run was cancelled."""

    code = "run_cancelled"


class ToolResultInvalid(DurableError):
    """The tool returned a value that can't be recorded."""

    code = "tool_result_invalid"


class DecisionExpired(DurableError):
    """Nobody answered a tool call in time."""

    code = "decision_expired"


class UnfitRequest(DurableError):
    """The run was asked for what its agent can't do."""

    code = "unfit_request"


class GuardrailFailed(DurableError):
    """A guardrail failed: it can't be told whether the run may go on."""

    code = "guardrail_failed"


class LedgerCorrupt(DurableError):
    """A recorded tool outcome can't be read."""

    code = "ledger_corrupt"


class ServerUnreachable(DurableError):
    """The server can't be reached."""

    code = "server_unreachable"
