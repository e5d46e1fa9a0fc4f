"""Responses: what is kept of them, how they stand, and their streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from symposia.api.desk import Desk
from symposia.api.faults import refused
from symposia.api.following import Closed, Ended, Told, Word, follow
from symposia.api.naming import read
from symposia.api.streaming import SILENT, Quiet, diverged_body, guarded, sse
from symposia.api.tenancy import once_in
from symposia.handle import Handle
from symposia_shared.archive import checked_id
from symposia_shared.errors import BadInput, SymposiaError
from symposia_shared.jobs import Job
from symposia_shared.ledger.gate import Once
from symposia_shared.ledger.tenants import ApiKey
from symposia_shared.openai.collaborations import Asked
from symposia_shared.openai.outcomes import fault_of_result
from symposia_shared.openai.response_bodies import STATUS, Events, response_body
from symposia_shared.openai.responses import ResponseRecord, chat_of, in_own_words, job_of, read_response
from symposia_shared.prompts import Message
from symposia_shared.results import Result
from symposia_shared.standing import status


def key_of(job_id: str) -> str:
    """Where it is kept that a job is a response's, beside the job's other papers."""
    return f"jobs/{job_id}/response.json"


def found(desk: Desk, key: ApiKey, response_id: str, *, param: str = "response_id") -> ResponseRecord:
    """A response of the tenant's. Raises HttpFault 404 for any other, as for one that is not there."""
    try:
        job_id = checked_id(job_of(response_id) or "")
    except BadInput:
        job_id = None
    body = None if job_id is None else desk.client.archive.store.get(key_of(job_id))
    record = None if body is None else ResponseRecord.from_json(body)
    if record is None or record.tenant != key.tenant:
        raise refused(404, f"there is no response {response_id[:80]!r}.", code="not_found", param=param)
    return record


def standing(desk: Desk, record: ResponseRecord) -> dict[str, Any]:
    """The response as it stands now."""
    now = status(desk.client.ledger, desk.client.archive, record.job_id)
    result = desk.client.archive.result(record.job_id) if now.ended else None
    return body_of(record, now.state, result)


def body_of(record: ResponseRecord, state: str, result: Result | None) -> dict[str, Any]:
    """The response, with what its job failed of."""
    return response_body(record, state, result, None if result is None else fault_of_result(result))


def earlier(desk: Desk, key: ApiKey, response_id: object) -> tuple[Message, ...]:
    """The conversation that a response ended, its answer included. Raises HttpFault 404 and BadInput."""
    if response_id is None:
        return ()
    if not isinstance(response_id, str):
        raise BadInput(f"'previous_response_id' is {response_id!r}.", field="previous_response_id", remedy="Give a response's id.")
    record = found(desk, key, response_id, param="previous_response_id")
    result = desk.client.archive.result(record.job_id)
    if result is None or result.answer is None:
        stands = "has not ended" if result is None else STATUS[result.state] if result.state != "done" else "has no answer"
        raise BadInput(f"the response {response_id!r} {stands}, so nothing can follow it.", field="previous_response_id", value=response_id,
                       remedy="Wait for its end, or give the conversation in 'input'.")
    text = result.completion.text if result.completion is not None else result.answer
    return (*record.messages, Message(role="assistant", content=text))


async def asked(desk: Desk, key: ApiKey, body: Mapping[str, Any]) -> tuple[ResponseRecord, Job]:
    """What a body asks for, within the limits. Raises BadInput and HttpFault."""
    before = await asyncio.to_thread(earlier, desk, key, body.get("previous_response_id"))
    record = read_response(body, job_id=desk.new_ids(1)[0], tenant=key.tenant, created_at=float(int(time.time())), earlier=before)
    try:
        wanted = await read(desk, key, "/v1/chat/completions", chat_of(record, body))
    except BadInput as error:
        raise in_own_words(error) from None
    return record, wanted.job if isinstance(wanted, Asked) else wanted.jobs[0]


async def answer(desk: Desk, key: ApiKey, record: ResponseRecord, job: Job, request: Request, once: Once | None) -> Response:
    """Run a response to its end, or leave it in the background."""
    record, handles = await _submit(desk, key, record, job, request, once, streamed=record.background)
    if record.background:
        return JSONResponse(await asyncio.to_thread(standing, desk, record))
    try:
        (result,) = await desk.answers(handles, request, keep=once is not None)
    finally:
        _forget(desk, record)
    return JSONResponse(body_of(record, result.state, result))


