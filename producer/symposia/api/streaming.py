"""Answers sent as they come: what pools say of them, ended by the recorded result, which alone is true."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from symposia.api.desk import Desk
from symposia.api.faults import HttpFault, fault_in
from symposia.api.tenancy import told_again
from symposia.handle import Handle
from symposia_shared.errors import SymposiaError
from symposia_shared.ledger.gate import Once
from symposia_shared.ledger.tenants import ApiKey
from symposia_shared.openai.chunks import DONE, Chunks, error_event
from symposia_shared.openai.collaborations import NO_VERDICT, Asked, bill_usage, extension, round_extension
from symposia_shared.openai.replies import error_body, fault_of, usage_of
from symposia_shared.openai.requests import Request
from symposia_shared.results import Result
from symposia_shared.said import Hearing, Piece
from symposia_shared.turns import Completion

log = logging.getLogger(__name__)

#: seconds for which the status is held back, so that what fails at once fails with its own status
PEEK_S = 3.0
#: seconds of silence after which a comment is sent, so that nothing between us and the client takes the stream for dead
SILENCE_S = 15.0
#: seconds between looks for a closed round
ROUND_LOOK_S = 0.3


def sse(events: AsyncIterator[str]) -> StreamingResponse:
    """The response that sends these events."""
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def stream_prompts(desk: Desk, key: ApiKey, asked: Request, chunks: Chunks, *, request: HttpRequest, once: Once | None = None) -> StreamingResponse:
    """The choices of a request as they are made. Raises what a submit raises, and HttpFault for what fails at once.

    With an idempotency key the jobs go on when the client goes; a repetition is sent the recorded answers, each whole.
    """
    ids = desk.new_ids(len(asked.jobs))
    queue: asyncio.Queue[Any] = asyncio.Queue()
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(desk.ears.listen(ids, queue))
        if once is None:
            stack.callback(desk.cancel_later, ids)  # of those that have ended nothing comes of it
        submitted = await desk.ask(key, asked.jobs, ids, stream=True, once=once, request=request)
        handles, chunks = submitted.handles, told_again(chunks, submitted.before)
        ids = [handle.job_id for handle in handles]
        waits = [asyncio.create_task(_ended(desk, handle, queue)) for handle in handles]
        stack.callback(lambda: [task.cancel() for task in waits])
        first = await _peek(queue)
    except BaseException:
        await stack.aclose()
        raise
    return sse(_guarded(_choices(ids, asked, chunks, queue, first), stack))


async def _ended(desk: Desk, handle: Handle, queue: asyncio.Queue[Any]) -> None:
    try:
        queue.put_nowait((handle.job_id, await desk.result(handle)))
    except SymposiaError as error:
        queue.put_nowait((handle.job_id, HttpFault(*fault_of(error))))


async def _peek(queue: asyncio.Queue[Any]) -> list[Any]:
    """The first thing that is heard, where it comes soon. Raises HttpFault where it is a failure."""
    with suppress(TimeoutError):
        first = await asyncio.wait_for(queue.get(), PEEK_S)
        fault = first[1] if isinstance(first[1], HttpFault) else fault_in(first[1]) if isinstance(first[1], Result) else None
        if fault is not None:
            raise fault
        return [first]
    return []


async def _choices(ids: Sequence[str], asked: Request, chunks: Chunks, queue: asyncio.Queue[Any], heard: list[Any]) -> AsyncGenerator[str, None]:
    places = {job_id: index for index, job_id in enumerate(ids)}
    hearings = [Hearing() for _ in ids]
    replies: dict[int, Completion] = {}
    for index in range(len(ids)):
        if chunks.chat:
            yield chunks.role(index)
    while len(replies) < len(ids):
        try:
            job_id, what = heard.pop() if heard else await asyncio.wait_for(queue.get(), SILENCE_S)
        except TimeoutError:
            yield ": waiting\n\n"
            continue
        index = places[job_id]
        if isinstance(what, Piece):
            text = "" if index in replies else hearings[index].hear(what)
            if text:
                yield chunks.text(index, text)
            continue
        fault = what if isinstance(what, HttpFault) else fault_in(what)
        reply = what.completion if isinstance(what, Result) else None
        rest = None if fault is not None or reply is None else hearings[index].end(reply.text)
        if fault is not None or reply is None or rest is None:
            yield error_event(fault.body if fault is not None else error_body(_OTHERWISE.format(job_id), type="server_error", code="stream_diverged"))
            return
        if rest:
            yield chunks.text(index, rest)
        yield chunks.end(index, reply)
        replies[index] = reply
    if asked.stream_usage:
        yield chunks.usage(usage_of(asked, [replies[i] for i in range(len(ids))]))
    yield DONE


#: said where an answer was begun again and came out otherwise, after a part of the first was sent
_OTHERWISE = "the answer was begun again after its device was lost, and came out otherwise than what was sent; the recorded one is at /v1/jobs/{}."


async def stream_team(desk: Desk, key: ApiKey, asked: Asked, chunks: Chunks, *, request: HttpRequest, once: Once | None = None) -> StreamingResponse:
    """A collaboration's rounds as they close, then its verdict."""
    submitted = await desk.ask(key, [asked.job], desk.new_ids(1), once=once, request=request)
    (handle,), chunks = submitted.handles, told_again(chunks, submitted.before)
    job_id = handle.job_id
    stack = AsyncExitStack()
    if once is None:
        stack.callback(desk.cancel_later, [job_id])
    waiting = asyncio.create_task(desk.result(handle))
    stack.callback(waiting.cancel)
    return sse(_guarded(_rounds(desk, job_id, asked, chunks, waiting), stack))


