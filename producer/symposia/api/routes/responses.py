"""``/v1/responses``: answers that are kept, can be left running, and read again."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import responding, schemas
from symposia.api.asking import caller, desk_of, json_body, webhook_of
from symposia.api.faults import refused
from symposia.api.listing import number, page
from symposia_shared.openai.responses import ResponseRecord, input_items

#: items of one page at most, and where nothing is said
MOST_ITEMS, USUAL_ITEMS = 100, 20


async def create(request: Request) -> Response:
    """Answer, at once, as a stream, or in the background."""
    key, desk = await caller(request), desk_of(request)
    body = await json_body(request)
    webhook_of(request, body)  # for its errors
    record, job = await responding.asked(desk, key, body)
    streamed = body.get("stream")
    if not isinstance(streamed, bool | None):
        raise refused(400, f"'stream' is {streamed!r}. Give true or false.", code="invalid_value", param="stream")
    once = responding.once_of_response(request, key, body, record)
    run = responding.stream if streamed else responding.answer
    return await run(desk, key, record, job, request, once)


async def retrieve(request: Request, response_id: str) -> Response:
    """A response as it stands; with ``stream`` its events, after ``starting_after`` where that is given."""
    record = await _found(request, response_id)
    query = request.query_params
    for name in query:
        if name not in ("stream", "starting_after") and (name, query[name]) != ("include_obfuscation", "false"):
            raise refused(400, f"the parameter {name!r} is not supported here.", code="unsupported_parameter", param=name[:80])
    after = query.get("starting_after")
    if after is not None and not (after.isdecimal() and len(after) < 16):
        raise refused(400, f"'starting_after' is {after[:40]!r}. Give an event's sequence_number.", code="invalid_value", param="starting_after")
    if query.get("stream", "false").lower() in ("true", "1"):
        return await responding.resume(desk_of(request), record, after=-1 if after is None else int(after))
    if after is not None:
        raise refused(400, "'starting_after' is given without 'stream'.", code="invalid_value", param="starting_after")
    return JSONResponse(await asyncio.to_thread(responding.standing, desk_of(request), record))


async def cancel(request: Request, response_id: str) -> Response:
    """End a response that runs in the background. One that has ended is left as it is."""
    record = await _found(request, response_id)
    if not record.background:
        raise refused(400, "only a response that was made with 'background' can be cancelled; end another by closing its connection.",
                      code="invalid_request", param="response_id")
    desk = desk_of(request)
    await asyncio.to_thread(desk.client.cancel, record.job_id)
    return JSONResponse(await asyncio.to_thread(responding.standing, desk, record))


async def delete(request: Request, response_id: str) -> Response:
    """Erase every copy of a response and of its job, and say what was erased. One that runs is cancelled first."""
    record = await _found(request, response_id)
    erased = await asyncio.to_thread(desk_of(request).client.delete, record.job_id)
    return JSONResponse({"id": record.id, "object": "response", "deleted": True, "symposia": {"erased": erased.copies}})


async def list_items(request: Request, response_id: str) -> Response:
    """The conversation the response answers, the newest first unless ``order`` is ``asc``."""
    record = await _found(request, response_id)
    query = request.query_params
    asked, order, after = query.get("limit", str(USUAL_ITEMS)), query.get("order", "desc"), query.get("after")
    limit = number(asked, most=MOST_ITEMS)
    if limit is None:
        raise refused(400, f"'limit' is {asked[:20]!r}. Give a whole number from 1 to {MOST_ITEMS}.", code="invalid_value", param="limit")
    if order not in ("asc", "desc"):
        raise refused(400, f"'order' is {order[:20]!r}. Give asc or desc.", code="invalid_value", param="order")
    items = input_items(record) if order == "asc" else input_items(record)[::-1]
    begins = next((at + 1 for at, item in enumerate(items) if item["id"] == after), 0)
    if after is not None and begins == 0:
        raise refused(400, f"'after' is {after[:80]!r}, which is none of its items.", code="invalid_value", param="after")
    return JSONResponse(page(items[begins:begins + limit], more=len(items) > begins + limit))


async def _found(request: Request, response_id: str) -> ResponseRecord:
    key, desk = await caller(request), desk_of(request)
    return await asyncio.to_thread(responding.found, desk, key, response_id)


router = APIRouter()
router.add_api_route("/v1/responses", create, methods=["POST"], tags=["responses"], openapi_extra=schemas.body(schemas.RESPONSE))
router.add_api_route("/v1/responses/{response_id}", retrieve, methods=["GET"], tags=["responses"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/responses/{response_id}", delete, methods=["DELETE"], tags=["responses"], openapi_extra=schemas.KEYED,
                     operation_id="delete_response")
router.add_api_route("/v1/responses/{response_id}/cancel", cancel, methods=["POST"], tags=["responses"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/responses/{response_id}/input_items", list_items, methods=["GET"], tags=["responses"], openapi_extra=schemas.KEYED)
