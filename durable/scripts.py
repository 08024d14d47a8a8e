"""The Lua scripts, one file each. They are the only code that changes a run's state or log.

A script is sent by its hash, and loaded when the server does not know it yet (a new, restarted or flushed server).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Arg = str | bytes | int | float

_FOLDER = files("durable") / "lua"
_LIBRARY = (_FOLDER / "lib.lua").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text with the shared functions before it, and the hash that the server knows it by."""

    name: str
    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read `lua/<name>.lua`."""
        text = _LIBRARY + (_FOLDER / f"{name}.lua").read_text("utf-8")
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    async def __call__(self, redis: Redis, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """Run the script on the server.

        Raises:
            redis.exceptions.RedisError: The server does not answer or refuses.
        """
        try:
            return await cast("Any", redis.evalsha(self.sha, len(keys), *keys, *args))
        except NoScriptError:
            await redis.script_load(self.text)
            return await cast("Any", redis.evalsha(self.sha, len(keys), *keys, *args))


CREATE = Script.load("create")
CLAIM = Script.load("claim")
RENEW = Script.load("renew")
RELEASE = Script.load("release")
REQUEUE = Script.load("requeue")
APPEND = Script.load("append")
FINISH = Script.load("finish")
CANCEL = Script.load("cancel")
DECIDE = Script.load("decide")
SUSPEND = Script.load("suspend")
RAISE = Script.load("raise")
IDLE = Script.load("idle")
MIRROR = Script.load("mirror")
TELL = Script.load("tell")
