"""``/v1/embeddings``."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of, json_body
from symposia.api.naming import read
from symposia_shared.openai.collaborations import Asked
from symposia_shared.openai.replies import answer_body


async def embed(request: Request) -> Response:
    """A vector for each text."""
    key, desk = await caller(request), desk_of(request)
    asked = await read(desk, key, "/v1/embeddings", await json_body(request))
    assert not isinstance(asked, Asked)  # noqa: S101 - a collaboration is refused at this path
    ids = desk.new_ids(1)
    (result,) = await desk.answers(await desk.submit(key, asked.jobs, ids), request)
    completions = [result.completion] if result.completion is not None else []
    return JSONResponse({**answer_body(asked, completions, id=ids[0], created=int(time.time())), "symposia": {"job_id": ids[0], "job_ids": ids}})


router = APIRouter()
router.add_api_route("/v1/embeddings", embed, methods=["POST"], tags=["embeddings"], openapi_extra=schemas.body(schemas.EMBEDDING))
