"""``/v1/jobs/{id}``: a job as it stands, with its transcript once it has ended; its end by request; its erasure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of
from symposia.api.desk import Desk
from symposia.api.faults import refused
from symposia_shared.archive import checked_id
from symposia_shared.errors import BadInput, UnknownJob
from symposia_shared.ledger.tenants import ApiKey
from symposia_shared.ledger.usage import tenant_of
from symposia_shared.results import Result
from symposia_shared.standing import status


async def get_job(request: Request, job_id: str) -> Response:
    """How a job stands; once it has ended, its result with rounds, votes and bill."""
    key, desk = await caller(request), desk_of(request)
    return JSONResponse(await asyncio.to_thread(_view, desk, key, job_id))


async def cancel_job(request: Request, job_id: str) -> Response:
    """End a job; what runs stops at its next token. One that has ended is left as it is."""
    key, desk = await caller(request), desk_of(request)
    return JSONResponse(await asyncio.to_thread(_cancelled, desk, key, job_id))


async def delete_job(request: Request, job_id: str) -> Response:
    """Erase every copy of a job, and say what was erased. One in flight is cancelled first."""
    key, desk = await caller(request), desk_of(request)
    await asyncio.to_thread(check_tenant, desk, key, job_id)
    erased = await asyncio.to_thread(desk.client.delete, job_id)
    return JSONResponse({"id": job_id, "object": "symposia.job", "deleted": True, "erased": erased.copies})


def _view(desk: Desk, key: ApiKey, job_id: str) -> dict[str, Any]:
    check_tenant(desk, key, job_id)
    standing = status(desk.client.ledger, desk.client.archive, job_id)
    result = desk.client.archive.result(job_id) if standing.ended else None
    return _body(job_id, standing.state, result) | {"round": standing.round, "waiting_for": list(standing.waiting_for)}


def _cancelled(desk: Desk, key: ApiKey, job_id: str) -> dict[str, Any]:
    check_tenant(desk, key, job_id)
    desk.client.cancel(job_id)
    return _view(desk, key, job_id)


def check_tenant(desk: Desk, key: ApiKey, job_id: str) -> None:
    """Whether a tenant may see a job. Raises HttpFault 404 for a job that is not the tenant's, as for one that is not there."""
    try:
        tags = _tags(desk, checked_id(job_id))
    except BadInput:
        tags = None
    if tags is None or tenant_of(tags) != key.tenant:
        raise refused(404, f"there is no job {job_id[:80]!r}.", code="not_found", param="job_id")


def _tags(desk: Desk, job_id: str) -> list[str]:
    entry = desk.client.ledger.job(job_id)
    if entry is not None:
        found: list[str] = json.loads(desk.client.archive.read(entry.spec)).get("tags", [])
        return found
    result = desk.client.archive.result(job_id)
    if result is None:
        raise UnknownJob(f"there is no job {job_id!r}.", field="job_id", value=job_id)
    return list(result.job.get("tags", []))


def _body(job_id: str, state: str, result: Result | None) -> dict[str, Any]:
    ended = {} if result is None else {"kind": result.job.get("kind"), "created_at": result.submitted_at, "ended_at": result.ended_at}
    return {"id": job_id, "object": "symposia.job", "status": state, **ended, "result": None if result is None else result.model_dump(mode="json")}


router = APIRouter()
router.add_api_route("/v1/jobs/{job_id}", get_job, methods=["GET"], tags=["jobs"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/jobs/{job_id}", delete_job, methods=["DELETE"], tags=["jobs"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/jobs/{job_id}/cancel", cancel_job, methods=["POST"], tags=["jobs"], openapi_extra=schemas.KEYED, operation_id="cancel_job")
