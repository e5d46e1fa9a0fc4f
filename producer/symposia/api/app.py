"""The application: its routes, its faults, its life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from symposia.api import faults, page
from symposia.api.desk import Desk
from symposia.api.ears import Ears
from symposia.api.routes import batches, completions, embeddings, events, files, health, jobs, models, responses, teams, usage, webhooks
from symposia.api.told import Told
from symposia.client import Client
from symposia_shared.errors import SymposiaError
from symposia_shared.ledger.tenants import Keys
from symposia_shared.settings import Settings

#: calls to Redis and S3 at once; each is short
THREADS = 64


def make(settings: Settings) -> FastAPI:
    """The application of a deployment. Nothing is connected before it starts."""
    app = FastAPI(title="Symposia", version=metadata.version("symposia"), lifespan=_life, docs_url=None, redoc_url=None,
                  summary="Many open-weight language models, one queue, one answer; in OpenAI's form.")
    first = settings.api.key.get_secret_value() if settings.api.key else None
    client = Client(settings=settings)
    app.state.desk = Desk(client, Keys(client.ledger, first=first), Ears(settings.broker, settings.prefix), settings.api)
    for resource in (completions, responses, embeddings, models, jobs, events, teams, files, batches, webhooks, usage, health):
        app.include_router(resource.router)
    app.add_exception_handler(faults.HttpFault, faults.answer_fault)
    app.add_exception_handler(SymposiaError, faults.answer_error)
    app.add_exception_handler(HTTPException, faults.answer_http)
    app.add_exception_handler(Exception, faults.answer_bug)
    page.add(app)
    app.add_middleware(Told, max_header_bytes=settings.api.max_header_bytes)
    setattr(app, "openapi", lambda: _document(app))  # noqa: B010 - FastAPI's way to have a document of one's own
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
    asyncio.get_running_loop().set_default_executor(threads)
    desk: Desk = app.state.desk
    desk.ears.start()
    await asyncio.to_thread(lambda: desk.client.bell)  # imports Celery and connects, which would make the first request wait
    yield
    await desk.ears.stop()
    desk.client.close()


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        found.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = found
    document: dict[str, Any] = app.openapi_schema
    return document
