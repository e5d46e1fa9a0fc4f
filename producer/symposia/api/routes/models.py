"""``/v1/models``: the checkpoints that are served, and the tenant's saved teams."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of
from symposia.api.faults import refused
from symposia.api.naming import AUTO, team_of
from symposia_shared.broker import CHECKS, placed_as
from symposia_shared.errors import BadInput
from symposia_shared.ledger.tenants import Teams

#: the scripted checkpoints are placed as one; by this name one of them is listed
SCRIPTED, LISTED = "test/*", "test/echo"


async def list_models(request: Request) -> Response:
    """What ``model`` may be, beside collaborations that are written out."""
    key, desk = await caller(request), desk_of(request)
    placed = await asyncio.to_thread(desk.client.ledger.placed)
    teams = await asyncio.to_thread(Teams(desk.client.ledger, key.tenant).names)
    found = [_checkpoint(LISTED if model == SCRIPTED else model, place) for model, place in sorted(placed.items()) if model != CHECKS]
    found += [_model(AUTO)] if desk.limits.auto_model else []
    return JSONResponse({"object": "list", "data": [*found, *(_model(name, kind="team") for name in teams)]})


async def get_model(request: Request, model: str) -> Response:
    """One of them, or a collaboration."""
    key, desk = await caller(request), desk_of(request)
    placed = await asyncio.to_thread(desk.client.ledger.placed)
    if placed_as(model) in placed and placed_as(model) != CHECKS:
        return JSONResponse(_checkpoint(model, placed[placed_as(model)]))
    if model == AUTO and desk.limits.auto_model:
        return JSONResponse(_model(AUTO))
    try:
        team = await team_of(desk, key, model)
    except BadInput as error:
        raise refused(404, str(error), code="model_not_found", param="model") from None
    if team is None:
        raise refused(404, f"no checkpoint or team {model[:80]!r} is served here.", code="model_not_found", param="model")
    return JSONResponse(_model(model, kind="team", team=team.model_dump(mode="json")))


def _checkpoint(model: str, place: dict[str, Any]) -> dict[str, Any]:
    return _model(model, kind="checkpoint", capabilities=place.get("capabilities"), context=place.get("context"))


def _model(model: str, **more: Any) -> dict[str, Any]:
    # OpenAI's field for when a model was made; placements do not know it
    return {"id": model, "object": "model", "created": 0, "owned_by": "symposia", **({"symposia": more} if more else {})}


router = APIRouter()
router.add_api_route("/v1/models", list_models, methods=["GET"], tags=["models"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/models/{model:path}", get_model, methods=["GET"], tags=["models"], openapi_extra=schemas.KEYED)
