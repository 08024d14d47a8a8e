"""The toolset around all tools of a run: every call passes through it, whatever toolset the tool comes from.

A call whose outcome the ledger has is not made again: the outcome is replayed. Any other call is entered as started
before its body runs, and its outcome is recorded in the same step as its chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    RunCancelled,
    ToolFailed,
    UsageLimitExceeded,
)
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ToolsetTool, WrapperToolset

from durable import ledger
from durable.background.dispositions import CHOICES
from durable.chunks.base import Json
from durable.decisions import DEADLINE, HANDLER, Answer
from durable.errors import DecisionExpired, DurableError, LimitReached, ToolResultInvalid
from durable.execution.aside import Asides
from durable.execution.choice import CHOICE, choosable
from durable.execution.corrections import AnswerRefused, check_data, edited, issues_of
from durable.execution.delegation import Delegation
from durable.execution.failures import ToolFailure, places
from durable.execution.handlers import APPROVED, others_decide
from durable.execution.patience import ToolTimedOut, Voice, timeout_of
from durable.execution.record import CallRecord
from durable.execution.waits import DECLINED, Waits, options_of, tag
from durable.runs import ToolCallRequest
from durable.suspension import Suspension, read_deferral
from durable.tool_options import Disposition, OnToolError, ToolOptions, read_options
from durable.tools import CALL, ToolContext

log = logging.getLogger(__name__)

# What Pydantic AI's own loop understands. Anything else that a tool raises ends the run.
CONTROL_FLOW: Final = (RunCancelled, UsageLimitExceeded)
UNKNOWN: Final = (
    "It is not known whether this tool call took effect: the process that made it was lost. It was not repeated."
)


ApprovalCheck = Callable[[RunContext[Any], ToolDefinition, dict[str, Any]], Awaitable[bool]]


@dataclass
class _Call:
    """One call on its way.

    Attributes:
        id: The model's id for it.
        name: The tool.
        args: What the tool is called with.
        ctx: Its context.
        tool: The tool, as the toolset gives it.
        round: How many answers from outside it has had.
        answer: The last of them.
        resumed: Whether that brought data.
        data: The data.
        expired: Whether nobody has given any in time.
        asked: What it waited for, if that was data.
        again: What it waits for now, as the last answer was none.
        chosen: Where the model wants it to be made.
    """

    id: str
    name: str
    args: dict[str, Any]
    ctx: RunContext[Any]
    tool: ToolsetTool[Any]
    round: int = 0
    answer: Answer | None = None
    resumed: bool = False
    data: Any = None
    expired: bool = False
    asked: Suspension | None = None
    again: Suspension | None = None
    chosen: Disposition | None = None


class Again(BaseException):
    """Raised out of a background task whose tool has raised, and which is made again later. No hook may heal it."""


@dataclass
class RecordingToolset(WrapperToolset[Any]):
    """Wraps the assembled toolset of one attempt."""

    record: CallRecord
    waits: Waits
    asides: Asides
    context: Callable[[str, str], ToolContext]
    on_tool_error: OnToolError
    max_result_bytes: int
    entered: Callable[[RunContext[Any]], None]
    needs_approval: ApprovalCheck
    delegation: Delegation
    idempotency_key: Callable[[str], str]
    again: Callable[[BaseException], bool]
    task: ToolCallRequest | None = None
    kinds: dict[str, str] = field(default_factory=dict)

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """The tools of a step. Those that need an approval, or are executed elsewhere, are called here like all others,
        so that each is known to wait as soon as it does."""
        self.entered(ctx)
        tools = await self.wrapped.get_tools(ctx)
        for name, tool in tools.items():
            self.kinds[name] = tool.tool_def.kind
        return {name: self._shown(name, _callable(tool)) for name, tool in tools.items()}

    def _shown(self, name: str, tool: ToolsetTool[Any]) -> ToolsetTool[Any]:
        """The tool as the model is shown it: it is asked to choose where that makes a difference."""
        found = options_of(tool.tool_def)
        if not found.get("model_chooses") or self.kinds.get(name) == "external":
            return tool
        options = read_options(name, found)
        return (
            choosable(tool) if len({self.delegation.disposition(name, options, each) for each in CHOICES}) > 1 else tool
        )

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """Call the tool, or replay what it did."""
        self.waits.leave_to_caller(ctx.tool_call_id or name, name)
        chosen = tool_args.pop(CHOICE, None)
        with self.waits.busy():
            return await self._call(_Call(ctx.tool_call_id or name, name, tool_args, ctx, tool, chosen=chosen))

    async def _call(self, call: _Call) -> Any:
        approved_before = call.ctx.tool_call_approved
        while True:
            # By a handler of the agent's own: what the call has waited for before, and nothing that it waits for next.
            handled = approved_before and self.waits.recorded(call.id, call.round) is not None
            approved_before = False
            outcome = await self._outcome(call, handled=handled)
            waits = outcome.suspended
            if waits is None:
                return self._return(call, outcome)
            answer = await self.waits.answer(call.id, call.round) if waits.announced else None
            if answer is None and not handled:
                raise self.waits.deferring(call.id, waits)
            if answer is None and waits.announced:
                answer = await self.waits.settle(call.id, call.round, APPROVED)
            call.round += 1
            decided = None if answer is None else await self._apply(call, waits, answer)
            if decided is not None:
                return self._return(call, decided)

    async def _outcome(self, call: _Call, *, handled: bool) -> ledger.Outcome:
        """What the call did in this round: by the ledger, or by doing it. `handled` says whether a handler of the
        agent's own has approved it already."""
        entry = self.record.known(call.id, call.round)
        outcome = None if entry is None else ledger.decode(entry)
        if entry is not None:
            await self._restore(call, entry)
        if entry is not None and outcome is not None:
            if self.waits.is_new(call.id, call.round):
                self.asides.replay(call.ctx, outcome.aside)
            if outcome.suspended is None:
                self.record.outcomes[call.id] = call.round, entry
            elif not outcome.suspended.announced and not handled:
                return await self._wait(call, outcome)
            return outcome
        interrupted = entry is not None and entry != ledger.AGAIN
        suspension = await self._waits_for(call, interrupted=interrupted) or call.again
        if suspension is not None:
            return await self._suspend(call, suspension)
        begun = interrupted or entry == ledger.AGAIN or call.asked is not None  # here, as there was no place for a task
        return (None if begun else await self._delegate(call)) or await self._execute(call)

    async def _restore(self, call: _Call, entry: bytes) -> None:
        """Take up what the agent's own code had made of the arguments in an earlier attempt: it is not asked again."""
        args = ledger.args_of(entry)
        if args is not None and self.waits.edited_before(call.id, args):
            await _edit(call, args, replace(call.ctx, tool_call_approved=True))  # else it was not made

    async def _waits_for(self, call: _Call, *, interrupted: bool) -> Suspension | None:
        """What the call has to wait for before its body may run."""
        options = options_of(call.tool.tool_def)
        if interrupted:
            match options.get("on_crash", "retry"):
                case "ask":
                    question = ApprovalRequired({"reason": "outcome_unknown", "message": UNKNOWN})
                    return read_deferral(question, options)
                case "retry":
                    return None
                case _:
                    self._give_up(call.id, call.round, call.name)
        if call.round:
            return None
        if self.kinds.get(call.name) == "external":
            return read_deferral(CallDeferred(), options)
        if call.ctx.tool_call_approved or (self.task is not None and not self.task.unasked):
            return None  # that it may be made was settled before its task was started
        if self.kinds.get(call.name) == "unapproved" or await self.needs_approval(
            call.ctx, call.tool.tool_def, call.args
        ):
            return read_deferral(ApprovalRequired(), options)
        return None

    async def _delegate(self, call: _Call) -> ledger.Outcome | None:
        """Have the call made in the background; None when it is made here."""
        options = read_options(call.name, options_of(call.tool.tool_def))
        disposition = self.delegation.disposition(call.name, options, call.chosen)
        if disposition == "foreground" or self.kinds.get(call.name) == "external":
            return None
        try:
            task = await self.delegation.start(
                self.record.step, call.round, self._asked(call, options), options, disposition
            )
        except LimitReached as error:
            if options.on_limit == "foreground":
                return None
            outcome = ledger.Outcome(failed=error.message)
            self.record.ended(call.id, call.round, call.name, outcome, ledger.encode(outcome), None)
            return outcome
        outcome = self.delegation.as_outcome(task, call.name, disposition)
        field = await self.record.delegated(call.id, call.round, ledger.Task(task, call.name), outcome)
        if outcome.task is not None:
            self.delegation.started(field, outcome.task)
        return outcome

    def _asked(self, call: _Call, options: ToolOptions) -> ToolCallRequest:
        """The call, as its task is asked for it: with the arguments as they were given, not as they were read."""
        edited = call.answer.args if call.answer is not None else None
        args = self.waits.args(call.id) if edited is None else edited
        return ToolCallRequest(
            tool_name=call.name,
            tool_call_id=call.id,
            args={name: value for name, value in (args or {}).items() if name != CHOICE},
            idempotency_key=self.idempotency_key(call.id),
            approved=bool(call.ctx.tool_call_approved),
            retries=options.retries,
            retry_seconds=options.retry_seconds,
        )

    async def _execute(self, call: _Call) -> ledger.Outcome:
        timeout = timeout_of(options_of(call.tool.tool_def))
        edits = None
        with suppress(ToolResultInvalid):  # then it can be made only here and now
            edits = self.waits.edits(call.id)
        await self.record.started(call.id, call.round, edits)
        allowed = self.task is not None and self.task.approved
        aside, did = self.asides.begin(replace(call.ctx, tool_call_approved=True) if allowed else call.ctx), None
        context = self.context(call.id, call.name)
        voice = Voice(context.write)
        context = replace(context, resumed=call.resumed, resume=call.data, expired=call.expired, write=voice)
        token = CALL.set(context)
        try:
            try:
                async with voice.waited_for(timeout):
                    outcome = await _told(self.wrapped.call_tool(call.name, call.args, aside.ctx, call.tool))
            finally:
                did = aside.settle()
            outcome = replace(outcome, aside=did)
            recorded = self._encode(call.name, outcome)
        except (ApprovalRequired, CallDeferred) as deferral:
            return await self._suspend(call, read_deferral(deferral, options_of(call.tool.tool_def)), did)
        except BaseException as error:
            if _passes(error):
                raise
            if call.asked is not None and isinstance(error, ValidationError) and error in context.refused:
                return await self._suspend(call, call.asked.again(issues_of(error, "data")), did)
            if self.again(error):
                await self.record.again(call.id, call.round)
                raise Again from error
            self._failed(call, error, did)
        finally:
            CALL.reset(token)
        self.record.ended(call.id, call.round, call.name, outcome, recorded, tag(call.id, call.answer))
        return outcome

    async def _suspend(self, call: _Call, suspension: Suspension, aside: Json = None) -> ledger.Outcome:
        outcome = ledger.Outcome(suspended=suspension, aside=aside, args=self.waits.edits(call.id))
        if len(ledger.encode(outcome)) > self.max_result_bytes:
            raise ToolResultInvalid(
                f"The tool {call.name!r} was suspended with more than {self.max_result_bytes} bytes."
            )
        return await self._wait(call, outcome)

    async def _wait(self, call: _Call, outcome: ledger.Outcome) -> ledger.Outcome:
        """Announce the call at once, if the agent has no handlers that come first, or they were asked."""
        if not self.waits.asked and others_decide(getattr(call.ctx, "root_capability", None)):
            return self.waits.leave(call.id, call.round, outcome)
        return await self.waits.announce(call.id, call.name, call.round, outcome, call.tool.tool_def)

    def _return(self, call: _Call, outcome: ledger.Outcome) -> Any:
        self.record.came_to = outcome
        if outcome.raised is not None and outcome.raised.name == ValidationError.__name__:
            raise ModelRetry(outcome.raised.message)  # Pydantic AI has told the model what did not fit; that is lost
        if outcome.raised is not None:
            raise self._failed_before(call, outcome.raised, outcome.aside)
        return outcome.replay()

    async def _apply(self, call: _Call, waits: Suspension, answer: Answer) -> ledger.Outcome | None:
        """Go on with an answer; returns what the call comes to, if it is not to be made."""
        call.answer, call.again = answer, None
        if answer.kind == "fail":
            raise DecisionExpired
        if answer.kind == "decline":
            self.record.denied(call.id)
            return ledger.Outcome(denied=answer.reason or DECLINED)
        if answer.kind == "outcome":
            return self._come_to(call, answer)
        if waits.kind == "external":
            return self._deliver(call, answer.data)
        try:
            await _take(call, waits, answer)
        except AnswerRefused as refused:
            call.again = waits.again(refused.issues)
        except (ApprovalRequired, CallDeferred) as deferral:
            call.again = read_deferral(deferral, options_of(call.tool.tool_def))
        return None

    def _come_to(self, call: _Call, answer: Answer) -> ledger.Outcome:
        """What the call's background task came to."""
        outcome, used = self.delegation.come_to(answer)
        self.asides.replay(call.ctx, used)
        raised, told = outcome.raised, options_of(call.tool.tool_def).get("on_tool_error", self.on_tool_error)
        if raised is not None and told == "continue":
            outcome = ledger.Outcome(failed=raised.message)
        if self.record.known(call.id, call.round) is None:
            if raised is None:
                self.record.ended(call.id, call.round, call.name, outcome, ledger.encode(outcome), None)
            else:
                failure = ToolFailure(call.name, raised.code, raised.message, raised.name)
                self.record.failed(call.id, call.round, failure, ledger.encode(outcome))
        return outcome

    def _deliver(self, call: _Call, data: Any) -> ledger.Outcome:
        """The result of a call that was executed elsewhere, or that a handler gave."""
        entry = self.record.known(call.id, call.round)
        known = None if entry is None else ledger.decode(entry)
        if known is not None:
            return known
        outcome = ledger.Outcome(value=data)
        entry = self._encode(call.name, outcome)
        if self.waits.is_callers(call.name):
            self.record.told(call.id, call.round, entry)
        else:
            self.record.ended(call.id, call.round, call.name, outcome, entry, None)
        return outcome

    def _encode(self, name: str, outcome: ledger.Outcome) -> bytes:
        try:
            entry = ledger.encode(outcome)
        except ToolResultInvalid as error:
            raise ToolResultInvalid(f"The tool {name!r} returned a value that has no JSON form.") from error
        if len(entry) > self.max_result_bytes:
            raise ToolResultInvalid(f"The tool {name!r} returned more than {self.max_result_bytes} bytes.")
        return entry

    def _failed(self, call: _Call, error: BaseException, aside: Json) -> NoReturn:
        """The tool raised, or returned what can't be recorded: the run ends, or the model is told."""
        name, kind = call.tool.tool_def.name, type(error).__name__
        if isinstance(error, ToolResultInvalid):
            failure = ToolFailure(name, error.code, error.message, kind)
        elif isinstance(error, ToolTimedOut):
            failure = ToolFailure(
                name, "tool_timeout", f"The tool {name!r} took longer than {error.seconds:g} s.", kind
            )
        else:
            failure = ToolFailure(name, "tool_failed", f"The tool {name!r} raised {kind}.", kind)
        failure.__cause__ = error
        log.warning("tool %s raised %s at %s", name, kind, places(error))
        told = isinstance(error, ToolTimedOut)
        if told or options_of(call.tool.tool_def).get("on_tool_error", self.on_tool_error) == "continue":
            outcome = self.record.came_to = ledger.Outcome(failed=failure.message, aside=aside)
            self.record.failed(call.id, call.round, failure, ledger.encode(outcome))
            raise ToolFailed(failure.message) from error
        passed_on = isinstance(error, Exception) and not isinstance(error, ToolResultInvalid)
        raised = ledger.Raised(failure.code, failure.message, kind)
        entry = ledger.encode(ledger.Outcome(raised=raised, aside=aside))
        self.record.failed(call.id, call.round, failure, entry)
        self.record.ends(call.id, call.round, failure, aside)
        if passed_on:
            raise error  # as it is: a user's hooks may know it
        raise failure from error

    def _failed_before(self, call: _Call, raised: ledger.Raised, aside: Json) -> ToolFailure:
        """The failure of an attempt that was lost. Its exception is gone with it."""
        failure = ToolFailure(call.name, raised.code, raised.message, raised.name)
        self.record.ends(call.id, call.round, failure, aside)
        return failure

    def _give_up(self, call_id: str, round_: int, name: str) -> NoReturn:
        """The call was started by an attempt that was lost, and is not to be repeated."""
        failure = ToolFailure(name, "outcome_unknown", UNKNOWN)
        self.record.failed(call_id, round_, failure, ledger.encode(ledger.Outcome(failed=UNKNOWN)))
        raise ToolFailed(UNKNOWN)


