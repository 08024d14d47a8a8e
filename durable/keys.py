"""Every Redis key of a deployment. All keys start with its prefix; the keys of one run share a hash tag.

Scripts that change a run's state touch that run's keys and the deployment's indexes. On one server that is all there is
to say; on a Redis Cluster give the deployment a prefix in braces, so that all its keys live in one slot.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of keys and channels.

    | key | type | holds |
    | --- | --- | --- |
    | `run` | hash | the run's record |
    | `log` | stream | its chunks; an entry's id is `0-<seq of its last chunk>` |
    | `request` | string | what was asked for, as JSON |
    | `checkpoints` | list | what each step added to the conversation |
    | `ledger` | hash | step and tool call -> recorded outcome |
    | `calls` | hash | calls that wait or waited: `s:` state, `c:` question, `t:` since and until, `d:` answer |
    | `children` | hash | runs that it has started -> `live` or `ended` |
    | `children_order` | list | the same runs, in the order in which they were started: a child's number never changes |
    | `files` | hash | files that its chunks name -> type and content |
    | `tombstone` | string | outlives an expired run |
    | `idempotency` | string | idempotency key -> run id and request hash |
    | `runs` | sorted set | creation time -> run id; per status, agent, thread and in all |
    | `tasks` | sorted set | the same of background tasks |
    | `expiries` | sorted set | when it expires -> run id, status, agent and thread, to be taken out of `runs` |
    | `thread` | hash | a conversation: whose it is, its live run, the last that began, whose exchange is the newest |
    | `exchanges` | list | what each run of a thread has said, in order |
    | `thread_queue` | list | runs that wait for the live run of their thread, in order |
    | `leases` | sorted set | expiry -> run id and token |
    | `pending` | sorted set | since when it waits -> run id and call |
    | `deadlines` | sorted set | when it is answered by itself -> run id and call |
    | `wakeups` | sorted set | when to dispatch again -> run id |
    | `woken` | list | runs that a script has woken, to be dispatched at once |
    | `repeated:…` | string | a request without an id of its own, for a moment -> the id that it was given |
    | `limit:…` | set | tasks that are executed under a limit; `…:waiting` those that wait for a place |
    | `agents` | hash | name -> announced definition |
    | `workers` | sorted set | expiry -> live worker |
    """

    prefix: str = "durable"

    def run(self, run_id: str) -> str:
        return self._of_run(run_id, "")

    def log(self, run_id: str) -> str:
        return self._of_run(run_id, ":log")

    def request(self, run_id: str) -> str:
        return self._of_run(run_id, ":request")

    def checkpoints(self, run_id: str) -> str:
        return self._of_run(run_id, ":checkpoints")

    def ledger(self, run_id: str) -> str:
        return self._of_run(run_id, ":ledger")

    def calls(self, run_id: str) -> str:
        return self._of_run(run_id, ":calls")

    def children(self, run_id: str) -> str:
        return self._of_run(run_id, ":children")

    def children_order(self, run_id: str) -> str:
        return self._of_run(run_id, ":children:order")

    def files(self, run_id: str) -> str:
        return self._of_run(run_id, ":files")

    def tombstone(self, run_id: str) -> str:
        return self._of_run(run_id, ":tombstone")

    def channel(self, run_id: str) -> str:
        """The pub/sub channel that carries each append."""
        return self._of_run(run_id, ":live")

    def idempotency(self, agent: str, digest: str) -> str:
        return f"{self.prefix}:idempotency:{agent}:{digest}"

    def runs(self, *, status: str = "", agent: str = "", thread: str = "") -> str:
        """The index of runs, newest last, narrowed by at most one of the arguments."""
        if status:
            return f"{self.status_indexes}{status}"
        if agent:
            return f"{self.prefix}:runs:agent:{agent}"
        if thread:
            return f"{self.thread(thread)}:runs"
        return f"{self.prefix}:runs"

    # The scripts make the names of a thread, of its runs, and of a run's files, parent and children, from that of a run
    # (`lib.lua`).

    def thread(self, thread_id: str) -> str:
        return f"{self.prefix}:thread:{{{thread_id}}}"

    def exchanges(self, thread_id: str) -> str:
        return f"{self.thread(thread_id)}:exchanges"

    def thread_queue(self, thread_id: str) -> str:
        return f"{self.thread(thread_id)}:queue"

    def thread_channel(self, thread_id: str) -> str:
        """The pub/sub channel that tells which runs of a thread were created."""
        return f"{self.thread(thread_id)}:begun"

    @property
    def status_indexes(self) -> str:
        """What the names of the indexes by status start with."""
        return f"{self.prefix}:runs:status:"

    def tasks(self, *, status: str = "", agent: str = "") -> str:
        """The index of background tasks, newest last, narrowed by at most one of the arguments."""
        if status:
            return f"{self.task_status_indexes}{status}"
        return f"{self.prefix}:tasks:agent:{agent}" if agent else f"{self.prefix}:tasks"

    @property
    def task_status_indexes(self) -> str:
        """What the names of the indexes of tasks by status start with."""
        return f"{self.prefix}:tasks:status:"

    def limit(self, name: str) -> str:
        """The tasks that are executed under a limit."""
        return f"{self.prefix}:limit:{name}"

    def limit_waiting(self, name: str) -> str:
        """The tasks that wait for a place under a limit."""
        return f"{self.limit(name)}:waiting"

    @property
    def task_channel(self) -> str:
        """The pub/sub channel that carries the chunks of all background tasks."""
        return f"{self.prefix}:tasks:live"

    @property
    def task_expiries(self) -> str:
        """When ended tasks leave the indexes."""
        return f"{self.prefix}:tasks:expiries"

    @property
    def woken(self) -> str:
        """Runs that a script has woken, for whoever looks first to dispatch them."""
        return f"{self.prefix}:woken"

    def repeated(self, digest: str) -> str:
        """The name under which a request without an id of its own is known for a moment, to be known again."""
        return f"{self.prefix}:repeated:{digest}"

    @property
    def expiries(self) -> str:
        """When ended runs leave the indexes."""
        return f"{self.prefix}:runs:expiries"

    @property
    def leases(self) -> str:
        return f"{self.prefix}:leases"

    @property
    def wakeups(self) -> str:
        return f"{self.prefix}:wakeups"

    @property
    def pending(self) -> str:
        """Calls of all runs that wait for an answer."""
        return f"{self.prefix}:pending"

    @property
    def deadlines(self) -> str:
        """When calls that wait are answered by themselves."""
        return f"{self.prefix}:deadlines"

    @property
    def sweeper(self) -> str:
        """The process that swept last, for as long as it is known that somebody sweeps."""
        return f"{self.prefix}:sweeper"

    @property
    def agents(self) -> str:
        return f"{self.prefix}:agents"

    @property
    def workers(self) -> str:
        return f"{self.prefix}:workers"

    @property
    def nudges(self) -> str:
        """The pub/sub channel that tells all who execute what was asked of a run: `cancel <run>`, `decided <run>`."""
        return f"{self.prefix}:nudges"

    def _of_run(self, run_id: str, suffix: str) -> str:
        return f"{self.prefix}:run:{{{run_id}}}{suffix}"
