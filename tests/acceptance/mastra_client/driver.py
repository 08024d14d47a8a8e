"""The Node process that holds Mastra's client, and what its calls give, as seen from a test.

Invariant: whatever a call gave is kept in the order in which the client gave it.
"""

from __future__ import annotations

import itertools
import json
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.caller import Body

FOLDER: Final = Path(__file__).parent
CALL_SECONDS: Final = 20.0


class ClientFailed(Exception):
    """The client gave an error.

    Attributes:
        name: The class of the error.
        status: Of the HTTP answer, if one came.
        body: Of the HTTP answer, if one came.
    """

    def __init__(self, error: Body) -> None:
        super().__init__(f"{error.get('name')}: {error.get('message')}")
        self.name: str = error.get("name", "")
        self.status: int | None = error.get("status")
        self.body: Any = error.get("body")


class Call:
    """A call of the client that is under way or over.

    Attributes:
        chunks: What `onChunk` was given, or the stream gave.
        complaints: What the client wrote to the console.
        executed: The arguments with which functions of the caller were called.
        did: What came of orders about this call.
        headers: Of the answer, once it is there, for calls that give a stream.
    """

    def __init__(self, driver: Driver, number: int) -> None:
        self.chunks: list[Body] = []
        self.complaints: list[str] = []
        self.executed: list[Any] = []
        self.did: list[Any] = []
        self.headers: Body | None = None
        self._driver = driver
        self._number = number
        self._over = False
        self._value: Any = None
        self._error: Body | None = None

    def take(self, event: Body) -> None:
        """Note what the driver tells of this call."""
        match event["event"]:
            case "opened":
                self.headers = event.get("headers", {})
            case "chunk":
                self.chunks.append(event["chunk"])
            case "complaint":
                self.complaints.append(event["text"])
            case "executed":
                self.executed.append(event["args"])
            case "did":
                self.did.append(event["value"])
            case _:
                self._over, self._value, self._error = True, event.get("value"), event.get("error")

    def until(self, condition: Callable[[Call], object], what: str = "the client to get on") -> Self:
        """Wait until something is so. A call that ends before fails the test."""
        self._driver.wait(lambda: self._over or bool(condition(self)), what)
        assert condition(self), f"ended before {what}: {self._error or self.types}"
        return self

    def until_open(self) -> Self:
        """Wait for the head of the answer."""
        return self.until(lambda call: call.headers is not None, "the head of the answer")

    def until_said(self, words: str) -> Self:
        """Wait until the text so far has these words."""
        return self.until(lambda call: words in call.text, f"{words!r} to be said")

    def until_type(self, kind: str) -> Self:
        """Wait for a chunk of a type."""
        return self.until(lambda call: kind in call.types, f"a chunk {kind}")

    def done(self) -> Self:
        """Wait until the client is done with it.

        Raises:
            ClientFailed: The client gave an error.
        """
        self.until_over()
        if self._error is not None:
            raise ClientFailed(self._error)
        return self

    def until_over(self) -> Self:
        """Wait until the client is done with it, whether it gave an error or not."""
        self._driver.wait(lambda: self._over, "the client to be done")
        return self

    @property
    def is_over(self) -> bool:
        """Whether the client is done with it."""
        return self._over

    @property
    def value(self) -> Any:
        """What the client returned."""
        return self.done()._value

    @property
    def text(self) -> str:
        """All text of the chunks."""
        return "".join(chunk["payload"]["text"] for chunk in self.chunks if chunk["type"] == "text-delta")

    @property
    def types(self) -> list[str]:
        """The types of the chunks."""
        return [chunk["type"] for chunk in self.chunks]

    @property
    def run_id(self) -> str:
        """The run that the first chunk is of."""
        found: str = self.until(lambda call: call.chunks, "a chunk").chunks[0]["runId"]
        return found

    @property
    def reason(self) -> str:
        """How the last turn ended."""
        found: str = self.of_type("finish")[-1]["stepResult"]["reason"]
        return found

    def of_type(self, kind: str) -> list[Body]:
        """The payloads of one type's chunks."""
        return [chunk["payload"] for chunk in self.chunks if chunk["type"] == kind]

    def tell(self, what: str) -> None:
        """Have the client `abort` (its signal), `unsubscribe` or `abortThread`."""
        self._driver.order({"of": self._number, "do": what})