async def _rounds(desk: Desk, job_id: str, asked: Asked, chunks: Chunks, waiting: asyncio.Task[Result]) -> AsyncGenerator[str, None]:
    if chunks.chat:
        yield chunks.role(0)
    yield chunks.silent("symposia.job", symposia={"job_id": job_id, "pattern": asked.job.name})
    seen, quiet = 0, 0.0
    while not waiting.done():
        record = None
        with suppress(SymposiaError):
            record = await asyncio.to_thread(desk.client.archive.round, job_id, seen)
        if record is not None:
            yield chunks.silent("symposia.round", symposia=round_extension(job_id, record))
            seen, quiet = seen + 1, 0.0
            continue
        await asyncio.wait({waiting}, timeout=ROUND_LOOK_S)
        quiet += ROUND_LOOK_S
        if quiet > SILENCE_S:
            yield ": waiting\n\n"
            quiet = 0.0
    try:
        result = await waiting
    except SymposiaError as error:
        yield error_event(fault_of(error)[1])
        return
    for record in result.rounds[seen:]:
        yield chunks.silent("symposia.round", symposia=round_extension(job_id, record))
    fault = fault_in(result)
    if fault is not None:
        yield error_event({**fault.body, "symposia": extension(result)})
        return
    if result.answer:
        yield chunks.text(0, result.answer)
    yield chunks.finish(0, refusal=None if result.answer is not None else NO_VERDICT, symposia=extension(result))
    if asked.request.stream_usage:
        yield chunks.usage(bill_usage(result))
    yield DONE


async def _guarded(events: AsyncGenerator[str, None], stack: AsyncExitStack) -> AsyncIterator[str]:
    """The events; whatever ends them, what they hold is let go, and jobs nobody reads any more are cancelled."""
    async with stack:
        try:
            async for event in events:
                yield event
        except SymposiaError as error:
            yield error_event(fault_of(error)[1])
        except Exception as error:
            log.error("a stream failed", exc_info=error)
            yield error_event(error_body("this stream failed for a reason of ours; it is logged.", type="server_error", code="bug"))
