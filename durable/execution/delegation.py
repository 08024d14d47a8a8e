"""The calls of one attempt that go on in the background: begun as runs of their own, and what becomes of them.

A call that is awaited waits as one that is executed elsewhere does. One that is deferred has a placeholder for its
result; what it comes to is told to the model before its next request, once: which results the model was told is part of
the checkpoint. So is what somebody tells the model while the run is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.usage import RunUsage

from durable import exact_json, ledger
from durable.background.dispositions import disposition_of, limits_of, placeholder, task_id
from durable.chunks import Chunk, ErrorInfo, ToolError, ToolErrorPayload, UserMessage, UserMessagePayload
from durable.chunks.base import Json
from durable.conversation import read_prompt
from durable.decisions import Answer
from durable.definition import AgentDefinition, default_queue
from durable.errors import RunConflict, RunExpired, StoreUnavailable
from durable.execution.record import return_part
from durable.execution.waits import Waits
from durable.probes import Point, Probe
from durable.runs import BACKGROUND, TASK, NewRun, Parent, RunRecord, RunRequest, ToolCallRequest
from durable.settings import Settings
from durable.suspension import RunSuspended, Suspension
from durable.tool_options import Disposition, ToolOptions
from durable.translate import outcome_chunk
from durable.translate.steps import own_usage
from durable.writer import Note, RunWriter

_USAGE = TypeAdapter(RunUsage)

Submit = Callable[[NewRun], Awaitable[RunRecord]]
ReadIdling = Callable[[], Awaitable[tuple[float | None, bool]]]


class Delegation:
    """The tasks of one attempt.

    Args:
        definition: The agent.
        record: The run.
        request: What it is asked to do.
        settings: Limits.
        writer: Writes to its log, under the attempt's lease.
        entries: Its ledger.
        waits: Knows what its tasks have come to.
        told: The tasks whose results the model was told of, and the messages that it was told, by their names in the
            ledger.
        submit: Creates a run, and wakes somebody who executes it.
        probe: Passed at each point.
        read_idling: Tells for how long the run waits for its tasks, by what was said since it was submitted, and
            whether it has waited for so long.

    Attributes:
        max_idle: For how many seconds in a row the run waits for its tasks; None when it does not. Known at its turn's
            end.
        told: As given, with what was told since.
    """

    def __init__(
        self,
        definition: AgentDefinition,
        record: RunRecord,
        request: RunRequest,
        settings: Settings,
        writer: RunWriter,
        entries: dict[str, bytes],
        waits: Waits,
        told: Sequence[str],
        submit: Submit,
        probe: Probe,
        read_idling: ReadIdling,
    ) -> None:
        self.told = list(told)
        self.max_idle = request.max_idle
        self._read_idling = read_idling
        self._definition = definition
        self._record = record
        self._request = request
        self._settings = settings
        self._writer = writer
        self._entries = entries
        self._waits = waits
        self._submit = submit
        self._probe = probe
        self._deferred = dict(_deferred(entries))

    def disposition(self, tool: str, options: ToolOptions, chosen: Disposition | None) -> Disposition:
        """Where a call is made."""
        if self._request.tool_call is not None:
            return "foreground"  # it is a task already
        allowed = self._request.background is not False
        return disposition_of(tool, options, self._definition.background, allowed=allowed, chosen=chosen)

    async def start(
        self,
        step: int,
        round_: int,
        call: ToolCallRequest,
        options: ToolOptions,
        disposition: Disposition,
    ) -> str:
        """Start the task that makes a call; the one that is there, if an earlier attempt has. Returns its id.

        Raises:
            LimitReached: As many are executed as may be, and this one is not to wait.
            LeaseLost: The run has another owner.
        """
        lease = self._writer.lease
        awaited = disposition == "awaited"
        new = NewRun(
            run_id=task_id(lease.run_id, step, round_, call.tool_call_id),
            parent=Parent(
                run_id=lease.run_id,
                token=lease.token,
                step=step,
                round=round_,
                tool_call_id=call.tool_call_id,
                tool_name=call.tool_name,
                disposition="awaited" if awaited else "deferred",
            ),
            metadata=self._record.json("metadata"),
            limits=limits_of(
                call.tool_name,
                options,
                self._definition.name,
                self._definition.background,
                self._settings.max_tasks,
            ),
            on_limit=options.on_limit,
            **(self._task(call, options) if options.agent is None else self._sub_agent(options.agent, call, options)),
        )
        self._probe(Point.DELEGATE_BEFORE)
        task = await self._create(new)
        self._probe(Point.DELEGATE_AFTER)
        return task

    async def _create(self, new: NewRun) -> str:
        while True:
            try:
                return (await self._submit(new)).run_id
            except StoreUnavailable:
                await asyncio.sleep(0.2)  # the attempt ends when its lease does
            except (RunConflict, RunExpired):
                # Its id follows from the call: an earlier attempt has started it, if with other options of the tool.
                return str(new.run_id)

    def as_outcome(self, task: str, tool: str, disposition: Disposition) -> ledger.Outcome:
        """What is recorded of a call that a task makes."""
        if disposition == "awaited":
            return ledger.Outcome(suspended=Suspension(kind="task", payload={"taskId": task}))
        return ledger.Outcome(value=placeholder(task), task=ledger.Task(task, tool))

    def started(self, field: str, task: ledger.Task) -> None:
        """A deferred call has its placeholder."""
        self._deferred[field] = task

    def come_to(self, answer: Answer) -> tuple[ledger.Outcome, Json]:
        """What a task came to, and the usage of it.

        Raises:
            LedgerCorrupt: It can't be read.
        """
        data: Any = answer.data or {}
        outcome = ledger.decode(exact_json.dumps(data.get("entry")))
        used = data.get("usage")
        return outcome or ledger.Outcome(), None if used is None else {"usage": own_usage(used)}

    @property
    def outstanding(self) -> list[str]:
        """The deferred tasks that have not ended, as far as is known."""
        return [task.id for field, task in self._deferred.items() if self._answer(field) is None]

    @property
    def heard(self) -> int:
        """How many messages the model was told."""
        return sum(map(ledger.is_message, self.told))

    def news(self, usage: RunUsage) -> list[UserPromptPart]:
        """What the model has not been told of its tasks, and by whoever has sent messages; counts as told from now on.

        Args:
            usage: Of the run: what the tasks used is added to it.
        """
        parts: list[UserPromptPart] = []
        for field, task in self._deferred.items():
            answer = None if field in self.told else self._answer(field)
            if answer is None:
                continue
            outcome, aside = self.come_to(answer)
            if aside:
                usage.incr(_USAGE.validate_python(aside["usage"]))
            parts.append(self._tell(field, task, outcome))
            self.told.append(field)
        return parts + [self._pass_on(field, message) for field, message in self._unheard()]

    async def go_on(self, usage: RunUsage) -> ModelRequest | None:
        """The model is done. What it is told of its tasks, or by somebody; None when the run may end.

        Raises:
            RunSuspended: The run is to wait for them.
        """
        if self._unheard():
            return ModelRequest(parts=self.news(usage))
        if not self._deferred:
            return None
        idled_out = False
        with suppress(StoreUnavailable):  # then it waits as it was to wait when it was submitted
            said, idled_out = await self._read_idling()
            self.max_idle = max((each for each in (said, self.max_idle) if each is not None), default=None)
        if self.max_idle is None:
            return None
        with suppress(StoreUnavailable):  # what it has not seen keeps the run from being suspended
            await self._waits.look()
        if parts := self.news(usage):
            return ModelRequest(parts=parts)
        if self.outstanding and not idled_out:
            self._waits.judge()
            raise RunSuspended(BACKGROUND, turn_ended=True)
        return None

    def _unheard(self) -> list[tuple[str, Answer]]:
        """The messages that the model was not told, as far as they are known."""
        return [(field, message) for field, message in self._waits.messages() if field not in self.told]

    def _pass_on(self, field: str, message: Answer) -> UserPromptPart:
        """Tell what somebody has sent. The log has it once, also where the request is made again."""
        self.told.append(field)
        told = ledger.key(0, field.partition(":")[2], ledger.order(field)[1])
        if told not in self._entries:
            self._entries[told] = entry = ledger.encode(ledger.Outcome())
            actor = {} if message.actor is None else {"actor": message.actor}
            payload = UserMessagePayload(message_id=ledger.message_id(field), content=message.data, **actor)
            self._writer.write(UserMessage(payload=payload), Note(field=told, value=entry, progress=False))
        return UserPromptPart(content=read_prompt(message.data))

    def _answer(self, field: str) -> Answer | None:
        return self._waits.at(ledger.answer_to(field))

    def _tell(self, field: str, task: ledger.Task, outcome: ledger.Outcome) -> UserPromptPart:
        (step, round_), call_id = ledger.order(field), field.partition(":")[2]
        chunk, text = _result(task.tool, call_id, outcome)
        entry, result = ledger.encode(outcome), ledger.key(step, call_id, round_ + 1)
        if result not in self._entries:
            self._entries[result] = entry
            self._writer.write(chunk, Note(field=result, value=entry))
        return UserPromptPart(content=f"Background task {task.id} (tool {task.tool}, call {call_id}) {text}")

    def _task(self, call: ToolCallRequest, options: ToolOptions) -> dict[str, Any]:
        settings = self._settings
        return {
            "agent": self._definition.name,
            "kind": TASK,
            "queue": options.queue or self._record.queue,
            "request": RunRequest(tool_call=call, deps=self._request.deps),
            "retention": settings.task_retention_seconds,
            "retention_failed": settings.failed_task_retention_seconds,
        }

    def _sub_agent(self, agent: str, call: ToolCallRequest, options: ToolOptions) -> dict[str, Any]:
        return {
            "agent": agent,
            "kind": options.agent_kind,
            "nested": options.agent_nested,
            "queue": options.queue or default_queue(agent, self._settings.prefix),
            "request": RunRequest(
                prompt=call.args.get("prompt"), deps=self._request.deps, background=self._request.background
            ),
            "retention": options.agent_retention or self._settings.retention_seconds,
        }


def _deferred(entries: dict[str, bytes]) -> list[tuple[str, ledger.Task]]:
    """The calls that have a placeholder, with their tasks, in order."""
    found: list[tuple[str, ledger.Task]] = []
    for field, entry in entries.items():
        if b'"task":' in entry and not ledger.is_answer(field):
            outcome = ledger.decode(entry)
            if outcome is not None and outcome.task is not None:
                found.append((field, outcome.task))
    return sorted(found, key=lambda item: (ledger.order(item[0]), item[0]))


def _result(name: str, call_id: str, outcome: ledger.Outcome) -> tuple[Chunk, str]:
    """A task's end as a chunk, and in words for the model."""
    if outcome.raised is not None:
        error = ErrorInfo(code=outcome.raised.code, message=outcome.raised.message, name=outcome.raised.name)
        payload = ToolErrorPayload(tool_call_id=call_id, tool_name=name, error=error)
        return ToolError(payload=payload), f"failed: {error.message}"
    part = return_part(name, call_id, outcome)
    if outcome.told is None:
        return outcome_chunk(part), f"completed. Its result: {part.model_response_str()}"
    return outcome_chunk(part), f"failed: {outcome.told}"