async def _told(call: Awaitable[Any]) -> ledger.Outcome:
    """What a tool returned, or told the model by raising."""
    try:
        return ledger.Outcome(value=await call)
    except ModelRetry as error:
        return ledger.Outcome(retry=error.message)
    except ToolFailed as error:
        return ledger.Outcome(failed=error.message)


def _passes(error: BaseException) -> bool:
    """Whether it is not the tool's failure: what the agent's own loop understands, or the end of this attempt."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or bool(task.cancelling())  # else nobody cancelled this task: the tool raised it
    if isinstance(error, DurableError):
        return not isinstance(error, ToolResultInvalid)
    return isinstance(error, (*CONTROL_FLOW, GeneratorExit))


def _callable(tool: ToolsetTool[Any]) -> ToolsetTool[Any]:
    """The tool as one that is called, whatever it waits for."""
    if tool.tool_def.kind not in {"unapproved", "external"}:
        return tool
    return replace(tool, tool_def=replace(tool.tool_def, kind="function"))


async def _edit(call: _Call, args: dict[str, Json], ctx: RunContext[Any]) -> None:
    """Give a call other arguments. Raises what `edited` raises."""
    call.args = await edited(call.tool, ctx, args)
    call.chosen = call.args.pop(CHOICE, call.chosen)


async def _take(call: _Call, waits: Suspension, answer: Answer) -> None:
    """What the call is made with, after an answer that lets it be made.

    Raises:
        AnswerRefused: The tool's own validation has something against it.
        ApprovalRequired, CallDeferred: So does the tool's validator, who wants to have somebody asked.
    """
    approved = replace(call.ctx, tool_call_approved=True)
    # What a handler of this attempt has changed, the call was validated with.
    if answer.args is not None and not (answer.actor == HANDLER and call.ctx.tool_call_approved):
        await _edit(call, answer.args, approved)
    if waits.kind == "resume":
        call.asked = waits
        if answer.kind == "resume":
            check_data(waits, answer.data)
        call.resumed, call.data, call.expired = answer.kind == "resume", answer.data, answer.actor == DEADLINE
        return
    call.ctx = approved
