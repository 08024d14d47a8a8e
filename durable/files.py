"""Files that a model has made: small ones are told in their chunk, large ones are stored beside the log.

Invariant: a chunk that names a stored file is written in the same step as the file. A file's name follows from its
content, so that one which is told again is stored once.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from base64 import b64decode
from dataclasses import dataclass
from typing import Final

from durable.chunks import File

UNKNOWN_TYPE: Final = "application/octet-stream"
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class RunFile:
    """A file of a run.

    Attributes:
        file_id: Its name within the run.
        mime_type: Its type.
        data: What it holds.
    """

    file_id: str
    mime_type: str
    data: bytes

    @property
    def filename(self) -> str:
        """A name to save it under."""
        return self.file_id + (mimetypes.guess_extension(self.mime_type) or "")

    def encode(self) -> bytes:
        """As it is stored."""
        return self.mime_type.encode() + b"\n" + self.data

    @classmethod
    def decode(cls, file_id: str, value: bytes) -> RunFile:
        """What is stored under this name."""
        mime_type, _, data = value.partition(b"\n")
        return cls(file_id, mime_type.decode(), data)


def set_apart(chunk: File, run_id: str, limit: int) -> tuple[File, RunFile | None]:
    """The chunk as it is told, and the file to store with it; None for one of at most `limit` bytes.

    Args:
        chunk: Tells a file, as base64.
        run_id: Its run.
        limit: Bytes that a chunk may hold.
    """
    payload = chunk.payload
    if len(payload.data) * 3 // 4 <= limit:
        return chunk, None
    data = b64decode(payload.data)
    if len(data) <= limit:
        return chunk, None
    known = _MEDIA_TYPE.fullmatch(payload.mime_type)
    file = RunFile(hashlib.sha256(data).hexdigest()[:32], payload.mime_type if known else UNKNOWN_TYPE, data)
    url = f"/v1/runs/{run_id}/files/{file.file_id}"
    told = {"data": url, "url": url, "file_id": file.file_id, "size": len(data)}
    return chunk.model_copy(update={"payload": payload.model_copy(update=told)}), file
