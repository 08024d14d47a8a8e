"""The HTTP client: submit runs, look at them, follow them, cancel them, retry them, answer their tool calls.

It needs httpx and pydantic and nothing else of this project's dependencies. Invariant: what may have reached the
server is sent again only when that is safe, and a reader gets every chunk once, in order, whatever the network does.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

import httpx

from durable.chunks import Chunk
from durable.chunks.base import Json
from durable.client.backoff import Backoff
from durable.client.bodies import beside, given, idle, idle_params
from durable.client.outage import OnOutage
from durable.client.paths import call_path, file_path, run_path, segment
from durable.client.remote import Remote
from durable.client.subscription import Subscription, TreeSubscription
from durable.client.tasks import TaskRequests
from durable.errors import RunCancelled, RunFailed
from durable.files import UNKNOWN_TYPE, RunFile
from durable.fold import Folder
from durable.views import (
    AgentPage,
    AgentView,
    ChunkPage,
    Diagnosis,
    InboxPage,
    MessagePage,
    MessageView,
    ModelMessagePage,
    RunPage,
    RunStatus,
    RunView,
    ThreadMessagePage,
)

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_QUICK: Final = Backoff(patience=15.0)
_PATIENT: Final = Backoff(patience=300.0)


class Client(TaskRequests):
    """A connection to a server of durable runs. Use it as an async context manager, or call `aclose()`.

    Every method raises a class of `durable.errors`: the one that fits the server's code, `ServerUnreachable` when
    nobody answers, `InvalidRequest` when what was given can't be sent.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float = 10.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        retry: Backoff = _QUICK,
        reconnect: Backoff = _PATIENT,
        on_outage: OnOutage | None = None,
    ) -> None:
        """Connects when it is first used.

        Args:
            base_url: The server; the environment's `DURABLE_URL` by default, else `http://127.0.0.1:8000`.
            timeout: Seconds to wait for a connection or for an answer.
            headers: Sent with each request, for example `Authorization`.
            transport: Another httpx transport, for example one that calls an ASGI app in this process.
            retry: How submits, cancels and answers are repeated while nobody answers; for 15 seconds by default.
            reconnect: How `observe`, `wait`, `result` and `text` come back to a lost server; for 5 minutes by default.
            on_outage: Called once when the server has not answered for two seconds and is tried again, with the
                error; and once when it answers again, with None. By default the log (`durable.client.outage`) has both.

        Raises:
            ConfigurationError: `base_url` is not an HTTP URL.
        """
        url = base_url or os.environ.get("DURABLE_URL") or DEFAULT_URL
        remote = Remote(url, timeout=timeout, headers=headers, transport=transport, on_outage=on_outage)
        super().__init__(remote, retry=retry, reconnect=reconnect)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Runs go on."""
        await self._server.http.aclose()

    async def submit(
        self,
        agent: str,
        prompt: str | None = None,
        *,
        messages: Sequence[Json] | None = None,
        run_id: str | None = None,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        model_settings: Mapping[str, Json] | None = None,
        max_steps: int | None = None,
        retries: int | None = None,
        deps: Json = None,
        require_tool_approval: bool | str | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        on_budget: str | None = None,
        step_seconds: float | None = None,
        thread_id: str | None = None,
        resource_id: str | None = None,
        on_busy: str | None = None,
        background: bool | None = None,
        until_idle: bool | float | None = None,
        instructions: str | None = None,
        active_tools: Sequence[str] | None = None,
        output_schema: Mapping[str, Json] | None = None,
        output_mode: str | None = None,
        client_tools: Sequence[Mapping[str, Json]] | None = None,
        on_client_tools: str | None = None,
        client_tool_seconds: float | None = None,
        include: Sequence[str] | None = None,
    ) -> RunView:
        """Start a run and return at once. Give either `prompt` or `messages`.

        It is repeated while the server can't be reached or is not ready. A run id or an idempotency key goes along
        each time, made up if need be, so that there is one run however often the request arrives.

        Args:
            agent: The agent's name.
            prompt: What the user says.
            messages: The conversation so far, as `[{role, content}]` or as Pydantic AI's message JSON.
            run_id: The id that the run shall have.
            idempotency_key: Names this request; the same key and body give the same run.
            metadata: Kept with the run.
            model_settings: Pydantic AI's model settings for this run.
            max_steps: Model requests, at most.
            retries: How often in a row it is tried again when the model's provider fails; 0 by default.
            deps: JSON for the agent's `deps_factory`.
            require_tool_approval: Whether every tool call has to be approved, or the name of the agent's policy that
                tells which; beside those that have to be anyway.
            max_tokens: Tokens that it may use, in all.
            max_seconds: Seconds that it may be executed, in all; waiting does not count.
            on_budget: `suspend` (default): when it reaches one of these it waits for `raise_budget`. `end`: it ends.
            step_seconds: Seconds that a model request and the tools that it calls may take.
            thread_id: The conversation to go on with; it is begun when there is none.
            resource_id: Whose conversation it is; the same each time.
            on_busy: With a run of the conversation that has not ended: `queue` (default) waits for it, `reject`
                refuses.
            background: False: all tool calls are made in the run, none in the background.
            until_idle: Whether the run goes on when its background tasks end after its turn, and waits for them: for 5
                minutes in a row, or for so many seconds.
            instructions: In place of the agent's own instructions.
            active_tools: Of the agent's tools, only these are given to the model.
            output_schema: JSON schema of an object: the run's output, in place of the agent's output type.
            output_mode: How the model is asked for that: `tool` (default), `native` or `prompted`.
            client_tools: Tools that the caller executes: `{name, description, parameters}`, the last a JSON schema.
            on_client_tools: `suspend` (default): a call of one waits for `resume`. `end`: the run ends with it.
            client_tool_seconds: Seconds that such a call waits before it is declined; default: for ever.
            include: Types of chunks that are only written on request. `raw`: the events of the model's provider, as
                they come; of OpenAI's and Anthropic's models. `watch`: each change of the run's state.

        Raises:
            ThreadBusy: The conversation has a run that is suspended, or any with `on_busy="reject"`; `details` tell
                which, and its calls that wait.
            ThreadConflict: The conversation belongs to another resource.
            UnknownAgent: Nobody ever announced this agent.
            RunConflict: The run id or key was used for another request.
            InvalidRequest: Something given does not fit.
            StoreUnavailable: The server has no store, for longer than `retry` is patient.
        """
        fields = {
            "prompt": prompt,
            "messages": messages,
            "runId": run_id,
            "metadata": metadata,
            "modelSettings": model_settings,
            "maxSteps": max_steps,
            "retries": retries,
            "deps": deps,
            "requireToolApproval": require_tool_approval,
            "maxTokens": max_tokens,
            "maxSeconds": max_seconds,
            "onBudget": on_budget,
            "stepSeconds": step_seconds,
            "threadId": thread_id,
            "resourceId": resource_id,
            "onBusy": on_busy,
            "background": background,
            "untilIdle": idle(until_idle),
            "instructions": instructions,
            "activeTools": active_tools,
            "outputSchema": output_schema,
            "outputMode": output_mode,
            "clientTools": client_tools,
            "onClientTools": on_client_tools,
            "clientToolSeconds": client_tool_seconds,
            "include": None if include is None else list(include),
        }
        if run_id is None and idempotency_key is None:
            idempotency_key = secrets.token_urlsafe(24)
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        path = f"/v1/agents/{segment(agent)}/runs"
        return await self._server.ask("POST", path, RunView, body=given(fields), headers=headers, backoff=self._retry)

    async def get(self, run_id: str) -> RunView:
        """The run as it is now.

        Raises:
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
        """
        return await self._server.ask("GET", run_path(run_id), RunView)

    async def messages(self, run_id: str) -> list[MessageView]:
        """The run's conversation so far, without what is under way.

        Raises:
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
        """
        return (await self._server.ask("GET", f"{run_path(run_id)}/messages", MessagePage)).messages

    async def model_messages(self, run_id: str) -> list[dict[str, Json]]:
        """The same as Pydantic AI's own message JSON; its `ModelMessagesTypeAdapter.validate_python` reads it."""
        path, params = f"{run_path(run_id)}/messages", {"format": "pydantic-ai"}
        return (await self._server.ask("GET", path, ModelMessagePage, params=params)).messages

    async def thread_messages(
        self,
        thread_id: str,
        *,
        resource_id: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> ThreadMessagePage:
        """A page of what was said in a conversation.

        Args:
            thread_id: The conversation.
            resource_id: Whose it has to be.
            newest_first: Whether to read from its end.
            limit: Messages, at most; 1 to 200. Default: 50.
            cursor: `next` of the page before, read in the same order.

        Raises:
            UnknownThread: There is none.
            ThreadConflict: It belongs to another resource.
            InvalidRequest: The limit or the cursor is not one.
        """
        params = {
            "resourceId": resource_id,
            "order": "newest" if newest_first else None,
            "limit": limit,
            "cursor": cursor,
        }
        path = f"/v1/threads/{segment(thread_id)}/messages"
        return await self._server.ask("GET", path, ThreadMessagePage, params=params)

    async def diagnosis(self, run_id: str) -> Diagnosis:
        """Why the run stands where it stands.

        Raises:
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
        """
        return await self._server.ask("GET", f"{run_path(run_id)}/diagnosis", Diagnosis)

    async def runs(
        self,
        *,
        status: RunStatus | str | None = None,
        agent: str | None = None,
        thread_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> RunPage:
        """Runs, newest first. `cursor` is the `next` of the page before."""
        params = {"status": status, "agent": agent, "threadId": thread_id, "limit": limit, "cursor": cursor}
        return await self._server.ask("GET", "/v1/runs", RunPage, params=params)

    async def agents(self) -> list[AgentView]:
        """All agents that can be asked for runs."""
        return (await self._server.ask("GET", "/v1/agents", AgentPage)).agents

    async def chunks(self, run_id: str, after: int = 0, limit: int = 200, wait: float = 0) -> ChunkPage:
        """A page of a run's log.

        Args:
            run_id: The run.
            after: The seq after which to begin.
            limit: Chunks, at most; 1 to 1000.
            wait: Seconds to wait for the first chunk when there is none yet; 0 to 30.

        Raises:
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
            InvalidRequest: `after` is negative or beyond the end, or another value is out of range.
        """
        params = {"after": after, "limit": limit, "wait": wait or None}
        return await self._server.ask("GET", f"{run_path(run_id)}/chunks", ChunkPage, params=params, extra_seconds=wait)

    def observe(
        self, run_id: str, after: int | str = 0, *, tree: bool = False, until_idle: bool | float | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """Follow a run: all chunks after the cursor, what is there and what comes, until the final one.

        A lost connection or server is come back to, from the cursor. To stop earlier, just stop reading; the run
        does not notice.

        Args:
            run_id: The run.
            after: The seq of the last chunk that its reader has, or that chunk's `cursor`.
            tree: Follow all runs that it has started with it, its tasks and sub-agents' runs, each chunk with its own
                `run_id`. Then only a chunk's `cursor` tells where to go on. The run's own final chunk is the last.
            until_idle: Whether the run, if it has not ended, goes on when its background tasks end after its turn: it
                waits for them for 5 minutes in a row, or for so many seconds.

        Raises:
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
            InvalidRequest: `after` is no cursor, negative or beyond the end.
            ServerUnreachable: The server was away for longer than `reconnect` is patient.
        """
        path, params = f"{run_path(run_id)}/chunks", idle_params(until_idle)
        if tree:
            subscription: Subscription = TreeSubscription(
                self._server, path, root=run_id, after=after, backoff=self._reconnect, params=params
            )
        else:
            subscription = Subscription(self._server, path, after=after, backoff=self._reconnect, params=params)
        return subscription.chunks()

    async def wait(self, run_id: str, timeout: float | None = None) -> RunView:  # noqa: ASYNC109  it is the API
        """The run once it has ended, however it did.

        Args:
            run_id: The run.
            timeout: Seconds to wait; None is for ever.

        Raises:
            TimeoutError: It has not ended by then. It goes on.
            UnknownRun: There is none.
        """
        async with asyncio.timeout(timeout):
            path, tries = run_path(run_id), self._reconnect.start()
            view = await self._server.ask("GET", path, RunView, backoff=self._reconnect)
            while not view.ended:
                async for _ in self.observe(run_id, view.last_seq):
                    pass
                view = await self._server.ask("GET", path, RunView, backoff=self._reconnect)
                if not view.ended:  # a copy of the store that lags behind
                    await asyncio.sleep(tries.pause() or self._reconnect.cap)
            return view

    async def result(self, run_id: str, timeout: float | None = None) -> Json:  # noqa: ASYNC109  it is the API
        """What the agent returned, as JSON, once the run has completed. `timeout` is as for `wait`.

        Raises:
            RunFailed: It failed.
            RunCancelled: It was cancelled.
            TimeoutError: It has not ended by then. It goes on.
        """
        view = await self.wait(run_id, timeout)
        if view.status is RunStatus.COMPLETED:
            return view.output
        cancelled = view.status is RunStatus.CANCELLED
        kind = RunCancelled if cancelled else RunFailed
        if view.error is None:
            raise kind(run_id, kind.code, "The run was cancelled." if cancelled else "The run failed.")
        raise kind(run_id, view.error.code, view.error.message)

    async def text(self, run_id: str) -> str:
        """All text that the run writes, once it has ended, however it did. Raises as `observe` does."""
        folder = Folder()
        async with aclosing(self.observe(run_id)) as chunks:
            async for chunk in chunks:
                folder.add(chunk)
        return folder.text

    async def file(self, run_id: str, file_id: str) -> RunFile:
        """A file that a `file` chunk of the run names by its `file_id`: one too large for the chunk.

        Raises:
            UnknownFile: The run has no such file.
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
        """
        response = await self._server.send("GET", file_path(run_id, file_id))
        return RunFile(file_id, response.headers.get("content-type", UNKNOWN_TYPE), response.content)

    async def send(
        self, run_id: str, content: str | Sequence[Json], *, message_id: str | None = None, actor: str | None = None
    ) -> RunView:
        """Tell the model of a run something before its next request; one that is about to end goes on.

        Args:
            run_id: The run.
            content: Text, or Pydantic AI user content as JSON.
            message_id: An own id for it; made up if need be, so that it is told once however often it is sent.
            actor: Who says so, for the log.

        Raises:
            InvalidRequest: The content or an id is none.
            RunConflict: The id was used for another message.
            RunEnded: The run has ended, or was told to.
            UnknownRun: There is none.
            RunExpired: Its retention has passed.
        """
        said = content if isinstance(content, str) else list(content)
        body = given({"content": said, "messageId": message_id or secrets.token_hex(16), "actor": actor})
        return await self._server.ask("POST", f"{run_path(run_id)}/messages", RunView, body=body, backoff=self._retry)

    async def cancel(self, run_id: str, reason: str | None = None) -> RunView:
        """End a run. It is cancelled soon, not at once: `wait` for it if that matters.

        Raises:
            UnknownRun: There is none.
            RunEnded: It ended otherwise before.
        """
        path = f"{run_path(run_id)}/cancel"
        return await self._server.ask("POST", path, RunView, body=given({"reason": reason}), backoff=self._retry)

    async def pending(
        self, *, agent: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> InboxPage:
        """The calls of all runs that wait for somebody, longest first. `cursor` is the `next` of the page before."""
        params = {"agent": agent, "limit": limit, "cursor": cursor}
        return await self._server.ask("GET", "/v1/pending", InboxPage, params=params)

    async def approve(
        self,
        run_id: str,
        tool_call_id: str,
        *,
        args: Mapping[str, Json] | None = None,
        actor: str | None = None,
        question: str | None = None,
        until_idle: bool | float | None = None,
    ) -> RunView:
        """Let a call that waits for approval be made. Returns the run. It is repeated as `submit` is: the same answer
        again changes nothing.

        Args:
            run_id: The run.
            tool_call_id: The call, as in the run's `pending`.
            args: Arguments to use in place of the model's; all of them.
            actor: Who answers, for the log.
            question: What is answered, as in the `question_id` of a call that waits or of a chunk. A call may be asked
                about again; with it, an answer that is repeated is never one to the next question. Default: what the
                call was asked last.
            until_idle: Whether the run goes on when its background tasks end after its turn: it waits for them for 5
                minutes in a row, or for so many seconds.

        Raises:
            UnknownRun, RunExpired, UnknownCall: There is no such run, call or question.
            AlreadyDecided: It was answered in another way; `details["decision"]` tells how, when and by whom.
            RunEnded: The run ended before it was answered.
            InvalidRequest: The call does not wait for this, or what is given does not fit its schema. It still waits.
        """
        return await self._answer(
            run_id, tool_call_id, "approve", {**given({"args": args}), **beside(actor, question, until_idle)}
        )

    async def decline(
        self,
        run_id: str,
        tool_call_id: str,
        *,
        reason: str | None = None,
        actor: str | None = None,
        question: str | None = None,
        until_idle: bool | float | None = None,
    ) -> RunView:
        """Refuse a call that waits. The model is told the reason, and goes on. Otherwise as `approve`."""
        body = {**given({"reason": reason}), **beside(actor, question, until_idle)}
        return await self._answer(run_id, tool_call_id, "decline", body)

    async def resume(
        self,
        run_id: str,
        tool_call_id: str,
        data: Json = None,
        *,
        actor: str | None = None,
        question: str | None = None,
        until_idle: bool | float | None = None,
    ) -> RunView:
        """Give a suspended call its data, or one that is executed elsewhere its result. Otherwise as `approve`."""
        return await self._answer(run_id, tool_call_id, "resume", {"data": data, **beside(actor, question, until_idle)})

    async def raise_budget(
        self, run_id: str, *, max_tokens: int | None = None, max_seconds: float | None = None, actor: str | None = None
    ) -> RunView:
        """Let a run go on that is suspended because it reached a budget. It is repeated as `cancel` is; the same again
        changes nothing.

        Args:
            run_id: The run.
            max_tokens: Tokens that it may use from now on, in all.
            max_seconds: Seconds that it may be executed from now on, in all.
            actor: Who raises it, for the log.

        Raises:
            InvalidRequest: Nothing is raised, or not above what it has used.
            UnknownRun: There is none.
            BudgetNotReached: It is not suspended because of a budget.
            RunEnded: It has ended.
        """
        fields = {"maxTokens": max_tokens, "maxSeconds": max_seconds, "actor": actor}
        path = f"{run_path(run_id)}/resume"
        return await self._server.ask("POST", path, RunView, body=fields, backoff=self._retry)

    async def retry(self, run_id: str, *, idempotency_key: str | None = None) -> RunView:
        """Start a new run where a failed or cancelled one stopped: from its last completed model response. Returns the
        new run; it is repeated as `submit` is.

        Args:
            run_id: The ended run.
            idempotency_key: Names this request; the same key for the same run gives the same new run.

        Raises:
            UnknownRun: There is none.
            RunConflict: It is neither failed nor cancelled.
        """
        headers = {"idempotency-key": idempotency_key or secrets.token_urlsafe(24)}
        path = f"{run_path(run_id)}/retry"
        return await self._server.ask("POST", path, RunView, headers=headers, backoff=self._retry)

    async def _answer(self, run_id: str, tool_call_id: str, verb: str, body: Mapping[str, Json]) -> RunView:
        path = f"{call_path(run_id, tool_call_id)}/{verb}"
        return await self._server.ask("POST", path, RunView, body=body, backoff=self._retry)
