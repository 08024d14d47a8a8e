"""Where an attempt starts from: the checkpoint, the ledger, and what the log has beyond them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart
from pydantic_ai.usage import RunUsage
from pydantic_core import to_json

from durable import checkpoint
from durable.checkpoint import Progress
from durable.conversation import Conversation
from durable.execution.tail import Tail
from durable.runs import RunRecord, Runs, ToolCallRequest
from durable.store import Store


@dataclass(frozen=True)
class StartPoint:
    """What earlier attempts have left.

    Attributes:
        conversation: What the run was given.
        progress: The last checkpoint; None when no model response was ever completed.
        ledger: Recorded outcomes of tool calls.
        tail: The log beyond the checkpoint.
        decisions: How many answers calls of the run had had before the ledger was read.
        taken_from: The run in which the model made the calls of the checkpoint, if that is another.
    """

    conversation: Conversation
    progress: Progress | None = None
    ledger: dict[str, bytes] = field(default_factory=dict)
    tail: Tail = field(default_factory=Tail)
    decisions: int = 0
    taken_from: str | None = None

    @classmethod
    async def load(
        cls, store: Store, runs: Runs, record: RunRecord, conversation: Conversation, call: ToolCallRequest | None
    ) -> StartPoint:
        """Read what is stored of a claimed run.

        Args:
            store: Where it is.
            runs: The runs of the deployment.
            record: The run.
            conversation: What it was given.
            call: The tool call that it makes, if it is a background task: it starts where a model has made that call.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        entries = await runs.checkpoints(record.run_id)
        seq = record.checkpoint_seq
        return cls(
            conversation,
            checkpoint.decode(conversation.history, entries, seq) if call is None else _called(record.run_id, call),
            await runs.ledger(record.run_id) if entries or record.last_seq or record.decisions else {},
            await Tail.read(store, record.run_id, seq, record.last_seq) if record.last_seq > seq else Tail(),
            record.decisions,
            record.taken_from if len(entries) == record.taken else None,
        )

    def maker_of(self, step: int, run_id: str) -> str:
        """The run in which the model made the calls of a step: a retry goes on with those of another run.

        Args:
            step: The step.
            run_id: The run that is executed.
        """
        begun = self.progress is not None and self.progress.steps == step
        return self.taken_from if begun and self.taken_from is not None else run_id


def _called(run_id: str, call: ToolCallRequest) -> Progress:
    """What a checkpoint would have where a model has made one call."""
    # As JSON, as the model has written them: a strict tool takes no date from a text otherwise.
    part = ToolCallPart(call.tool_name, to_json(call.args).decode(), call.tool_call_id)
    messages: list[ModelMessage] = [ModelRequest(parts=[]), ModelResponse(parts=[part])]
    return Progress(messages=messages, before=RunUsage(), usage=RunUsage(), steps=1, message_id=run_id)
