"""JSON whose integers may have any size: what a model calls a tool with, and what a tool returns, may hold such.

Invariant: what is written is read again as it was. The fast library takes integers of 64 bits and reads longer ones as
floats; it does all that holds none.
"""

from __future__ import annotations

import json
import re
from typing import Final

import orjson

from durable.chunks.base import Json

_LONG: Final = re.compile(rb"[0-9]{19}")


def dumps(value: Json, *, sort_keys: bool = False) -> bytes:
    """The JSON of a value.

    Raises:
        TypeError, ValueError: It has none.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys).encode()


def loads(data: bytes) -> Json:
    """The value of some JSON.

    Raises:
        ValueError: It is none.
    """
    return json.loads(data) if _LONG.search(data) else orjson.loads(data)
