"""``/v1/teams/NAME``: collaborations saved under a name, which is then a model."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of, json_body
from symposia.api.faults import refused
from symposia.api.naming import AUTO
from symposia_shared.errors import BadInput
from symposia_shared.ledger.tenants import Teams
from symposia_shared.teams import NAME, Team, read_team


async def list_teams(request: Request) -> Response:
    """The names of all."""
    teams = await _teams(request)
    return JSONResponse({"object": "list", "data": [{"id": n, "object": "symposia.team"} for n in await asyncio.to_thread(teams.names)]})


async def put_team(request: Request, name: str) -> Response:
    """Save a team: ``{"model": "debate:a,b;rounds=2"}``, or ``{"pattern", "members", "options"}``."""
    teams = await _teams(request)
    team = _read(await json_body(request))
    placed = await asyncio.to_thread(desk_of(request).client.ledger.placed)
    if not NAME.fullmatch(name) or name == AUTO or name in placed:
        raise BadInput(f"{name[:80]!r} cannot be a team's name.", field="name", value=name,
                       remedy="Use 1 to 64 letters, digits, '.', '-' and '_' that are no checkpoint's name and not 'auto'.")
    made = await asyncio.to_thread(teams.put, name, team)
    return JSONResponse(_body(name, team), 201 if made else 200)


async def get_team(request: Request, name: str) -> Response:
    """One team."""
    team = await asyncio.to_thread((await _teams(request)).get, name)
    if team is None:
        raise _unknown(name)
    return JSONResponse(_body(name, team))


async def delete_team(request: Request, name: str) -> Response:
    """Forget a team. Jobs that were asked of it go on."""
    if not await asyncio.to_thread((await _teams(request)).delete, name):
        raise _unknown(name)
    return JSONResponse({"id": name, "object": "symposia.team", "deleted": True})


async def _teams(request: Request) -> Teams:
    key = await caller(request)
    return Teams(desk_of(request).client.ledger, key.tenant)


def _read(body: dict[str, Any]) -> Team:
    if set(body) == {"model"} and isinstance(body["model"], str):
        return read_team(body["model"])
    return Team.parse(body).checked()


def _body(name: str, team: Team) -> dict[str, Any]:
    return {"id": name, "object": "symposia.team", "model": team.name, **team.model_dump(mode="json")}


def _unknown(name: str) -> Exception:
    return refused(404, f"there is no team {name[:80]!r}.", code="not_found", param="name")


router = APIRouter()
router.add_api_route("/v1/teams", list_teams, methods=["GET"], tags=["teams"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/teams/{name}", put_team, methods=["PUT"], tags=["teams"], openapi_extra=schemas.body(schemas.TEAM))
router.add_api_route("/v1/teams/{name}", get_team, methods=["GET"], tags=["teams"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/teams/{name}", delete_team, methods=["DELETE"], tags=["teams"], openapi_extra=schemas.KEYED)
