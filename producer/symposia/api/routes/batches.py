"""``/v1/batches``: files of requests, answered in their own time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of, json_body
from symposia.api.routes.files import page, whole
from symposia.api.tenancy import once_in
from symposia.batches import TenantBatches, checked_life
from symposia_shared.errors import BadInput

#: batches of a page
USUAL_LISTED, MOST_LISTED = 20, 100

_FIELDS = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after", "symposia"}


async def create(request: Request) -> Response:
    """Have the lines of a file answered."""
    key = await caller(request)
    batches = TenantBatches(desk_of(request).client, key.tenant)
    body = await json_body(request)
    extra = sorted(set(body) - _FIELDS)
    if extra:
        raise BadInput(f"there is no parameter {extra[0][:80]!r} at /v1/batches.", field=extra[0][:80], remedy="Remove it.")
    ours = _ours(body.get("symposia"))
    life = checked_life(body.get("output_expires_after"), "output_expires_after")
    once = once_in(request, key, "/v1/batches", body, id="", created=time.time())
    if once is not None and (before := await asyncio.to_thread(batches.behind, once)) is not None:
        request.scope["told"] = {"idempotency-replayed": "true"}
        return JSONResponse(before.view())
    made = await asyncio.to_thread(lambda: batches.create(
        _text(body, "input_file_id"), endpoint=_text(body, "endpoint"), completion_window=_text(body, "completion_window"),
        metadata=body.get("metadata"), auto_model=ours.get("auto_model"), output_expires_s=life, mixed=bool(ours.get("mixed")), once=once))
    return JSONResponse(made.view())


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise BadInput(f"{name!r} is missing." if value is None else f"{name!r} is {value!r:.80}.", field=name, value=value, remedy="Give a text.")
    return value


def _ours(raw: Any) -> dict[str, Any]:
    """``{"auto_model": who answers for ``auto``, "mixed": whether lines may have any url}``."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or set(raw) - {"auto_model", "mixed"} or not isinstance(raw.get("auto_model", ""), str) \
            or not isinstance(raw.get("mixed", False), bool):
        raise BadInput(f"'symposia' is {raw!r:.80}.", field="symposia", value=raw, remedy="Give {auto_model: a model's name, mixed: true or false}.")
    return raw


async def list_batches(request: Request) -> Response:
    """The tenant's batches, newest first."""
    batches, asked = await _batches(request), request.query_params
    extra = sorted(set(asked) - {"after", "limit"})
    if extra:
        raise BadInput(f"there is no parameter {extra[0][:80]!r} here.", field=extra[0][:80], remedy="Remove it.")
    limit = whole(asked.get("limit"), "limit", usual=USUAL_LISTED, most=MOST_LISTED)
    found, more = await asyncio.to_thread(lambda: batches.all(most=limit, after=asked.get("after")))
    return JSONResponse(page([b.view() for b in found], more=more))


async def get_batch(request: Request, batch_id: str) -> Response:
    """How a batch stands."""
    batches = await _batches(request)
    return JSONResponse((await asyncio.to_thread(batches.get, batch_id)).view())


async def cancel_batch(request: Request, batch_id: str) -> Response:
    """End a batch: what runs stops at its next token, what has ended is kept."""
    batches = await _batches(request)
    return JSONResponse((await asyncio.to_thread(batches.cancel, batch_id)).view())


async def _batches(request: Request) -> TenantBatches:
    key = await caller(request)
    return TenantBatches(desk_of(request).client, key.tenant)


router = APIRouter()
router.add_api_route("/v1/batches", create, methods=["POST"], tags=["batches"], openapi_extra=schemas.body(schemas.BATCH))
router.add_api_route("/v1/batches", list_batches, methods=["GET"], tags=["batches"], openapi_extra=schemas.query(after="string", limit="integer"))
router.add_api_route("/v1/batches/{batch_id}", get_batch, methods=["GET"], tags=["batches"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/batches/{batch_id}/cancel", cancel_batch, methods=["POST"], tags=["batches"], openapi_extra=schemas.KEYED)
