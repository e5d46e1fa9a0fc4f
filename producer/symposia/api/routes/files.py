"""``/v1/files``: the inputs of batches, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from symposia.api import schemas
from symposia.api.asking import caller, desk_of
from symposia.api.desk import Desk
from symposia.api.faults import refused
from symposia.api.listing import page as page
from symposia.api.listing import whole as whole
from symposia.api.multipart import MOST_FIELD, MOST_FIELDS, Form
from symposia.batches import TenantBatches, checked_life
from symposia_shared.batches.files import Writing, too_large
from symposia_shared.batches.values import BatchFile
from symposia_shared.errors import BadInput

#: seconds between two pieces of a body
PIECE_S = 60.0
#: bytes handed to the store at once
_GATHERED = 1024 * 1024
#: files of a page
MOST_LISTED = 10_000


async def upload(request: Request) -> Response:
    """Keep a batch's input. It is read as it comes: neither it nor its lines are held."""
    key, desk = await caller(request), desk_of(request)
    batches = TenantBatches(desk.client, key.tenant)
    most = desk.client.settings.batches.max_bytes
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told) > most + MOST_FIELD:
        raise refused(413, str(too_large(most)), code="request_too_large", param="file")
    file = await _kept(Form(request.headers.get("content-type", ""), _timely(request)), batches, most)
    return JSONResponse(file.view())


async def _kept(form: Form, batches: TenantBatches, most: int) -> BatchFile:
    fields: dict[str, bytes] = {}
    writing: Writing | None = None
    gathered, ended = bytearray(), False
    try:
        async for piece in form.pieces():
            if piece.filename is None:
                fields[piece.name] = fields.get(piece.name, b"") + piece.data
                if len(fields) > MOST_FIELDS or len(fields[piece.name]) > MOST_FIELD:
                    raise refused(400, f"the field {piece.name[:80]!r} is too long, or there are too many.", code="invalid_multipart", param=piece.name[:80])
                continue
            if piece.name != "file":
                raise BadInput(f"there is no file field {piece.name[:80]!r} here.", field=piece.name[:80], remedy="Send one file, as 'file'.")
            if ended:
                raise BadInput("there is more than one 'file'.", field="file", remedy="Send one file; each is uploaded by itself.")
            ended = piece.last
            if writing is None:
                _purpose(fields.get("purpose"), required=False)
                writing = await asyncio.to_thread(batches.files.writing, batches.tenant, piece.filename, most=most)
                writing.__enter__()
            gathered += piece.data
            if len(gathered) >= _GATHERED or piece.last:
                await _write(writing, bytes(gathered))
                gathered.clear()
        _purpose(fields.get("purpose"), required=True)
        expires_s = _expires(fields)
        if writing is None:
            raise BadInput("'file' is missing.", field="file", remedy="Send the file as a form's part of this name.")
        return await asyncio.to_thread(lambda: writing.finish(expires_s=expires_s))
    finally:
        if writing is not None:
            await asyncio.to_thread(writing.__exit__, None, None, None)


async def _write(writing: Writing, gathered: bytes) -> None:
    try:
        await asyncio.to_thread(writing.write, gathered)
    except BadInput as error:
        raise refused(413, str(error), code="request_too_large", param="file") from None


def _purpose(raw: bytes | None, *, required: bool) -> None:
    if raw is None and not required:
        return
    purpose = None if raw is None else raw.decode("utf-8", "replace")
    if purpose != "batch":
        raise BadInput("'purpose' is missing." if purpose is None else f"the purpose {purpose[:80]!r} is not supported.", field="purpose", value=purpose,
                       remedy="Use 'batch'.")


def _expires(fields: dict[str, bytes]) -> int | None:
    extra = sorted(set(fields) - {"purpose", "expires_after[anchor]", "expires_after[seconds]"})
    if extra:
        raise BadInput(f"there is no parameter {extra[0][:80]!r} at /v1/files.", field=extra[0][:80], remedy="Remove it.")
    given: dict[str, Any] = {name[14:-1]: value.decode("utf-8", "replace") for name, value in fields.items() if name.startswith("expires_after[")}
    if str(given.get("seconds", "")).isdecimal():
        given["seconds"] = int(given["seconds"])
    return checked_life(given or None, "expires_after")


async def _timely(request: Request) -> AsyncIterator[bytes]:
    """The body's pieces, each within its time."""
    stream = request.stream().__aiter__()
    while True:
        try:
            yield await asyncio.wait_for(stream.__anext__(), PIECE_S)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise refused(408, f"nothing of the body came for {PIECE_S:.0f} s.", code="timeout") from None


async def list_files(request: Request) -> Response:
    """The tenant's files, newest first."""
    batches, asked = await _batches(request), request.query_params
    _check_query(asked, {"after", "limit", "order", "purpose"})
    limit = whole(asked.get("limit"), "limit", usual=MOST_LISTED, most=MOST_LISTED)
    order, purpose, after = asked.get("order", "desc"), asked.get("purpose"), asked.get("after")
    if order not in ("asc", "desc"):
        raise BadInput(f"'order' is {order[:80]!r}.", field="order", value=order, remedy="Use asc or desc.")
    found = [f for f in await asyncio.to_thread(batches.files.all, batches.tenant) if purpose is None or f.purpose == purpose]
    found = found if order == "asc" else found[::-1]
    if after is not None:
        places = [n for n, f in enumerate(found) if f.id == after]
        if not places:
            raise BadInput(f"there is no file {after[:80]!r} to begin after.", field="after", value=after, remedy="Leave 'after' out.")
        found = found[places[0] + 1:]
    return JSONResponse(page([f.view() for f in found[:limit]], more=len(found) > limit))


async def get_file(request: Request, file_id: str) -> Response:
    """What is known of a file."""
    batches = await _batches(request)
    return JSONResponse((await asyncio.to_thread(batches.file, file_id)).view())


async def get_content(request: Request, file_id: str) -> Response:
    """Its bytes."""
    batches = await _batches(request)
    file = await asyncio.to_thread(batches.file, file_id)
    pieces = await asyncio.to_thread(batches.files.content, file)
    return StreamingResponse(pieces, media_type="application/jsonl", headers={"Content-Length": str(file.bytes)})


async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file, unless a batch reads it."""
    batches = await _batches(request)
    await asyncio.to_thread(batches.delete_file, file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def _batches(request: Request) -> TenantBatches:
    key = await caller(request)
    desk: Desk = desk_of(request)
    return TenantBatches(desk.client, key.tenant)


def _check_query(asked: Any, known: set[str]) -> None:
    extra = sorted(set(asked) - known)
    if extra:
        raise BadInput(f"there is no parameter {extra[0][:80]!r} here.", field=extra[0][:80], remedy="Remove it.")


router = APIRouter()
router.add_api_route("/v1/files", list_files, methods=["GET"], tags=["files"], openapi_extra=schemas.query(
    after="string", limit="integer", order="string", purpose="string"))
router.add_api_route("/v1/files", upload, methods=["POST"], tags=["files"], openapi_extra=schemas.UPLOAD)
router.add_api_route("/v1/files/{file_id}", get_file, methods=["GET"], tags=["files"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/files/{file_id}", delete_file, methods=["DELETE"], tags=["files"], openapi_extra=schemas.KEYED)
router.add_api_route("/v1/files/{file_id}/content", get_content, methods=["GET"], tags=["files"], openapi_extra=schemas.KEYED)
