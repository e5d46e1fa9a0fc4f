"""``/healthz``: whether requests can be taken now. It asks for no key and tells nothing else."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api.asking import desk_of
from symposia_shared.errors import SymposiaError


async def health(request: Request) -> Response:
    """200 while Redis answers, else 503."""
    try:
        await asyncio.to_thread(desk_of(request).client.ledger.now_s)
    except SymposiaError:
        return JSONResponse({"status": "unavailable"}, 503)
    return JSONResponse({"status": "ok"})


router = APIRouter()
router.add_api_route("/healthz", health, methods=["GET"], tags=["health"])
