"""``/v1/embeddings``."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of, json_body
from symposia.api.naming import read
from symposia.api.tenancy import once_in, told_again
from symposia_shared.openai.chunks import Chunks
from symposia_shared.openai.collaborations import Asked
from symposia_shared.openai.outcomes import body_of


async def embed(request: Request) -> Response:
    """A vector for each text."""
    key, desk = await caller(request), desk_of(request)
    body = await json_body(request)
    asked = await read(desk, key, "/v1/embeddings", body)
    assert not isinstance(asked, Asked)  # noqa: S101 - a collaboration is refused at this path
    chunks = Chunks(asked, request.scope["request_id"].removeprefix("req_"), int(time.time()))
    once = once_in(request, key, "/v1/embeddings", body, id=chunks.id, created=chunks.created)
    submitted = await desk.ask(key, asked.jobs, desk.new_ids(1), once=once, request=request)
    results = await desk.answers(submitted.handles, request, keep=once is not None)
    chunks = told_again(chunks, submitted.before)
    return JSONResponse(body_of(asked, results, id=chunks.id, created=chunks.created))


router = APIRouter()
router.add_api_route("/v1/embeddings", embed, methods=["POST"], tags=["embeddings"], openapi_extra=schemas.body(schemas.EMBEDDING))
