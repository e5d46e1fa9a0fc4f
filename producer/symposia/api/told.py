"""What every answer tells of itself: its request's id, what is left of the tenant's minute. And how much may be said before the body."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from symposia_shared.openai.replies import error_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Told:
    """Gives each request an id, in its scope and in ``x-request-id``; sends what routes leave in ``scope["told"]`` as headers; refuses long heads."""

    def __init__(self, app: Any, *, max_header_bytes: int) -> None:
        self.app, self.max_header_bytes = app, max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["request_id"] = f"req_{uuid.uuid4().hex}"

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = {"x-request-id": request_id, "x-content-type-options": "nosniff", **scope.get("told", {})}
                message = {**message, "headers": [*message.get("headers", ()), *((k.encode(), v.encode()) for k, v in more.items())]}
            await send(message)

        if _head_bytes(scope) > self.max_header_bytes:
            await self._refuse(send_with_id)
        else:
            await self.app(scope, receive, send_with_id)

    async def _refuse(self, send: Send) -> None:
        body = error_body(f"the path and the headers have more than {self.max_header_bytes:,} bytes, which is the most that is read "
                          "(SYMPOSIA_API__MAX_HEADER_BYTES).", code="headers_too_large")
        await send({"type": "http.response.start", "status": 431, "headers": [(b"content-type", b"application/json"), (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def _head_bytes(scope: Scope) -> int:
    named = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return named + len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
