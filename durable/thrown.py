"""What a tool raised, as JSON, so that a hook which knows its kind gets the same after a takeover.

Only an exception whose whole state is plain JSON is kept, and only if what comes back is the same. Its class is looked
for among the modules that are loaded: nothing is imported, and nothing but an exception is made.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import orjson

from durable.chunks.base import Json

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def dump(error: BaseException) -> Json:
    """The exception as JSON; None if it can't be made again from that."""
    try:
        cls, args, state = (*error.__reduce_ex__(2), None)[:3]
        data = [cls.__module__, cls.__qualname__, list(args), state]
        if cls is not type(error) or not _is_plain(data) or orjson.loads(orjson.dumps(data)) != data:
            return None
        made = load(data)
        return data if made is not None and _seen(made) == _seen(error) else None
    except Exception:  # noqa: BLE001 - its methods are the user's
        return None


def load(data: Any) -> Exception | None:
    """The exception that was dumped; None if this process can't make it."""
    try:
        module, qualname, args, state = data
        found: Any = sys.modules[module]
        for name in qualname.split("."):
            found = getattr(found, name)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            return None
        # Without a way of its own to be made again, its __init__ may take something else than its args.
        plain = found.__reduce__ is BaseException.__reduce__
        error = found.__new__(found, *args) if plain else found(*args)
        if state:
            error.__setstate__(state)
    except Exception:  # noqa: BLE001 - the class may have changed since
        return None
    return error


def _seen(error: BaseException) -> tuple[Any, ...]:
    """All that a hook can see of an exception, but for where it was raised, and from what."""
    return type(error), str(error), repr(error), error.__reduce_ex__(2)


def _is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(name) is str and _is_plain(item) for name, item in value.items())
    return type(value) in _PLAIN
