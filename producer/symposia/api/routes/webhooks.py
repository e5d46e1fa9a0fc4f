"""``/v1/webhooks``: a tenant's endpoints; ``/v1/notices``: what they and jobs' own webhooks were sent, and sending it again."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of, json_body
from symposia.api.faults import refused
from symposia.api.listing import number
from symposia_shared.ledger.outbox import Outbox, Standing
from symposia_shared.notices.targets import read_target
from symposia_shared.notices.wishes import Endpoint

#: notices of one page at most, and where nothing is said
MOST_NOTICES, USUAL_NOTICES = 1_000, 100


async def create(request: Request) -> Response:
    """Have a URL told of each of the tenant's jobs, or of the ends named in ``events``; the answer has the secret it is signed with."""
    outbox, tenant = await _outbox(request)
    body = await json_body(request)
    extra = sorted(set(body) - {"url", "events"})
    if extra:
        raise refused(400, f"there is no parameter {extra[0][:80]!r} here.", code="unknown_parameter", param=extra[0][:80])
    events = body.get("events") or []
    if not isinstance(events, list) or not all(isinstance(e, str) for e in events):
        raise refused(400, "'events' is not a list of names.", code="invalid_value", param="events")
    allowed = desk_of(request).client.settings.webhooks.networks
    target = read_target(body.get("url"), field="url", allowed=allowed)
    made = await asyncio.to_thread(outbox.register, tenant, target.url, events=events, allowed=allowed)
    return JSONResponse({**_endpoint(made), "secret": (await asyncio.to_thread(outbox.secrets, tenant))[0]}, 201)


async def list_endpoints(request: Request) -> Response:
    """The tenant's endpoints."""
    outbox, tenant = await _outbox(request)
    return JSONResponse({"object": "list", "data": [_endpoint(e) for e in await asyncio.to_thread(outbox.endpoints, tenant)]})


async def delete(request: Request, endpoint_id: str) -> Response:
    """Tell an endpoint nothing more."""
    outbox, tenant = await _outbox(request)
    if not await asyncio.to_thread(outbox.unregister, tenant, endpoint_id):
        raise refused(404, f"there is no webhook {endpoint_id[:80]!r}.", code="not_found", param="endpoint_id")
    return JSONResponse({"id": endpoint_id, "object": "symposia.webhook", "deleted": True})


async def list_notices(request: Request) -> Response:
    """What was sent and what waits, newest first; of one job with ``job_id``, of one state with ``state``."""
    outbox, tenant = await _outbox(request)
    query = request.query_params
    asked, state = query.get("limit", str(USUAL_NOTICES)), query.get("state")
    limit = number(asked, most=MOST_NOTICES)
    if limit is None:
        raise refused(400, f"'limit' is {asked[:20]!r}. Give a whole number from 1 to {MOST_NOTICES}.", code="invalid_value", param="limit")
    if state not in (None, "waiting", "delivered", "failed"):
        raise refused(400, f"'state' is {str(state)[:20]!r}. Give waiting, delivered or failed.", code="invalid_value", param="state")
    found = await asyncio.to_thread(outbox.all, tenant=tenant, job_id=query.get("job_id"), state=state, most=limit)
    return JSONResponse({"object": "list", "data": [_notice(s) for s in found]})


async def get_notice(request: Request, notice_id: str) -> Response:
    """One notice, with its body."""
    outbox, tenant = await _outbox(request)
    return JSONResponse(_notice(await _found(outbox, tenant, notice_id)))


async def replay(request: Request, notice_id: str) -> Response:
    """Send a notice again, under its own id."""
    outbox, tenant = await _outbox(request)
    await _found(outbox, tenant, notice_id)
    await asyncio.to_thread(outbox.replay, notice_id)
    return JSONResponse(_notice(await _found(outbox, tenant, notice_id)))


async def _found(outbox: Outbox, tenant: str, notice_id: str) -> Standing:
    standing = await asyncio.to_thread(outbox.get, notice_id)
    if standing is None or standing.notice.tenant != tenant:
        raise refused(404, f"there is no notice {notice_id[:80]!r}.", code="not_found", param="notice_id")
    return standing


async def _outbox(request: Request) -> tuple[Outbox, str]:
    key = await caller(request)
    return desk_of(request).client.outbox, key.tenant


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {"object": "symposia.webhook", **endpoint.model_dump(mode="json")}


def _notice(standing: Standing) -> dict[str, Any]:
    said = standing.notice.model_dump(mode="json", exclude={"body"} if standing.notice.kind == "link" else None)
    return {"object": "symposia.notice", **said, **standing.model_dump(mode="json", exclude={"notice"})}


router = APIRouter()
router.add_api_route("/v1/webhooks", create, methods=["POST"], tags=["webhooks"], openapi_extra=schemas.body(schemas.WEBHOOK))
router.add_api_route("/v1/webhooks", list_endpoints, methods=["GET"], tags=["webhooks"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/webhooks/{endpoint_id}", delete, methods=["DELETE"], tags=["webhooks"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/notices", list_notices, methods=["GET"], tags=["webhooks"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/notices/{notice_id}", get_notice, methods=["GET"], tags=["webhooks"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/notices/{notice_id}/replay", replay, methods=["POST"], tags=["webhooks"], openapi_extra=schemas.KEYED)