async def stream(desk: Desk, key: ApiKey, record: ResponseRecord, job: Job, request: Request, once: Once | None) -> Response:
    """Run a response, its events sent as they come. One in the background goes on when nobody reads it any more."""
    stack = AsyncExitStack()
    queue: asyncio.Queue[Any] = asyncio.Queue()
    try:
        await stack.enter_async_context(desk.ears.listen([record.job_id], queue))
        asked_for = record.job_id
        record, _ = await _submit(desk, key, record, job, request, once, streamed=True)
        stack.callback(_forget, desk, record)
        if record.job_id != asked_for:
            await stack.enter_async_context(desk.ears.listen([record.job_id], queue))
        if not record.background and once is None:
            stack.callback(desk.cancel_later, [record.job_id])
    except BaseException:
        await stack.aclose()
        raise
    return sse(guarded(_events(desk, record, queue, after=-1), stack))


async def resume(desk: Desk, record: ResponseRecord, *, after: int) -> Response:
    """The events after a number, of a response that runs or has ended."""
    stack = AsyncExitStack()
    queue: asyncio.Queue[Any] = asyncio.Queue()
    await stack.enter_async_context(desk.ears.listen([record.job_id], queue))
    return sse(guarded(_events(desk, record, queue, after=after), stack))


async def _events(desk: Desk, record: ResponseRecord, queue: asyncio.Queue[Any], *, after: int) -> AsyncGenerator[str, None]:
    events, quiet = Events(record, after=after), Quiet()
    for event in events.opening():
        yield event
    async with aclosing(follow(desk, desk.client.handle(record.job_id), queue)) as telling:
        async for told in telling:
            for event in [SILENT] if quiet.long(told) else _told(events, told):
                if event:
                    yield event


def _told(events: Events, told: Told) -> list[str]:
    if isinstance(told, Word):
        return list(events.word(told.text))
    if isinstance(told, Closed):
        return list(events.round(told.record))
    if not isinstance(told, Ended):
        return []
    fault = fault_of_result(told.result)
    if told.diverged and fault is None:
        return [events.error(diverged_body(told.result.job_id))]
    return list(events.ended(told.result, fault))


def once_of_response(request: Request, key: ApiKey, body: Mapping[str, Any], record: ResponseRecord) -> Once | None:
    """The idempotency key of a request, None where it has none. Raises BadInput, also where what the key would bind to is not to be stored."""
    once = once_in(request, key, "/v1/responses", body, id=record.id, created=record.created_at)
    if once is not None and not record.store:
        raise BadInput("'store' is false and an Idempotency-Key was given, which needs the answer for as long as the key lives.", field="store",
                       value=False, remedy="Leave one of them out.")
    return once


def _forget(desk: Desk, record: ResponseRecord) -> None:
    """What was not to be stored is erased once it was answered, or nobody waits for it any more, where nobody is still to be told of it; if that
    fails, by the end of its life."""
    if not record.store and "webhook" not in record.metadata:
        desk.erase_later(record.job_id)


async def _submit(desk: Desk, key: ApiKey, record: ResponseRecord, job: Job, request: Request, once: Once | None, *,
                  streamed: bool) -> tuple[ResponseRecord, list[Handle]]:
    """Keep the response, then record its job: one without the other is never found. Where its idempotency key was used before, that response."""
    store, paper = desk.client.archive.store, key_of(record.job_id)
    if record.store:
        await asyncio.to_thread(store.put, paper, record.to_json().encode())
    try:
        submitted = await desk.ask(key, [job], [record.job_id], stream=streamed, background=record.background, once=once, request=request,
                                   webhook=record.metadata.get("webhook"))
    except SymposiaError:
        if record.store:
            await asyncio.to_thread(store.delete, paper)
        raise
    before = submitted.before
    if before is not None:
        if record.store:
            await asyncio.to_thread(store.delete, paper)
        record = record.model_copy(update={"job_id": before.job_ids[0], "created_at": float(before.told["created"])})
    return record, submitted.handles
