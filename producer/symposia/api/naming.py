"""Who answers for the ``model`` of a request: a checkpoint, ``auto``, a collaboration, or a saved team."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from symposia.api.desk import Desk
from symposia_shared.errors import BadInput
from symposia_shared.ledger.tenants import ApiKey, Teams
from symposia_shared.openai.collaborations import Asked
from symposia_shared.openai.naming import check_messages, read_asked
from symposia_shared.openai.requests import Request, read_request
from symposia_shared.teams import NAME, Team, is_team, read_team

AUTO = "auto"


async def team_of(desk: Desk, key: ApiKey, model: str) -> Team | None:
    """The team a model's name stands for, None where it is a checkpoint's. Raises BadInput."""
    if is_team(model):
        try:
            return read_team(model)
        except BadInput as error:
            raise BadInput(str(error), field="model", value=model) from None
    if not NAME.fullmatch(model):
        return None
    return await asyncio.to_thread(Teams(desk.client.ledger, key.tenant).get, model)


async def read(desk: Desk, key: ApiKey, endpoint: str, body: Mapping[str, Any]) -> Request | Asked:
    """What a body asks for, within the limits. Raises BadInput."""
    body = {"reuse": True, **body} if desk.limits.reuse else body
    check_messages(desk.limits, body)
    model = body.get("model")
    if model == AUTO:
        model = desk.limits.auto_model
        if model is None:
            raise BadInput("'auto' is not served here: no checkpoint is chosen by itself yet.", field="model", value=AUTO,
                           remedy="Name a checkpoint, or set SYMPOSIA_API__AUTO_MODEL for the server.")
    if not isinstance(model, str):
        return read_request(endpoint, body)  # for its errors
    return read_asked(endpoint, body, await team_of(desk, key, model), model=model, limits=desk.limits)
