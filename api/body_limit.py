"""No request body is read beyond the limit; the answer is then the API's own 413.

Starlette's middleware for this answers in plain text, whatever the app's error handlers say.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware.

    Args:
        app: What is behind it.
        max_bytes: The largest body that is let through.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        total = 0

        async def limited() -> Message:
            nonlocal total
            if announced.isdecimal() and int(announced) > self._max_bytes:
                raise self._too_large()
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        # The rest of the body is not read, so the connection can't be used again.
        detail = f"The body is larger than {self._max_bytes} bytes."
        return HTTPException(413, detail, {"Connection": "close"})
