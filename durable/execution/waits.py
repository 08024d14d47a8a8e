"""The tool calls of an attempt that wait for an answer from outside: announced, answered, or left waiting.

A call is announced as soon as it is known to wait, whatever else its step still does. It is answered in place while
other calls of its step are busy; when nothing is left to do, the attempt gives the run up until somebody answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import orjson
from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering, WrapperCapability
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ToolFailed
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDefinition, ToolDenied

from durable import ledger
from durable.chunks import (
    Approval,
    ToolCallApproval,
    ToolCallApprovalPayload,
    ToolCallSuspended,
    ToolCallSuspendedPayload,
)
from durable.chunks.base import Json
from durable.decisions import Answer, Question, question_id, read_answers
from durable.errors import DecisionExpired, StoreUnavailable
from durable.suspension import MARK, RunSuspended, Suspension, read_deferral
from durable.translate import to_json_value
from durable.translate.values import to_args
from durable.writer import Note, RunWriter, Waiting

DECISION = "decision"
"""The reason of a run that waits for somebody to answer."""
BACKGROUND = "background"
"""The reason of a run that waits for its background tasks."""
DECLINED = "The tool call was not approved."

ReadAnswers = Callable[[], Awaitable[tuple[dict[str, Answer], int]]]


class Waits:
    """The calls of one attempt that wait.

    Args:
        writer: Writes to the run's log, under the attempt's lease.
        agent: The run's agent.
        entries: The run's ledger.
        seen: How many answers the run had had before the ledger was read.
        read: Reads the answers anew, and how many there were.
        denied: Told of a call that was declined: the log has its end.

    Attributes:
        seen: How many answers this attempt knows of, at least.
        asked: Whether the deferred calls of this step were to be resolved. That is asked for once a step.
        unresolved: Whether calls of this step wait, and the agent's loop was told to go on with the others.
    """

    def __init__(
        self,
        writer: RunWriter,
        agent: str,
        entries: dict[str, bytes],
        seen: int,
        read: ReadAnswers,
        denied: Callable[[str], None],
    ) -> None:
        self._denied = denied
        self.seen = seen
        self.unresolved = False
        self.asked = False
        self._deferred = 0
        self._judged: int | None = None
        self._writer = writer
        self._agent = agent
        self._entries = entries
        self._answers = read_answers(entries)
        self._read = read
        self._busy = 0
        self._news = asyncio.Event()
        self._step = 0
        self._calls: Mapping[str, ToolCallPart] = {}
        self._rounds: dict[str, int] = {}
        self._left: dict[str, tuple[int, ledger.Outcome]] = {}
        self._here: set[str] = set()
        self._kinds: set[str] = set()

    def begin_step(self, step: int, calls: Mapping[str, ToolCallPart]) -> None:
        """The tools of a step are about to be called."""
        self._step, self._calls = step, calls
        self.unresolved, self.asked, self._deferred, self._judged = False, False, 0, None
        self._kinds.clear()
        self._rounds.clear()
        self._left.clear()

    def deferred(self, requests: DeferredToolRequests) -> None:
        """All calls of the step that were deferred, before anybody is asked about them."""
        self._deferred = len(requests.approvals) + len(requests.calls)

    @property
    def judged(self) -> int:
        """How many answers there were when calls of this step were last found to wait: a later one was not used, even
        if it is known by now."""
        return self.seen if self._judged is None else self._judged

    @property
    def reason(self) -> str:
        """Why the run waits when calls of this step do: for somebody, or for nothing but its background tasks."""
        return BACKGROUND if self._kinds == {"task"} else DECISION

    @property
    def waited(self) -> bool:
        """Whether a call of this step waits, or has waited."""
        return bool(self._rounds)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a call is being made."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._tell()

    def began_here(self, call_id: str, round_: int) -> bool:
        """Whether it is this attempt in which the call began to wait."""
        return ledger.key(self._step, call_id, round_) in self._here

    async def look(self) -> None:
        """Take the answers that came meanwhile.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        answers, self.seen = await self._read()
        self._answers.update(answers)
        self._tell()

    def args(self, call_id: str) -> dict[str, Json] | None:
        """What the model called it with; None when that is no JSON object."""
        found = to_args(self._calls[call_id].args) if call_id in self._calls else None
        return found if isinstance(found, dict) else None

    def at(self, name: str) -> Answer | None:
        """An answer, by its name in the ledger, if it is known."""
        return self._answers.get(name)

    def judge(self) -> None:
        """What is known by now was found not to be enough: an answer that comes later was not used."""
        self._judged = self.seen

    def known(self, call_id: str, round_: int) -> Answer | None:
        """The answer to a call, if it is known."""
        return self._answers.get(ledger.answer_key(self._step, call_id, round_))

    async def answer(self, call_id: str, round_: int) -> Answer | None:
        """Wait for the answer to a call for as long as other calls of the step are busy; None when none is."""
        self._rounds[call_id] = round_
        self._busy -= 1
        self._tell()
        try:
            while (found := self.known(call_id, round_)) is None and self._busy > 0:
                await self._news.wait()
            return found
        finally:
            self._busy += 1

    async def announce(self, call_id: str, name: str, round_: int, outcome: ledger.Outcome, tool: Any) -> None:
        """Store that a call waits, and tell the observers, in one step. Returns when that is done.

        Raises:
            LeaseLost: The run has another owner.
        """
        suspension = outcome.suspended
        if suspension is None:
            raise LookupError("the call does not wait")
        self._rounds[call_id] = round_
        args = to_args(self._calls[call_id].args) if call_id in self._calls else None
        question = Question(
            tool_name=name,
            args=args,
            kind=suspension.kind,
            payload=suspension.payload,
            resume_schema=suspension.schema_,
            args_schema=getattr(tool, "parameters_json_schema", None) or {},
            on_expiry=suspension.on_expiry,
            issues=suspension.issues,
            agent=self._agent,
        )
        waiting = Waiting(call_id, self._step, round_, question.to_json(), suspension.expires_in)
        field, entry = ledger.key(self._step, call_id, round_), ledger.encode(outcome)
        self._entries[field] = entry
        self._here.add(field)
        self._writer.write(_chunk(waiting, question), Note(field=field, value=entry, waiting=waiting))
        await self._writer.flush()

    async def resolve(self, ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        """What is known of the calls that nobody else has resolved. If some of them wait all the same, the others are
        made, and `unresolved` is set.

        Raises:
            RunSuspended: Nothing is left to do: all of them wait.
            LeaseLost: The run has another owner.
        """
        self.asked = True
        approvals = {call.tool_call_id for call in requests.approvals}
        made_here = set(self._rounds)
        for call in [*requests.approvals, *requests.calls]:
            if call.tool_call_id not in self._rounds:
                metadata = requests.metadata.get(call.tool_call_id)
                deferral = ApprovalRequired(metadata) if call.tool_call_id in approvals else CallDeferred(metadata)
                await self._announce_late(ctx, call, deferral)
        with suppress(StoreUnavailable):  # what it has not seen keeps the run from being suspended
            await self.look()
        results = DeferredToolResults()
        for call in [*requests.approvals, *requests.calls]:
            answer = self.known(call.tool_call_id, self._rounds[call.tool_call_id])
            declined = answer is not None and answer.kind == "decline"
            if answer is None:
                self._leave_open(self.seen)
            elif answer.kind == "outcome" or (declined and call.tool_call_id in made_here - approvals):
                # A denial is no result here, in Pydantic AI's eyes, and what a task came to is more than a result:
                # they are given at once where the call is made.
                self._leave_open(self.seen - 1)
                continue
            elif call.tool_call_id in approvals:
                results.approvals[call.tool_call_id] = _approval(answer)
            else:
                results.calls[call.tool_call_id] = _result(answer)
            if declined:
                self._denied(call.tool_call_id)
        mine = len(requests.approvals) + len(requests.calls)
        if self.unresolved and mine == self._deferred and not (results.approvals or results.calls):
            raise RunSuspended(self.reason)
        return results

    def deferring(self, suspension: Suspension) -> ApprovalRequired | CallDeferred:
        """A call is about to be deferred; what tells the agent's loop so."""
        self._kinds.add(suspension.kind)
        if self.asked:
            self._leave_open(self.seen)
        return suspension.deferral()

    def _leave_open(self, seen: int) -> None:
        """A call of this step waits, as far as the first `seen` answers tell."""
        self.unresolved, self._judged = True, min(seen, self.judged)

    def leave(self, call_id: str, round_: int, outcome: ledger.Outcome) -> ledger.Outcome:
        """A call is not announced before the agent's own handlers were asked. Returns what is recorded of it."""
        self._left[call_id] = round_, outcome
        if outcome.suspended is None or not outcome.suspended.announced:
            return outcome
        quiet = replace(outcome, suspended=outcome.suspended.model_copy(update={"announced": False}))
        note = Note(field=ledger.key(self._step, call_id, round_), value=ledger.encode(quiet), progress=False)
        self._writer.note(note)
        return quiet

    async def _announce_late(
        self, ctx: RunContext[Any], call: ToolCallPart, deferral: ApprovalRequired | CallDeferred
    ) -> None:
        """Announce a call that a validator deferred, or that the agent's own handlers left; unless an earlier attempt
        has."""
        call_id = call.tool_call_id
        self._rounds[call_id] = 0
        self._kinds.add(DECISION)
        manager = getattr(ctx, "tool_manager", None)
        tool: ToolDefinition | None = manager.get_tool_def(call.tool_name) if manager is not None else None
        if call_id in self._left:
            round_, outcome = self._left[call_id]
            told = outcome.suspended and outcome.suspended.model_copy(update={"announced": True})
            await self.announce(call_id, call.tool_name, round_, replace(outcome, suspended=told), tool)
        elif ledger.key(self._step, call_id) not in self._entries:
            outcome = ledger.Outcome(suspended=read_deferral(deferral, options_of(tool)))
            await self.announce(call_id, call.tool_name, 0, outcome, tool)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def options_of(tool: ToolDefinition | None) -> dict[str, Any]:
    """The `durable` entry of a tool's metadata."""
    options = ((tool.metadata if tool is not None else None) or {}).get(MARK)
    return dict(options) if isinstance(options, dict) else {}


def tag(call_id: str, answer: Answer | None) -> Approval | None:
    """What the result of an approved call tells of its approval."""
    if answer is None or answer.kind != "approve":
        return None
    return Approval(id=call_id, approved=True, **({} if answer.actor is None else {"actor": answer.actor}))


def _approval(answer: Answer) -> ToolApproved | ToolDenied:
    if answer.kind == "fail":
        raise DecisionExpired
    # Edited arguments are taken up, and looked at, when the call is made.
    return ToolDenied(answer.reason or DECLINED) if answer.kind == "decline" else ToolApproved()


def _result(answer: Answer) -> Any:
    if answer.kind == "fail":
        raise DecisionExpired
    return ToolFailed(answer.reason or DECLINED) if answer.kind == "decline" else answer.data


def _chunk(waiting: Waiting, question: Question) -> ToolCallApproval | ToolCallSuspended:
    fields: dict[str, Json] = {
        "tool_call_id": waiting.tool_call_id,
        "question_id": question_id(waiting.step, waiting.round),
        "tool_name": question.tool_name,
        "resume_schema": orjson.dumps(question.resume_schema).decode(),
    }
    if question.args is not None:
        fields["args"] = question.args
    if question.payload is not None or question.kind != "approval":
        fields["suspend_payload"] = to_json_value(question.payload)
    if question.issues is not None:
        fields["issues"] = question.issues
    if question.kind == "approval":
        return ToolCallApproval(payload=ToolCallApprovalPayload(**fields))
    return ToolCallSuspended(payload=ToolCallSuspendedPayload(**fields))


class Deferral(AbstractCapability[Any]):
    """The capability that takes the deferred calls which nobody else has resolved.

    Args:
        resolve: Gives their results, or suspends the run.
    """

    def __init__(
        self, resolve: Callable[[RunContext[Any], DeferredToolRequests], Awaitable[DeferredToolResults | None]]
    ) -> None:
        self._resolve = resolve

    def get_ordering(self) -> CapabilityOrdering:
        """After all others: the agent's own handlers decide first."""
        return CapabilityOrdering(position="innermost")

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Any], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Resolve them."""
        return await self._resolve(ctx, requests)


def others_decide(root: AbstractCapability[Any] | None) -> bool:
    """Whether the agent has handlers of its own for deferred calls: a call is then not known to wait before they were
    asked."""
    found: list[bool] = []

    def visit(capability: AbstractCapability[Any]) -> None:
        own = type(capability).handle_deferred_tool_calls
        found.append(
            own is not AbstractCapability.handle_deferred_tool_calls
            and not isinstance(capability, Deferral | WrapperCapability)
        )

    if root is not None:
        root.apply(visit)
    return any(found)
