"""Putting Pydantic AI's loop back to where the last checkpoint has it: its messages, and what it counts and knows.

Invariant: an agent that goes on from a checkpoint asks, counts and tells what it would have, had it never stopped.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse
from pydantic_ai.run import AgentRun
from pydantic_ai.usage import RunUsage

from durable.conversation import Prompt
from durable.execution.aside import Asides
from durable.execution.capabilities import Resumption
from durable.execution.start import StartPoint


class Restoration:
    """Puts one attempt's loop back.

    Args:
        start: Where the attempt starts.
        asides: Have what was to be told to the model.

    Attributes:
        completed: The response that the loop has to be given instead of a request: after one that calls nothing,
            Pydantic AI would ask the model again. None when there is none, and once it was given.
        tool_retries: Failures of each tool since it last did well.
    """

    def __init__(self, start: StartPoint, asides: Asides) -> None:
        self._conversation = start.conversation
        self._progress = progress = start.progress
        self._asides = asides
        last = None if progress is None else progress.messages[-1]
        self.completed = last if isinstance(last, ModelResponse) and not last.tool_calls else None
        self.tool_retries: dict[str, int] = {} if progress is None else dict(progress.tool_retries)

    def begin(self) -> tuple[Prompt | None, list[ModelMessage], RunUsage]:
        """What the loop begins with: a prompt, the messages before it, and the usage."""
        progress = self._progress
        if progress is None:
            return self._conversation.prompt, self._conversation.history, RunUsage()
        if self.completed is not None:
            return None, progress.messages[:-1], copy(progress.before)
        return None, progress.messages, copy(progress.usage)

    def resumption(self) -> list[Resumption]:
        """The capability that gives the loop the response that is there; none when there is none."""
        return [] if self.completed is None else [Resumption(self.completed)]

    def restore(self, run: AgentRun[Any, Any]) -> None:
        """What Pydantic AI counts and knows of a run beside its messages goes on where it was."""
        progress, state = self._progress, run.ctx.state
        if progress is None:
            return
        if hasattr(state, "output_retries_used"):
            state.output_retries_used = progress.output_retries
        state.run_step = progress.steps - 1  # the step that is gone on with has yet to be entered
        if progress.tools is not None and hasattr(run.ctx.deps, "established_tool_names"):
            run.ctx.deps.established_tool_names = set(progress.tools)
        run.ctx.deps.prompt = self._conversation.prompt
        self._asides.enqueue(run, progress.enqueued)

    def restore_messages(self, run: AgentRun[Any, Any], node: Any) -> None:
        """The conversation of the checkpoint, as it was.

        Pydantic AI takes it for one that a user gives: it drops a tool's return whose call a history processor has cut
        off, joins messages, and makes the dynamic prompts anew.
        """
        progress = self._progress
        if progress is None:
            return
        if Agent.is_call_tools_node(node):
            run.ctx.state.run_step = progress.steps  # no request counts it
            run.all_messages()[:] = [*progress.messages[:-1], node.model_response]
        elif self.completed is not None and Agent.is_model_request_node(node):
            *earlier, request, _ = progress.messages
            if isinstance(request, ModelRequest):
                run.all_messages()[:] = earlier
                node.request = copy(request)  # is stamped anew

    async def give_completed(self, run: AgentRun[Any, Any], node: Any) -> Any:
        """Give the loop the response that is there, for its request; what comes then."""
        following = await run.next(node)
        self.completed = None
        if self._progress is not None:
            run.all_messages()[:-1] = self._progress.messages[:-1]
        return following

    def entered(self, ctx: RunContext[Any], *, advanced: bool) -> None:
        """A step's tools are looked up: its retry counters are those of the checkpoint, if the step is.

        Args:
            ctx: Of the step.
            advanced: Whether the attempt has got on from the checkpoint.
        """
        if not advanced and self._progress is not None and not ctx.retries:
            ctx.retries.update(self.tool_retries)
        self.tool_retries = dict(ctx.retries)
