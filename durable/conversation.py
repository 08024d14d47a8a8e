"""What a caller may say to an agent, and what Pydantic AI makes of it.

Two forms of messages are taken: `{"role", "content"}` objects, and Pydantic AI's own JSON (told by `kind`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.usage import UsageLimits

from durable.chunks.base import Json
from durable.errors import InvalidRequest
from durable.runs import RunRequest

Prompt = str | Sequence[UserContent]

_PROMPT: TypeAdapter[Any] = TypeAdapter(str | list[UserContent])
_LIMITS = TypeAdapter(UsageLimits)


class _TextContent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class _RoleMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str | list[_TextContent]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


@dataclass(frozen=True)
class Conversation:
    """What to start an agent with: a prompt, the messages before it, or messages that end with the user's.

    The first `inherited` messages of the history are those of the run's thread; the one after them begins with
    `carried` parts that the thread has, too.
    """

    prompt: Prompt | None
    history: list[ModelMessage]
    usage_limits: UsageLimits | None
    inherited: int = 0
    carried: int = 0


def prompt_to_json(prompt: Prompt) -> Json:
    """A prompt as JSON.

    Raises:
        InvalidRequest: It is no text and no user content.
    """
    try:
        return _PROMPT.dump_python(_PROMPT.validate_python(prompt), mode="json")
    except ValidationError as error:
        raise InvalidRequest("A prompt is a text or a list of user content.") from error


def read_prompt(value: Json) -> Prompt:
    """A prompt from its JSON.

    Raises:
        InvalidRequest: It is no text and no user content, or empty.
    """
    try:
        prompt: Prompt = _PROMPT.validate_python(value)
    except ValidationError as error:
        raise InvalidRequest("The content is a text or a list of user content.", field="content") from error
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise InvalidRequest("The content is empty.", field="content")
    return prompt


def messages_to_json(messages: Sequence[ModelMessage]) -> list[Json]:
    """Pydantic AI messages as JSON."""
    value: list[Json] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return value


def limits_to_json(limits: UsageLimits) -> dict[str, Json]:
    """Usage limits as JSON."""
    value: dict[str, Json] = _LIMITS.dump_python(limits, mode="json")
    return value


def read_conversation(request: RunRequest) -> Conversation:
    """What a request says; nothing, for a tool call.

    Raises:
        InvalidRequest: Neither or both of prompt and messages are given, or they are not of the right shape.
    """
    if request.tool_call is not None:
        return Conversation(None, [], None)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("Give either a prompt or messages.")
    try:
        limits = None if request.usage_limits is None else _LIMITS.validate_python(request.usage_limits)
        given = request.message_history
        # Pydantic AI builds this adapter when it is first used, which takes a while: not for nothing.
        history = ModelMessagesTypeAdapter.validate_python(given) if given else []
        if request.messages is not None:
            return _read_messages(request.messages, history, limits)
        prompt: Prompt = _PROMPT.validate_python(request.prompt)
    except ValidationError as error:
        raise InvalidRequest("The prompt, messages or usage limits are not of the right shape.") from error
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise InvalidRequest("The prompt is empty.")
    return Conversation(prompt, history, limits)


def _read_messages(values: list[Json], history: list[ModelMessage], limits: UsageLimits | None) -> Conversation:
    if not values:
        raise InvalidRequest("The messages are empty.")
    if all(isinstance(value, dict) and "kind" in value for value in values):
        messages = ModelMessagesTypeAdapter.validate_python(values)
        if not isinstance(messages[-1], ModelRequest):
            raise InvalidRequest("The last message must be a request.")
        return Conversation(None, history + messages, limits)
    roles = TypeAdapter(list[_RoleMessage]).validate_python(values)
    if roles[-1].role != "user" or not roles[-1].text.strip():
        raise InvalidRequest("The last message must be the user's, and not empty.")
    return Conversation(roles[-1].text, history + [_message(role) for role in roles[:-1]], limits)


def _message(message: _RoleMessage) -> ModelMessage:
    match message.role:
        case "assistant":
            return ModelResponse(parts=[TextPart(content=message.text)])
        case "system":
            return ModelRequest(parts=[SystemPromptPart(content=message.text)])
        case "user":
            return ModelRequest(parts=[UserPromptPart(content=message.text)])
