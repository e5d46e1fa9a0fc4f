"""``/v1/usage``: what the key's tenant used, by day and checkpoint, and what its limits are."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of
from symposia.api.faults import refused
from symposia_shared.ledger.allowances import Allowances
from symposia_shared.ledger.usage import usage

_DAY: dict[str, Any] = {"type": "string", "format": "date", "example": "2026-11-25"}
_ASKED: dict[str, Any] = {**schemas.KEYED, "parameters": [{"name": n, "in": "query", "required": False, "schema": _DAY} for n in ("start", "end")]}


async def get_usage(request: Request) -> Response:
    """Days (UTC) from ``start`` to ``end``, the last 30 where nothing is said. A row without a model is the whole: each job counted once."""
    key, desk = await caller(request), desk_of(request)
    for name in request.query_params:
        if name not in ("start", "end"):
            raise refused(400, f"there is no parameter {name[:40]!r} at /v1/usage.", code="unknown_parameter", param=name[:40])
    ledger = desk.client.ledger
    start, end = (request.query_params.get(name) for name in ("start", "end"))
    rows = await asyncio.to_thread(lambda: usage(ledger, key.tenant, start=start, end=end))
    book = Allowances(ledger)
    limits, in_flight = await asyncio.to_thread(lambda: (book.of(key.tenant), book.in_flight(key.tenant)))
    return JSONResponse({"object": "list", "tenant": key.tenant, "data": [{"object": "symposia.usage", **row.model_dump(mode="json")} for row in rows],
                         "limits": limits.model_dump(mode="json"), "in_flight": in_flight})


router = APIRouter()
router.add_api_route("/v1/usage", get_usage, methods=["GET"], tags=["usage"], openapi_extra=_ASKED)
