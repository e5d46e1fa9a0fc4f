"""Answers sent as they come: what pools say of them, ended by the recorded result, which alone is true."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from symposia.api.desk import Desk
from symposia.api.faults import HttpFault, fault_in
from symposia.api.following import ROUND_LOOK_S, Closed, Ended, Silence, Told, Word, follow
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
#: that comment
SILENT = ": waiting\n\n"


def sse(events: AsyncIterator[str]) -> StreamingResponse:
    """The response that sends these events."""
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def stream_prompts(desk: Desk, key: ApiKey, asked: Request, chunks: Chunks, *, request: HttpRequest, once: Once | None = None,
                         webhook: str | None = None) -> StreamingResponse:
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
        submitted = await desk.ask(key, asked.jobs, ids, stream=True, once=once, request=request, webhook=webhook)
        handles, chunks = submitted.handles, told_again(chunks, submitted.before)
        ids = [handle.job_id for handle in handles]
        waits = [asyncio.create_task(_ended(desk, handle, queue)) for handle in handles]
        stack.callback(lambda: [task.cancel() for task in waits])
        first = await _peek(queue)
    except BaseException:
        await stack.aclose()
        raise
    return sse(guarded(_choices(ids, asked, chunks, queue, first), stack))


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
            yield SILENT
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
            yield error_event(fault.body if fault is not None else diverged_body(job_id))
            return
        if rest:
            yield chunks.text(index, rest)
        yield chunks.end(index, reply)
        replies[index] = reply
    if asked.stream_usage:
        yield chunks.usage(usage_of(asked, [replies[i] for i in range(len(ids))]))
    yield DONE


def diverged_body(job_id: str) -> dict[str, Any]:
    """The error of a stream that cannot go on."""
    return error_body(_OTHERWISE.format(job_id), type="server_error", code="stream_diverged")


#: said where an answer was begun again and came out otherwise, after a part of the first was sent
_OTHERWISE = "the answer was begun again after its device was lost, and came out otherwise than what was sent; the recorded one is at /v1/jobs/{}."


async def stream_team(desk: Desk, key: ApiKey, asked: Asked, chunks: Chunks, *, request: HttpRequest, once: Once | None = None,
                      webhook: str | None = None) -> StreamingResponse:
    """A collaboration's rounds as they close, and its verdict as it is written, or once it is decided."""
    ids = desk.new_ids(1)
    queue: asyncio.Queue[Any] = asyncio.Queue()
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(desk.ears.listen(ids, queue))
        submitted = await desk.ask(key, [asked.job], ids, stream=True, once=once, request=request, webhook=webhook)
        (handle,), chunks = submitted.handles, told_again(chunks, submitted.before)
        if once is None:
            stack.callback(desk.cancel_later, ids)
        if handle.job_id not in ids:
            await stack.enter_async_context(desk.ears.listen([handle.job_id], queue))
    except BaseException:
        await stack.aclose()
        raise
    return sse(guarded(_rounds(handle.job_id, asked, chunks, follow(desk, handle, queue)), stack))


async def _rounds(job_id: str, asked: Asked, chunks: Chunks, telling: AsyncGenerator[Told, None]) -> AsyncGenerator[str, None]:
    if chunks.chat:
        yield chunks.role(0)
    yield chunks.silent("symposia.job", symposia={"job_id": job_id, "pattern": asked.job.name})
    quiet = Quiet()
    async with aclosing(telling):
        async for told in telling:
            if quiet.long(told):
                yield SILENT
            elif isinstance(told, Closed):
                yield chunks.silent("symposia.round", symposia=round_extension(job_id, told.record))
            elif isinstance(told, Word):
                yield chunks.text(0, told.text)
            elif isinstance(told, Ended):
                for event in _decided(told, asked, chunks):
                    yield event


def _decided(told: Ended, asked: Asked, chunks: Chunks) -> Iterator[str]:
    result = told.result
    fault = fault_in(result)
    if fault is not None:
        yield error_event({**fault.body, "symposia": extension(result)})
        return
    if told.diverged:
        yield error_event({**diverged_body(result.job_id), "symposia": extension(result)})
        return
    yield chunks.finish(0, refusal=None if result.answer is not None else NO_VERDICT, symposia=extension(result))
    if asked.request.stream_usage:
        yield chunks.usage(bill_usage(result))
    yield DONE


class Quiet:
    """Tells when nothing was said for so long that a comment is due."""

    def __init__(self) -> None:
        self._looks = 0

    def long(self, told: Told) -> bool:
        """Whether it is time for a comment; any other thing that is told begins the time anew."""
        self._looks = self._looks + 1 if isinstance(told, Silence) else 0
        if self._looks * ROUND_LOOK_S <= SILENCE_S:
            return False
        self._looks = 0
        return True


async def guarded(events: AsyncGenerator[str, None], stack: AsyncExitStack) -> AsyncIterator[str]:
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
