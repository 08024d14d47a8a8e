"""The tool calls of an attempt that wait for an answer from outside: announced, answered, or left waiting.

A call is announced as soon as it is known to wait, whatever else its step still does. It is answered in place while
other calls of its step are busy; when nothing is left to do, the attempt gives the run up until somebody answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import orjson
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, ToolFailed
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import (
    DeferredToolRequests,
    DeferredToolResult,
    DeferredToolResults,
    ToolApproved,
    ToolDefinition,
    ToolDenied,
)

from durable import ledger
from durable.chunks import (
    Approval,
    ToolCallApproval,
    ToolCallApprovalPayload,
    ToolCallSuspended,
    ToolCallSuspendedPayload,
)
from durable.chunks.base import Json
from durable.decisions import HANDLER, Answer, Question, RunAnswers, question_id, read_answers
from durable.errors import DecisionExpired, StoreUnavailable, ToolResultInvalid
from durable.execution.handlers import answer_of, outcome_of
from durable.runs import BACKGROUND
from durable.suspension import MARK, RunSuspended, Suspension, read_deferral
from durable.translate import to_json_value
from durable.translate.values import to_args
from durable.writer import Note, RunWriter, Waiting

DECISION = "decision"
"""The reason of a run that waits for somebody to answer."""
DECLINED: Final = "The tool call was not approved."
MADE: Final[dict[str, Json]] = {"not": {}}
"""JSON schema of the arguments of a call that was made already: none can be changed."""


class Waits:
    """The calls of one attempt that wait.

    Args:
        writer: Writes to the run's log, under the attempt's lease.
        agent: The run's agent.
        entries: The run's ledger.
        seen: How many answers the run had had before the ledger was read.
        answers: Those that there are by now, and the way to give one.
        denied: Told of a call that was declined, or made by the caller: the log has its end.
        outcomes: What calls of the step have come to in this attempt.
        to_caller: The tools whose calls nobody waits for: the caller makes them when the run has ended.
        brought: The tools that the caller executes.

    Attributes:
        seen: How many answers this attempt knows of, at least.
        asked: Whether the deferred calls of this step were to be resolved. That is asked for once a step.
        unresolved: Whether calls of this step wait, and the agent's loop was told to go on with the others.
        left: The calls of this step that the caller makes.
    """

    def __init__(
        self,
        writer: RunWriter,
        agent: str,
        entries: dict[str, bytes],
        seen: int,
        answers: RunAnswers,
        denied: Callable[[str], None],
        outcomes: Mapping[str, tuple[int, bytes]],
        to_caller: Collection[str] = (),
        brought: Collection[str] = (),
    ) -> None:
        self._to_caller = to_caller
        self._brought = brought
        self.left: set[str] = set()
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
        self._run_answers = answers
        self._outcomes = outcomes
        self._busy = 0
        self._news = asyncio.Event()
        self._step = 0
        self._calls: Mapping[str, ToolCallPart] = {}
        self._rounds: dict[str, int] = {}
        self._left: dict[str, tuple[int, ledger.Outcome]] = {}
        self._hooked: set[str] = set()
        self._edited: dict[str, ToolApproved] = {}
        self._restored: dict[str, dict[str, Json]] = {}
        self._here: set[str] = set()
        self._kinds: dict[str, str] = {}

    def begin_step(self, step: int, calls: Mapping[str, ToolCallPart]) -> None:
        """The tools of a step are about to be called."""
        self._step, self._calls = step, calls
        self.unresolved, self.asked, self._deferred, self._judged = False, False, 0, None
        self._kinds.clear()
        self.left.clear()
        self._rounds.clear()
        self._left.clear()
        self._hooked.clear()
        self._edited.clear()
        self._restored.clear()

    def deferred(self, requests: DeferredToolRequests) -> None:
        """All calls of the step that were deferred, before anybody is asked about them.

        A hook may have deferred one after it was made. What it has come to is known from now on: the call is made again
        once it is approved, and must not do again what it did.
        """
        self._deferred = len(requests.approvals) + len(requests.calls)
        self._locate(requests)

    def _locate(self, requests: DeferredToolRequests) -> None:
        """Find where the calls wait that were not deferred as they were made, but by a validator or a hook."""
        for call in self._asked_about(requests):
            call_id = call.tool_call_id
            if call_id in self._outcomes:
                round_, entry = self._outcomes[call_id]
                field = ledger.key(self._step, call_id, round_)
                self._entries[field] = entry
                self._here.add(field)
            if call_id in self._outcomes or call_id not in self._rounds:
                self._hooked.add(call_id)
                self._rounds[call_id] = self._round_of_hook(call_id)

    def _asked_about(self, requests: DeferredToolRequests) -> list[ToolCallPart]:
        """The deferred calls that somebody else than the caller decides."""
        return [call for call in [*requests.approvals, *requests.calls] if call.tool_call_id not in self.left]

    async def decided(self, results: DeferredToolResults) -> None:
        """What the agent's own handlers, or people, say of the calls that were deferred. A question that was announced
        ends with it, and whatever was answered first holds for the agent's loop, too.

        Raises:
            LeaseLost: The run has another owner.
            ToolResultInvalid: A handler has changed the arguments of a call to what has no JSON form.
        """
        self.asked = True
        for call_id, result in results.to_tool_call_results().items():
            self._kinds.pop(call_id, None)
            round_ = self._rounds.get(call_id, 0)
            asked = self.recorded(call_id, round_)
            if asked is None or not asked.announced or asked.kind == "task":
                if isinstance(result, ToolApproved) and result.override_args is not None:
                    self._edited[call_id] = result
                continue
            answer = self.known(call_id, round_)
            if answer is None:
                answer = await self.settle(call_id, round_, answer_of(result))
                if answer.actor == HANDLER and answer.kind == "resume":
                    self._keep(call_id, round_ + 1, result)
            elif answer.actor == HANDLER and answer.kind == "resume":
                continue  # what it says now is no worse
            if answer.actor != HANDLER or answer.digest() != answer_of(result).digest():
                self._put(results, call_id, answer, approval=call_id in results.approvals)
            if answer.kind == "decline":
                self._denied(call_id)

    async def settle(self, call_id: str, round_: int, answer: Answer) -> Answer:
        """The agent's own code has decided a call that was announced. Returns the answer that stands: somebody may have
        been faster.

        Raises:
            LeaseLost: The run has another owner.
        """
        self._rounds[call_id] = round_
        found = await self._run_answers.settle(call_id, (self._step, round_), answer)
        self._answers[ledger.answer_key(self._step, call_id, round_)] = found
        with suppress(StoreUnavailable):  # what it has not seen keeps the run from being suspended
            await self.look()
        return found

    @property
    def judged(self) -> int:
        """How many answers there were when calls of this step were last found to wait: a later one was not used, even
        if it is known by now."""
        return self.seen if self._judged is None else self._judged

    @property
    def reason(self) -> str:
        """Why the run waits when calls of this step do: for somebody, or for nothing but its background tasks."""
        return BACKGROUND if set(self._kinds.values()) == {"task"} else DECISION

    @property
    def waiting_tools(self) -> set[str]:
        """The tools whose calls of this step wait."""
        return {
            self._calls[call_id].tool_name
            for call_id in self._kinds
            if call_id in self._calls and self.known(call_id, self._rounds.get(call_id, 0)) is None
        }

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

    def is_new(self, call_id: str, round_: int) -> bool:
        """Whether what the call did beside in this round has yet to be counted in this attempt; once."""
        field = ledger.key(self._step, call_id, round_)
        if field in self._here:
            return False
        self._here.add(field)
        return True

    async def look(self) -> None:
        """Take the answers that came meanwhile.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        answers, self.seen = await self._run_answers.read()
        self._answers.update(answers)
        self._tell()

    def args(self, call_id: str) -> dict[str, Json] | None:
        """What the model called it with, or a handler has made of that before anybody was asked; None when that is no
        JSON object.

        Raises:
            ToolResultInvalid: A handler has changed the arguments to what has no JSON form.
        """
        if (edits := self.edits(call_id)) is not None:
            return edits
        found = to_args(self._calls[call_id].args) if call_id in self._calls else None
        return found if isinstance(found, dict) else None

    def edits(self, call_id: str) -> dict[str, Json] | None:
        """What the agent's own code has made of the arguments of a call; None when nothing.

        Raises:
            ToolResultInvalid: It has no JSON form.
        """
        return answer_of(self._edited[call_id]).args if call_id in self._edited else self._restored.get(call_id)

    def edited_before(self, call_id: str, args: dict[str, Json]) -> bool:
        """The agent's own code has made this of the arguments of a call, in an earlier attempt. Returns whether that is
        news: what somebody has answered since stands, and what that code says in this attempt."""
        if call_id in self._edited or self._restored.get(call_id) == args:
            return False
        self._restored[call_id] = args
        return True

    def at(self, name: str) -> Answer | None:
        """An answer, by its name in the ledger, if it is known."""
        return self._answers.get(name)

    def messages(self) -> list[tuple[str, Answer]]:
        """What somebody has told the model, by its name in the ledger and in order, as far as it is known."""
        found = [(name, answer) for name, answer in self._answers.items() if ledger.is_message(name)]
        return sorted(found, key=lambda item: (item[1].at or 0, ledger.order(item[0])))

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

    async def announce(
        self, call_id: str, name: str, round_: int, outcome: ledger.Outcome, tool: Any
    ) -> ledger.Outcome:
        """Store that a call waits, and tell the observers, in one step. Returns, when that is done, what is recorded.

        Raises:
            LeaseLost: The run has another owner.
        """
        suspension = outcome.suspended
        if suspension is None:
            raise LookupError("the call does not wait")
        outcome = replace(outcome, suspended=suspension.model_copy(update={"announced": True}))
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
            of_caller=self.is_callers(name),
        )
        waiting = Waiting(call_id, self._step, round_, question.to_json(), suspension.expires_in)
        field, entry = ledger.key(self._step, call_id, round_), ledger.encode(outcome)
        self._entries[field] = entry
        self._here.add(field)
        self._writer.write(_chunk(waiting, question), Note(field=field, value=entry, waiting=waiting))
        await self._writer.flush()
        return outcome

    async def resolve(self, ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        """What is known of the calls that nobody else has resolved. If some of them wait all the same, the others are
        made, and `unresolved` is set.

        Raises:
            RunSuspended: Nothing is left to do: all of them wait.
            LeaseLost: The run has another owner.
        """
        self.asked = True
        approvals = {call.tool_call_id for call in requests.approvals}
        self._locate(requests)
        calls = self._asked_about(requests)
        for call in calls:
            metadata = requests.metadata.get(call.tool_call_id)
            deferral = ApprovalRequired(metadata) if call.tool_call_id in approvals else CallDeferred(metadata)
            await self._announce_late(ctx, call, deferral)
        with suppress(StoreUnavailable):  # what it has not seen keeps the run from being suspended
            await self.look()
        results = DeferredToolResults()
        for call in calls:
            answer = self.known(call.tool_call_id, self._rounds[call.tool_call_id])
            declined = answer is not None and answer.kind == "decline"
            if answer is None:
                self._leave_open(self.seen)
            elif answer.kind == "outcome" or (declined and call.tool_call_id not in approvals | self._hooked):
                # A denial is no result here, in Pydantic AI's eyes, and what a task came to is more than a result:
                # they are given at once where the call is made.
                self._leave_open(self.seen - 1)
                continue
            else:
                self._put(results, call.tool_call_id, answer, approval=call.tool_call_id in approvals)
            if declined or self.is_callers(call.tool_name):
                self._denied(call.tool_call_id)
        mine = len(requests.approvals) + len(requests.calls)
        if self.unresolved and mine == self._deferred and not (results.approvals or results.calls):
            raise RunSuspended(self.reason)
        return results

    @staticmethod
    def _put(results: DeferredToolResults, call_id: str, answer: Answer, *, approval: bool) -> None:
        if approval:
            results.approvals[call_id] = _approval(answer)
        else:
            results.calls[call_id] = _result(answer)

    def _keep(self, call_id: str, round_: int, result: DeferredToolResult) -> None:
        """Record what a handler gave as the result of a call: as it is, if that can be stored."""
        with suppress(ToolResultInvalid):  # its JSON is with the answer
            entry = ledger.encode(outcome_of(result))
            self._writer.note(Note(field=ledger.key(self._step, call_id, round_), value=entry))

    def recorded(self, call_id: str, round_: int) -> Suspension | None:
        """What the call waits for, or has waited for, in a round, as the ledger has it."""
        entry = self._entries.get(ledger.key(self._step, call_id, round_))
        outcome = None if entry is None else ledger.decode(entry)
        return None if outcome is None else outcome.suspended

    def deferring(self, call_id: str, suspension: Suspension) -> ApprovalRequired | CallDeferred:
        """A call is about to be deferred; what tells the agent's loop so."""
        self._kinds[call_id] = suspension.kind
        if self.asked:
            self._leave_open(self.seen)
        return suspension.deferral()

    def leave_to_caller(self, call_id: str, tool: str) -> None:
        """A call of this tool is about to be made. Goes on if it is made here.

        Raises:
            CallDeferred: The caller makes it.
        """
        if tool in self._to_caller:
            self.left.add(call_id)
            raise CallDeferred

    def is_callers(self, tool: str) -> bool:
        """Whether the caller executes this tool: who answers its calls tells their results, too."""
        return tool in self._brought

    def _leave_open(self, seen: int) -> None:
        """A call of this step waits, as far as the first `seen` answers tell."""
        self.unresolved, self._judged = True, min(seen, self.judged)

    def leave(self, call_id: str, round_: int, outcome: ledger.Outcome) -> ledger.Outcome:
        """A call is not announced before the agent's own handlers were asked. Returns what is recorded of it."""
        self._left[call_id], self._rounds[call_id] = (round_, outcome), round_
        if outcome.suspended is None or not outcome.suspended.announced:
            return outcome
        quiet = replace(outcome, suspended=outcome.suspended.model_copy(update={"announced": False}))
        note = Note(field=ledger.key(self._step, call_id, round_), value=ledger.encode(quiet), progress=False)
        self._writer.note(note)
        return quiet

    async def _announce_late(
        self, ctx: RunContext[Any], call: ToolCallPart, deferral: ApprovalRequired | CallDeferred
    ) -> None:
        """Announce a call that a validator or a hook deferred, or that the agent's own handlers left; unless that was
        done."""
        call_id = call.tool_call_id
        self._kinds.setdefault(call_id, DECISION)
        manager = getattr(ctx, "tool_manager", None)
        tool: ToolDefinition | None = manager.get_tool_def(call.tool_name) if manager is not None else None
        if call_id in self._left:
            round_, outcome = self._left[call_id]
            await self.announce(call_id, call.tool_name, round_, outcome, tool)
            return
        asked = self.recorded(call_id, self._rounds[call_id])
        if call_id in self._hooked and (asked is None or not asked.announced):
            outcome = ledger.Outcome(suspended=read_deferral(deferral, options_of(tool)))
            if call_id in self._outcomes:
                tool = ToolDefinition(name=call.tool_name, parameters_json_schema=MADE)
            await self.announce(call_id, call.tool_name, self._rounds[call_id], outcome, tool)

    def _round_of_hook(self, call_id: str) -> int:
        """Where a call waits that was not deferred as it was made: before that, or after what it has come to."""
        round_ = self._outcomes[call_id][0] + 1 if call_id in self._outcomes else 0
        while (entry := self._entries.get(ledger.key(self._step, call_id, round_))) is not None:
            outcome = ledger.decode(entry)
            if outcome is not None and outcome.suspended is not None:
                break
            round_ += 1
        return round_

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
    if answer.kind == "decline":
        return ToolDenied(answer.reason or DECLINED)
    # What a person has edited is taken up, and looked at, when the call is made.
    return ToolApproved(override_args=answer.args if answer.actor == HANDLER else None)


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
