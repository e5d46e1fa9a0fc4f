"""What a request brings along: its key, and its body within the limits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request

from symposia.api.desk import Desk
from symposia.api.faults import refused
from symposia_shared.ledger.tenants import ApiKey
from symposia_shared.notices.targets import read_target

#: seconds a body may take to arrive
BODY_S = 60.0
#: characters a key may have
LONGEST_KEY = 200


def desk_of(request: Request) -> Desk:
    """What serves this application."""
    desk: Desk = request.app.state.desk
    return desk


async def caller(request: Request) -> ApiKey:
    """Who asks. Raises HttpFault 401."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise refused(401, "no API key was given: send 'Authorization: Bearer KEY'.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    known = await asyncio.to_thread(desk_of(request).keys.known, key) if len(key) <= LONGEST_KEY else None
    if known is None:
        raise refused(401, "the API key is not known here, or was revoked.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    return known


async def json_body(request: Request) -> dict[str, Any]:
    """The body, a JSON object; the names of its fields are left in the scope. Raises HttpFault 400, 408, 413 or 415."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise refused(415, "the body must be plain application/json.", code="unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_S):
            raw = await _within(request, desk_of(request).limits.max_body_bytes)
    except TimeoutError:
        raise refused(408, f"the body did not arrive within {BODY_S:.0f} s.", code="timeout") from None
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
        json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is no text, wherever it stands
    except (ValueError, RecursionError) as error:
        told = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise refused(400, f"the body is not JSON: {told[:200]}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise refused(400, f"the body is a JSON {type(body).__name__}, not an object.", code="invalid_json")
    request.scope["fields"] = frozenset(body)
    return body


async def _within(request: Request, most: int) -> bytes:
    told = request.headers.get("content-length", "0")
    parts, size = [], int(told) if told.isdecimal() else 0
    if size <= most:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                break
            parts.append(part)
    if size > most:
        raise refused(413, f"the body has more than {most:,} bytes, which is the most that is read (SYMPOSIA_API__MAX_BODY_BYTES).",
                      code="request_too_large")
    return b"".join(parts)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def webhook_of(request: Request, body: dict[str, Any]) -> str | None:
    """The webhook named in a body's metadata, None where there is none. Raises BadInput for one that may not be called."""
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or "webhook" not in metadata:
        return None
    return read_target(metadata["webhook"], field="metadata.webhook", allowed=desk_of(request).client.settings.webhooks.networks).url