class Driver:
    """The Node process. To be used as a context manager.

    Args:
        node: The program.
    """

    def __init__(self, node: str) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._process = subprocess.Popen(
            [node, "driver.mjs"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._listen, name="mastra-client", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()

    def start(self, method: str, args: Sequence[Any], **order: Any) -> Call:
        """Call a method of the client. It goes on by itself."""
        number = next(self._numbers)
        call = Call(self, number)
        self._calls[number] = call
        self.order({"id": number, "method": method, "args": [*args], **order})
        return call

    def order(self, order: Mapping[str, Any]) -> None:
        """Write an order to the process."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so. Fails the test at the deadline."""
        deadline = time.monotonic() + CALL_SECONDS
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"waited in vain for {what}"
                assert self._process.poll() is None, "the Node process has ended"
                self._changed.wait(min(left, 0.5))

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            event = json.loads(line)
            with self._changed:
                call = self._calls.get(event.get("id"))
                if call is not None:
                    call.take(event)
                    self._changed.notify_all()


class MastraClient:
    """A user of Mastra's client who talks to one agent.

    Each call is made by a client of its own, at the next of the servers.

    Args:
        driver: The Node process.
        agent: The agent's name.
        servers: The URLs of the API servers.
        options: Of the client itself.
    """

    def __init__(self, driver: Driver, agent: str, servers: Sequence[str], **options: Any) -> None:
        self.agent = agent
        self.servers = servers
        self._driver = driver
        self._options = options
        self._next = itertools.cycle(servers)

    def at(self, *servers: str, agent: str | None = None, **options: Any) -> MastraClient:
        """The same user, at other servers, with another agent, or with options of the client."""
        return MastraClient(self._driver, agent or self.agent, servers or self.servers, **options)

    def start(self, method: str, *args: Any, reconnect: Any = None) -> Call:
        """Call a method of the agent."""
        return self._driver.start(
            method, args, url=next(self._next), agent=self.agent, options=self._options, reconnect=reconnect
        )

    def call(self, method: str, *args: Any) -> Any:
        """What a method of the agent returns."""
        return self.start(method, *args).value

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the client itself returns."""
        return self.start_client(method, *args).value

    def start_client(self, method: str, *args: Any) -> Call:
        """Call a method of the client itself."""
        return self._driver.start(method, args, url=next(self._next))

    def begin(self, messages: Any, **options: Any) -> Call:
        """`stream`, and go on before it ends."""
        return self.start("stream", messages, options)

    def stream(self, messages: Any, **options: Any) -> Call:
        """`stream` to its end."""
        return self.begin(messages, **options).done()

    def observe(self, run_id: str, offset: int | None = None) -> Call:
        """`observe` to its end."""
        return self.start_observe(run_id, offset).done()

    def start_observe(self, run_id: str, offset: int | None = None) -> Call:
        """`observe`, and go on before it ends."""
        place = {} if offset is None else {"offset": offset}
        return self.start("observe", {"runId": run_id, **place})

    @contextmanager
    def open(self, method: str, *args: Any, reconnect: Any = None) -> Iterator[Call]:
        """A subscription, once the head of its answer is there. It is left at the end of the block."""
        call = self.start(method, *args, reconnect=reconnect).until_open()
        try:
            yield call
        finally:
            call.tell("unsubscribe")

    @contextmanager
    def open_client(self, method: str, *args: Any) -> Iterator[Call]:
        """A stream of the client itself that has no end, once it is there. It is left at the end of the block."""
        call = self.start_client(method, *args).until_open()
        try:
            yield call
        finally:
            call.tell("abort")


def function_that(*, returns: Any = None, throws: str | None = None) -> Body:
    """A function of the caller, as an argument of the client."""
    return {"$returns": returns} if throws is None else {"$throws": throws}


def date(moment: datetime) -> Body:
    """A date, as an argument of the client."""
    return {"$date": moment.isoformat()}


def new_id() -> str:
    """An id that nobody has used."""
    return secrets.token_hex(8)
