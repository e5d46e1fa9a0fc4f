"""Who answers for the ``model`` of a request: a checkpoint, ``auto``, a collaboration, or a saved team."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from symposia.api.desk import Desk
from symposia_shared.errors import BadInput
from symposia_shared.jobs import Collaboration
from symposia_shared.ledger.tenants import ApiKey, Teams
from symposia_shared.openai.collaborations import Asked, read_collaboration
from symposia_shared.openai.requests import UNLIMITED, Request, read_request
from symposia_shared.settings import ApiSettings
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
    model = body.get("model")
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > desk.limits.max_messages:
        raise BadInput(f"'messages' has {len(messages):,} messages; at most {desk.limits.max_messages:,} are read "
                       "(SYMPOSIA_API__MAX_MESSAGES).", field="messages", remedy="Shorten it.")
    if model == AUTO:
        model = desk.limits.auto_model
        if model is None:
            raise BadInput("'auto' is not served here: no checkpoint is chosen by itself yet.", field="model", value=AUTO,
                           remedy="Name a checkpoint, or set SYMPOSIA_API__AUTO_MODEL for the server.")
    if not isinstance(model, str):
        return read_request(endpoint, body)  # for its errors
    team = await team_of(desk, key, model)
    if team is None:
        return _within(desk.limits, read_request(endpoint, body, model=model), body)
    asked = read_collaboration(endpoint, body, team, model=model)
    _check_size(desk.limits, asked.job)
    _within(desk.limits, asked.request, body)
    return asked


def _within(limits: ApiSettings, request: Request, body: Mapping[str, Any]) -> Request:
    """The request with its tokens within the limit: what names no limit is given it, what names a higher one is refused."""
    most = limits.max_tokens
    if most is None or all(job.sampling.max_tokens <= most for job in request.jobs):
        return request
    asked = request.jobs[0].sampling.max_tokens
    if asked != UNLIMITED:
        field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        raise BadInput(f"{field!r} is {asked:,}; at most {most:,} new tokens are made here (SYMPOSIA_API__MAX_TOKENS).", field=field, value=asked,
                       remedy="Lower it.")
    jobs = tuple(j.model_copy(update={"sampling": j.sampling.model_copy(update={"max_tokens": most})}) for j in request.jobs)
    return replace(request, jobs=jobs)


def _check_size(limits: ApiSettings, job: Collaboration) -> None:
    rounds = int(getattr(job, "rounds", 1))
    if len(job.members) * rounds > limits.max_member_rounds:
        raise BadInput(f"{len(job.members)} members in {rounds} rounds are {len(job.members) * rounds}; at most {limits.max_member_rounds} are run "
                       "(SYMPOSIA_API__MAX_MEMBER_ROUNDS).",
                       field="model", value=len(job.members) * rounds, remedy="Ask fewer members, or in fewer rounds.")
