"""The scripts on a real Redis, driven at random, against a model of plain Python.

The model knows of each run its status, its token, its log and what each writer sent; whatever a script answers and
stores has to be what the model says. Time passes only when the model says so: leases and wake-ups are due or not.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from durable.chunks import Chunk, encode_body
from durable.decisions import DEADLINE, HANDLER, Answer, Call, Decisions, Question
from durable.errors import AlreadyDecided, LeaseLost, RunConflict, RunEnded, UnknownCall
from durable.journal import read
from durable.leases import Lease, Refusal, claim, release, suspend
from durable.messages import Messages
from durable.scripts import APPEND, FINISH, RENEW, REQUEUE
from durable.store import Store, text
from durable.views import RunStatus
from tests.workbench import Workbench, delta, on

FAR_MS: Final = 3_600_000
EVERYWHERE: Final = os.environ.get("CHAOS") == "all"
SEED: Final = int(os.environ.get("SEED", "1"))
RETENTION: Final = 3600
"""Seconds: no run that has ended expires before its case is over."""
RUNS: Final = st.integers(0, 5)
"""Which run: any of three, or one of those that are executed. What is refused otherwise is seldom worth a step."""
LIVE: Final = ("queued", "running", "suspended")
CALLS: Final = st.sampled_from(["c1", "c2"])


@dataclass
class Sent:
    """A batch that a writer has sent: what it has to get when it sends it again."""

    number: int
    bodies: list[bytes]
    first: int
    last: int


@dataclass
class Waited:
    """A call that waits, or waited.

    Attributes:
        round: How often it was answered before.
        due: Whether it has a deadline. It comes when the model says so.
        answer: What was answered; None while it waits.
    """

    round: int
    due: bool
    answer: Answer | None = None


@dataclass
class Model:
    """What is to be expected of one run.

    Attributes:
        status: Of the run.
        token: Of its newest claim.
        claims: Claims without progress.
        held: Whether that claim's lease is there and not over.
        leased: Whether it is there.
        woken: Whether a wake-up is noted; it is always due.
        cancelled: Whether a cancel was asked for.
        seen: Decisions that the newest owner knows of.
        heard: Messages that its model was told.
        decisions: Answers that were given, and messages.
        messages: What was said, by the messages' ids.
        calls: Calls that wait, or waited, by their ids.
        log: Bodies and attempts, in order.
        writers: What the writer of each token sent last.
    """

    run_id: str
    status: str = "queued"
    token: int = 0
    claims: int = 0
    held: bool = False
    leased: bool = False
    woken: bool = True
    cancelled: bool = False
    seen: int = 0
    heard: int = 0
    decisions: int = 0
    messages: dict[str, str] = field(default_factory=dict)
    calls: dict[str, Waited] = field(default_factory=dict)
    log: list[tuple[int, bytes]] = field(default_factory=list)
    writers: dict[int, Sent] = field(default_factory=dict)

    def write(self, attempt: int, bodies: list[bytes]) -> tuple[int, int]:
        first = len(self.log) + 1
        self.log += [(attempt, body) for body in bodies]
        return first, len(self.log)

    @property
    def asks(self) -> bool:
        """Whether a call waits for an answer."""
        return any(waited.answer is None for waited in self.calls.values())

    @property
    def owes(self) -> bool:
        """Whether a call that was approved has not been made: none is, but those that are asked about again."""
        return any(waited.answer is not None and waited.answer.kind == "approve" for waited in self.calls.values())

    def look(self) -> None:
        """The owner hears of all that was said."""
        self.seen, self.heard = self.decisions, len(self.messages)

    def end(self, status: str) -> None:
        self.status, self.held, self.leased, self.woken = status, False, False, False


class Runs(RuleBasedStateMachine):
    """Up to three runs of one deployment, and everything that may happen to them."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench = Workbench(on(self.url, lease_seconds=FAR_MS / 1000))
        self.store: Store = self.bench.store
        self.keys = self.store.keys
        self.decisions = Decisions(self.store, self.bench.runs)
        self.messages = Messages(self.store, self.bench.runs)
        self.models: list[Model] = []
        self.words = 0

    def teardown(self) -> None:
        self.loop.run_until_complete(self.bench.store.aclose())
        self.loop.close()

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def bodies(self, count: int) -> list[bytes]:
        self.words += count
        return [encode_body(delta(str(self.words - i))) for i in range(count)]

    def pick(self, run: int) -> Model:
        executed = [model for model in self.models if model.status == "running"]
        among = executed if run > 2 and executed else self.models
        return among[run % len(among)]

    def claimable(self) -> list[Model]:
        return [model for model in self.models if model.status in {"queued", "running"}]

    @precondition(lambda self: len(self.models) < 3)
    @rule(at=st.sampled_from(["queued", "executed", "asking"]))
    def create(self, at: str) -> None:
        """A run begins; some are executed at once, or ask for an answer: most other rules need one that does."""
        model = Model(self.do(self.bench.create(retention=RETENTION)))
        self.do(self.store.redis.zadd(self.keys.wakeups, {model.run_id: 0}, xx=True))
        self.models.append(model)
        if at != "queued":
            self.take(model)
        if at == "asking":
            self.ask(model, model.token, "c1", due=True)

    @precondition(lambda self: self.models)
    @rule(run=RUNS)
    def claim(self, run: int) -> None:
        self.take(self.pick(run))

    def take(self, model: Model) -> None:
        found = self.do(claim(self.store, self.bench.settings, model.run_id, "me"))
        if model.status not in LIVE:
            assert found == Refusal("ended")
        elif model.status == "suspended":
            assert found == Refusal("suspended")
        elif model.held:
            assert found == Refusal("held")
        else:
            model.token, model.claims, model.status = model.token + 1, model.claims + 1, "running"
            model.held, model.leased, model.woken = True, True, False
            model.look()
            assert isinstance(found, Lease)
            assert (found.token, found.last_seq, found.claims) == (model.token, len(model.log), model.claims)

    @precondition(lambda self: self.claimable())
    @rule(nth=RUNS)
    def take_over(self, nth: int) -> None:
        """An owner takes a run that nobody executes, or from one whose time is over."""
        found = self.claimable()
        model = found[nth % len(found)]
        self.lose(model)
        self.take(model)

    @precondition(lambda self: self.models)
    @rule(run=RUNS, behind=st.integers(0, 2), count=st.integers(0, 3), progress=st.booleans())
    def append(self, run: int, behind: int, count: int, *, progress: bool) -> None:
        """The next batch of a writer, of the newest token or of an older one."""
        model = self.pick(run)
        token, bodies = model.token - behind, self.bodies(count)
        number = model.writers[token].number + 1 if token in model.writers else 1
        answer = self.do(self._append(model, token, number, bodies, progress=progress))
        if model.status != "running" or token != model.token:
            assert answer == ["fenced"]
            return
        first, last = model.write(token, bodies)
        model.claims = 0 if progress else model.claims
        model.writers[token] = Sent(number, bodies, first, last)
        assert answer == ["written", first, last]

    @precondition(lambda self: any(model.writers for model in self.models))
    @rule(run=RUNS, nth=st.integers(0, 2))
    def append_again(self, run: int, nth: int) -> None:
        """A batch that was written is sent again: by the newest owner, however the run stands, or by one before it."""
        model = self.pick(run)
        sent = list(model.writers.items())
        if sent:
            token, batch = sent[-1 - nth % len(sent)]
            answer = self.do(self._append(model, token, batch.number, batch.bodies))
            assert answer == (["seen", batch.first, batch.last] if token == model.token else ["fenced"])

    @precondition(lambda self: self.models)
    @rule(run=RUNS)
    def append_with_a_gap(self, run: int) -> None:
        model = self.pick(run)
        sent = model.writers.get(model.token)
        answer = self.do(self._append(model, model.token, (sent.number if sent else 0) + 2, self.bodies(1)))
        assert answer == (["gap"] if model.status == "running" else ["fenced"])

    @precondition(lambda self: self.models)
    @rule(
        run=RUNS,
        behind=st.integers(0, 1),
        status=st.sampled_from(["completed", "failed", "cancelled"]),
        settled=st.booleans(),
    )
    def finish(self, run: int, behind: int, status: str, *, settled: bool) -> None:
        """An owner ends a run: whatever is open, or `settled`, not before all is answered, made and heard."""
        model = self.pick(run)
        token, bodies = model.token - behind, self.bodies(1)
        sent = model.writers.get(token)
        number = sent.number + 1 if sent else 1
        answer = self.do(self._finish(model, token, number, bodies, status, settled=settled))
        if model.status != "running" or token != model.token:
            assert answer == ["fenced"]
        elif model.cancelled and status != "cancelled":
            assert answer == ["cancel"]
        elif settled and (model.asks or model.owes):
            assert answer == ["open"]
        elif settled and len(model.messages) > model.heard:
            assert answer == ["unheard"]
        else:
            first, last = model.write(token, bodies)
            model.claims = 0
            model.writers[token] = Sent(number, bodies, first, last)
            model.end(status)
            assert answer == ["written", first, last]

    @precondition(lambda self: self.models)
    @rule(run=RUNS, behind=st.integers(0, 1), call=CALLS, due=st.booleans())
    def announce(self, run: int, behind: int, call: str, *, due: bool) -> None:
        """A call begins to wait: for the first time, or again after it was answered."""
        model = self.pick(run)
        self.ask(model, model.token - behind, call, due=due)

    def ask(self, model: Model, token: int, call: str, *, due: bool) -> None:
        bodies, before = self.bodies(1), model.calls.get(call)
        if before is not None and before.answer is None:
            return  # nobody asks twice
        place = 0 if before is None else before.round + 1
        number = model.writers[token].number + 1 if token in model.writers else 1
        asked = Question(tool_name="pay", kind="approval").to_json()
        waits: list[Any] = [call, f"1 {place}", asked, FAR_MS if due else ""]
        answer = self.do(self._append(model, token, number, bodies, waits=waits))
        if model.status != "running" or token != model.token:
            assert answer == ["fenced"]
            return
        first, last = model.write(token, bodies)
        model.writers[token] = Sent(number, bodies, first, last)
        model.calls[call] = Waited(place, due)
        assert answer == ["written", first, last]

    @precondition(lambda self: any(model.calls for model in self.models))
    @rule(run=RUNS, call=CALLS, kind=st.sampled_from(["approve", "decline"]))
    def decide(self, run: int, call: str, kind: Any) -> None:
        """Somebody answers: first, again in the same way, in another way, or too late."""
        model = self.pick(run)
        waited, answer = model.calls.get(call), Answer(kind=kind, actor="somebody")
        deciding = self.decisions.decide(model.run_id, call, answer)
        if waited is None:
            with pytest.raises(UnknownCall):
                self.do(deciding)
        elif waited.answer is not None:
            if waited.answer.digest() == answer.digest():  # a deadline's reason makes another answer of it
                assert self.do(deciding) is None
            else:
                with pytest.raises(AlreadyDecided):
                    self.do(deciding)
        elif model.status not in LIVE:
            with pytest.raises(RunEnded):
                self.do(deciding)
        else:
            self._decided(model, waited, answer, self.do(deciding))

    @precondition(lambda self: any(model.calls for model in self.models))
    @rule(run=RUNS, call=CALLS, passed=st.booleans())
    def reach_a_deadline(self, run: int, call: str, *, passed: bool) -> None:
        """A sweeper acts on a deadline that it saw; it may be gone by now, or not have passed."""
        model = self.pick(run)
        waited, answer = model.calls.get(call), Answer(kind="decline", reason="late", actor=DEADLINE)
        if waited is None or waited.answer is not None or model.status not in LIVE:
            return
        if passed:
            member = {f"{model.run_id}:{call}": 0}
            assert self.do(self.store.redis.zadd(self.keys.deadlines, member, xx=True, ch=True)) == waited.due
        deciding = self.decisions.decide(model.run_id, call, answer, due=True)
        if passed and waited.due:
            self._decided(model, waited, answer, self.do(deciding))
        else:
            with pytest.raises(UnknownCall):
                self.do(deciding)

    @precondition(lambda self: any(model.calls for model in self.models))
    @rule(run=RUNS, behind=st.integers(0, 1), call=CALLS, kind=st.sampled_from(["approve", "decline"]))
    def settle(self, run: int, behind: int, call: str, kind: Any) -> None:
        """An attempt's own code answers, of the newest token or of an older one: what was answered before stands."""
        model = self.pick(run)
        waited, answer = model.calls.get(call), Answer(kind=kind, actor=HANDLER)
        if waited is None:
            return
        settling = self.decisions.settle(model.run_id, model.token - behind, call, (1, waited.round), answer)
        if waited.answer is not None:
            assert _said(self.do(settling)) == waited.answer
        elif model.status != "running" or behind:
            with pytest.raises(LeaseLost):
                self.do(settling)
        else:
            assert _said(self.do(settling)) == answer
            self._decided(model, waited, answer, None)

    @precondition(lambda self: self.models)
    @rule(run=RUNS, message=st.sampled_from(["m1", "m2", "m3"]), said=st.sampled_from(["go on", "stop"]))
    def tell(self, run: int, message: str, said: str) -> None:
        """Somebody leaves a message for the model: first, again, another one with the same id, or too late."""
        model = self.pick(run)
        telling = self.messages.send(model.run_id, said, message_id=message)
        if message in model.messages:
            if model.messages[message] == said:
                assert self.do(telling) == (False, None)
            else:
                with pytest.raises(RunConflict):
                    self.do(telling)
        elif model.status not in LIVE or model.cancelled:
            with pytest.raises(RunEnded):
                self.do(telling)
        else:
            assert self.do(telling) == (True, None)
            model.messages[message] = said
            model.decisions += 1

    def _decided(self, model: Model, waited: Waited, answer: Answer, woken: Any) -> None:
        """An answer was the first one: it is in the log, and the run is woken if it waits for it."""
        assert (woken is not None) == (model.status == "suspended")
        waited.answer = answer
        model.decisions, model.claims = model.decisions + 1, 0
        model.log.append((0, b""))
        if model.status == "suspended":
            model.status, model.woken = "queued", True
            self.do(self.store.redis.zadd(self.keys.wakeups, {model.run_id: 0}, xx=True))

    @precondition(lambda self: self.models)
    @rule(run=RUNS)
    def look_for_answers(self, run: int) -> None:
        """The owner hears of the answers, and of the messages."""
        model = self.pick(run)
        found, seen = self.do(self.decisions.answers(model.run_id))
        model.look()
        assert seen == model.seen
        assert sorted(answer.data for answer in found.values() if answer.kind == "message") == sorted(
            model.messages.values()
        )

    @precondition(lambda self: self.models)
    @rule(run=RUNS, behind=st.integers(0, 1), asking=st.booleans())
    def suspend(self, run: int, behind: int, *, asking: bool) -> None:
        """An owner gives the run up until somebody answers; not if somebody has, and it does not know; nor, `asking`,
        if nobody was asked.
        """
        model = self.pick(run)
        lease = Lease(model.run_id, model.token - behind, 0, 0)
        verdict = self.do(suspend(self.store, lease, model.seen, {"reason": "decision"}, asking=asking))
        if model.status == "suspended" and not behind:
            assert verdict == "suspended"
        elif model.status != "running" or behind:
            assert verdict == "fenced"
        elif model.cancelled:
            assert verdict == "cancel"
        elif model.seen != model.decisions:
            assert verdict == "decided"
        elif asking and not model.asks:
            assert verdict == "unasked"
        else:
            assert verdict == "suspended"
            model.status, model.held, model.leased, model.claims = "suspended", False, False, 0

    @precondition(lambda self: self.models)
    @rule(run=RUNS)
    def cancel(self, run: int) -> None:
        model = self.pick(run)
        cancelling = self.bench.runs.cancel(model.run_id)
        if model.status in {"completed", "failed"}:
            with pytest.raises(RunEnded):
                self.do(cancelling)
            return
        assert self.do(cancelling) is (model.status != "cancelled")
        if model.status == "cancelled":
            return
        model.cancelled = True
        if not model.held:
            written = self.do(self._chunks(model))[-2:]
            assert [chunk.type for chunk in written] == ["abort", "finish"]
            model.log += [(0, b""), (0, b"")]
            model.end("cancelled")

    @precondition(lambda self: self.models)
    @rule(run=RUNS, behind=st.integers(0, 1))
    def release(self, run: int, behind: int) -> None:
        model = self.pick(run)
        lease = Lease(model.run_id, model.token - behind, 0, 0)
        released = self.do(release(self.store, lease, wake_after=-1))
        assert released is (model.status == "running" and not behind)
        if released:
            model.status, model.held, model.leased, model.woken = "queued", False, False, True
            model.claims = max(model.claims - 1, 0)

    @precondition(lambda self: self.models)
    @rule(run=RUNS)
    def expire(self, run: int) -> None:
        """The lease of a run runs out."""
        self.lose(self.pick(run))

    def lose(self, model: Model) -> None:
        member = {f"{model.run_id}:{model.token}": 0}
        assert self.do(self.store.redis.zadd(self.keys.leases, member, xx=True, ch=True)) == model.held
        model.held = False

    @precondition(lambda self: self.models)
    @rule(run=RUNS, behind=st.integers(0, 1))
    def renew(self, run: int, behind: int) -> None:
        """An owner renews: also when its time is over, as long as nobody has noticed."""
        model = self.pick(run)
        member = f"{model.run_id}:{model.token - behind}"
        [kept] = self.do(self.store.run(RENEW, [self.keys.leases], [FAR_MS, member]))
        assert bool(kept) is (model.leased and not behind)
        model.held = model.held or bool(kept)

    @precondition(lambda self: self.models)
    @rule(run=RUNS, behind=st.integers(0, 1))
    def requeue_a_lost_run(self, run: int, behind: int) -> None:
        """A sweeper acts on a lease that it saw, now or a while ago."""
        model = self.pick(run)
        again = self.do(self._requeue(model, str(model.token - behind)))
        assert again == (model.leased and not model.held and not behind)
        if again:
            model.status, model.leased, model.woken = "queued", False, True

    @precondition(lambda self: self.models)
    @rule(run=RUNS)
    def wake_again(self, run: int) -> None:
        """A sweeper repeats a wake-up."""
        model = self.pick(run)
        assert self.do(self._requeue(model, "")) == (model.woken and model.status == "queued")

    @precondition(lambda self: any(model.log for model in self.models))
    @rule(run=RUNS, where=st.floats(0, 1))
    def observe(self, run: int, where: float) -> None:
        """A reader comes from anywhere."""
        model = self.pick(run)
        after = int(where * len(model.log))
        entries = self.do(read(self.store, model.run_id, after, limit=10_000))
        seqs = [entry.first + i for entry in entries for i in range(len(entry.bodies))]
        assert seqs == list(range(after + 1, len(model.log) + 1))

    @invariant()
    def the_log_and_the_record_are_as_they_should_be(self) -> None:
        for model in self.models:
            record = self.do(self.bench.runs.get(model.run_id))
            assert (record.status, record.token, record.last_seq) == (model.status, model.token, len(model.log))
            entries = self.do(read(self.store, model.run_id, 0, limit=10_000))
            found = [(entry.attempt, body) for entry in entries for body in entry.bodies]
            assert [(attempt, body if attempt else b"") for attempt, body in found] == model.log

    @invariant()
    def calls_that_wait_are_in_the_indexes_and_no_others(self) -> None:
        waiting = {
            f"{model.run_id}:{call}": waited.due
            for model in self.models
            for call, waited in model.calls.items()
            if waited.answer is None and model.status in LIVE
        }
        inbox, deadlines = self.do(self._waiting())
        assert {text(member) for member in inbox} == set(waiting)
        assert {text(member) for member in deadlines} == {member for member, due in waiting.items() if due}
        for model, calls in zip(self.models, self.do(self._calls()), strict=True):
            found = {call.tool_call_id: (call.round, _said(call.answer)) for call in calls}
            assert found == {name: (waited.round, waited.answer) for name, waited in model.calls.items()}

    @invariant()
    def every_run_is_leased_or_waits_or_has_ended(self) -> None:
        for model in self.models:
            leased, waits, *places = self.do(self._places(model))
            assert {"queued": waits and not leased, "running": leased and not waits}.get(
                model.status, not leased and not waits
            )
            indexed = [status for status, there in zip(RunStatus, places, strict=True) if there]
            assert indexed == [model.status]

    async def _chunks(self, model: Model) -> list[Chunk]:
        return await self.bench.chunks(model.run_id)

    def _names(self, run_id: str) -> list[str]:
        keys = self.keys
        names = [keys.run(run_id), keys.log(run_id), keys.checkpoints(run_id), keys.ledger(run_id)]
        return [*names, keys.calls(run_id), keys.pending, keys.deadlines]

    async def _places(self, model: Model) -> list[bool]:
        """Whether the run is in the index of leases, of wake-ups, and of each status."""
        async with self.store.redis.pipeline(transaction=False) as pipe:
            pipe.zscore(self.keys.leases, f"{model.run_id}:{model.token}")
            for index in (self.keys.wakeups, *(self.keys.runs(status=status) for status in RunStatus)):
                pipe.zscore(index, model.run_id)
            return [score is not None for score in await pipe.execute()]

    async def _waiting(self) -> list[list[bytes]]:
        """The calls that wait, and those with a deadline, by their indexes."""
        async with self.store.redis.pipeline(transaction=False) as pipe:
            for index in (self.keys.pending, self.keys.deadlines):
                pipe.zrange(index, 0, -1)
            found: list[list[bytes]] = await pipe.execute()
        return found

    async def _calls(self) -> list[list[Call]]:
        return await self.decisions.calls([model.run_id for model in self.models])

    async def _append(
        self,
        model: Model,
        token: int,
        number: int,
        bodies: list[bytes],
        *,
        progress: bool = False,
        waits: list[Any] | None = None,
    ) -> list[Any]:
        run_id, keys = model.run_id, self.keys
        head: list[Any] = [keys.channel(run_id), token, f"a{token}", number, len(bodies), b"\n".join(bodies)]
        args = [*head, "1" if progress else "0", "", run_id, 0, 0, *(waits or [])]
        return _plain(await self.store.run(APPEND, self._names(run_id), args))

    async def _finish(
        self, model: Model, token: int, number: int, bodies: list[bytes], status: str, *, settled: bool
    ) -> list[Any]:
        run_id, keys = model.run_id, self.keys
        names = [*self._names(run_id), keys.request(run_id), keys.tombstone(run_id), keys.leases]
        head: list[Any] = [keys.channel(run_id), token, f"a{token}", number, len(bodies), b"\n".join(bodies)]
        closed: list[Any] = ["1", model.heard] if settled else ["", ""]
        args = [*head, "", run_id, status, keys.status_indexes, 60, *closed]
        return _plain(await self.store.run(FINISH, names, args))

    async def _requeue(self, model: Model, token: str) -> bool:
        run_id, keys = model.run_id, self.keys
        names = [keys.run(run_id), keys.leases, keys.wakeups]
        args: list[Any] = [run_id, token, -1000, keys.status_indexes]
        return bool(await self.store.run(REQUEUE, names, args))


def _plain(reply: list[Any]) -> list[Any]:
    return [item if isinstance(item, int) else text(item) for item in reply]


def _said(answer: Answer | None) -> Answer | None:
    """An answer without what the store adds to it: when it came, of what tool, and where the log has it."""
    return answer and answer.model_copy(update={"tool_name": None, "at": None, "seq": None})


@pytest.fixture
def machine(redis_url: str) -> type[Runs]:
    """The machine, on the session's Redis."""
    return type("Machine", (Runs,), {"url": redis_url})


@pytest.mark.timeout(1800 if EVERYWHERE else 120)
def test_the_store_is_what_the_model_says(machine: type[Runs]) -> None:
    case: Any = (seed(SEED)(machine) if EVERYWHERE else machine).TestCase
    case.settings = settings(
        max_examples=1000 if EVERYWHERE else 20,
        stateful_step_count=40,
        deadline=None,
        derandomize=not EVERYWHERE,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    case("runTest").runTest()
