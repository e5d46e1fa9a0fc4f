"""A body whose ``model`` is a checkpoint or a team, read within what one request may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from symposia_shared.errors import BadInput
from symposia_shared.jobs import Collaboration
from symposia_shared.openai.collaborations import Asked, read_collaboration
from symposia_shared.openai.requests import UNLIMITED, Request, read_request
from symposia_shared.teams import Team


class RequestLimits(Protocol):
    """What one request may ask for (``settings.ApiSettings``)."""

    @property
    def max_messages(self) -> int: ...

    @property
    def max_member_rounds(self) -> int: ...

    @property
    def max_tokens(self) -> int | None: ...

    @property
    def reuse(self) -> bool: ...


def check_messages(limits: RequestLimits, body: Mapping[str, Any]) -> None:
    """Raises BadInput for a chat that is longer than is read."""
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > limits.max_messages:
        raise BadInput(f"'messages' has {len(messages):,} messages; at most {limits.max_messages:,} are read "
                       "(SYMPOSIA_API__MAX_MESSAGES).", field="messages", remedy="Shorten it.")


def read_asked(endpoint: str, body: Mapping[str, Any], team: Team | None, *, model: str, limits: RequestLimits) -> Request | Asked:
    """What a body asks of ``model``, which is ``team``'s name or a checkpoint's. Raises BadInput."""
    if team is None:
        return _within(limits, read_request(endpoint, body, model=model), body)
    asked = read_collaboration(endpoint, body, team, model=model)
    _check_size(limits, asked.job)
    _within(limits, asked.request, body)
    return asked


def _within(limits: RequestLimits, request: Request, body: Mapping[str, Any]) -> Request:
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


def _check_size(limits: RequestLimits, job: Collaboration) -> None:
    rounds = int(getattr(job, "rounds", 1))
    if len(job.members) * rounds > limits.max_member_rounds:
        raise BadInput(f"{len(job.members)} members in {rounds} rounds are {len(job.members) * rounds}; at most {limits.max_member_rounds} are run "
                       "(SYMPOSIA_API__MAX_MEMBER_ROUNDS).",
                       field="model", value=len(job.members) * rounds, remedy="Ask fewer members, or in fewer rounds.")
