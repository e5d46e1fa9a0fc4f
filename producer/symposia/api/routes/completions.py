"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of, json_body, webhook_of
from symposia.api.naming import read
from symposia.api.streaming import stream_prompts, stream_team
from symposia.api.tenancy import once_in, told_again
from symposia_shared.openai.chunks import Chunks
from symposia_shared.openai.collaborations import Asked
from symposia_shared.openai.outcomes import body_of


async def chat(request: Request) -> Response:
    """Answer a chat, by a checkpoint or a collaboration."""
    return await _complete(request, "/v1/chat/completions")


async def text(request: Request) -> Response:
    """Go on with a text."""
    return await _complete(request, "/v1/completions")


async def _complete(request: Request, endpoint: str) -> Response:
    key, desk = await caller(request), desk_of(request)
    body = await json_body(request)
    webhook = webhook_of(request, body)
    asked = await read(desk, key, endpoint, body)
    wanted = asked.request if isinstance(asked, Asked) else asked
    # the id of an answer is not that of its job: a request may have several
    chunks = Chunks(wanted, request.scope["request_id"].removeprefix("req_"), int(time.time()))
    once = once_in(request, key, endpoint, body, id=chunks.id, created=chunks.created)
    if wanted.stream:
        if isinstance(asked, Asked):
            return await stream_team(desk, key, asked, chunks, request=request, once=once, webhook=webhook)
        return await stream_prompts(desk, key, asked, chunks, request=request, once=once, webhook=webhook)
    jobs = [asked.job] if isinstance(asked, Asked) else asked.jobs
    submitted = await desk.ask(key, jobs, desk.new_ids(len(jobs)), once=once, request=request, webhook=webhook)
    chunks = told_again(chunks, submitted.before)
    results = await desk.answers(submitted.handles, request, keep=once is not None)
    return JSONResponse(body_of(asked, results, id=chunks.id, created=chunks.created))


router = APIRouter()
router.add_api_route("/v1/chat/completions", chat, methods=["POST"], tags=["completions"], openapi_extra=schemas.body(schemas.CHAT))
router.add_api_route("/v1/completions", text, methods=["POST"], tags=["completions"], openapi_extra=schemas.body(schemas.COMPLETION))
