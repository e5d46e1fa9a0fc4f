"""``GET /v1/jobs/{id}/events``: a job's progress as server-sent events, gone on with after a disconnect by ``Last-Event-ID``.

An event's id says all that its reader has: ``ROUND:PLACES`` (the replies of the open round that were told), so that whoever serves the
rest needs to know nothing else. Replies are told as they are recorded, in any order; then the round as it was closed, the verdict, the end.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from symposia.api import schemas
from symposia.api.asking import caller, desk_of
from symposia.api.desk import Desk
from symposia.api.faults import fault_in, refused
from symposia.api.following import recorded_job
from symposia.api.routes.jobs import check_tenant
from symposia.api.streaming import SILENCE_S, SILENT, guarded, sse
from symposia_shared.archive import Archive
from symposia_shared.errors import SymposiaError
from symposia_shared.jobs import Job
from symposia_shared.openai.collaborations import extension, round_extension
from symposia_shared.play import Round, advance, played
from symposia_shared.results import Result, RoundRecord
from symposia_shared.turns import Reply, Turn
from symposia_shared.values import Value

#: seconds between looks at the ledger
LOOK_S = 0.4
_ID = re.compile(r"(\d{1,6}):((?:\d{1,6}(?:\.\d{1,6})*)?)|(v)|(e)")


class _AReply(Value):
    reply: Reply


@dataclass(slots=True)
class Cursor:
    """What a reader has: rounds told whole, replies of the next one, whether the verdict and the end were told."""

    round: int = 0
    places: set[int] = field(default_factory=set)
    verdict: bool = False
    ended: bool = False

    @staticmethod
    def read(text: str | None) -> Cursor:
        """The cursor an event's id says. Raises HttpFault 400 for what is none."""
        found = _ID.fullmatch(text) if text is not None else None
        if text is not None and found is None:
            raise refused(400, f"'Last-Event-ID' is {text[:40]!r}, which is no event's id of ours.", code="invalid_value", param="Last-Event-ID")
        if found is None:
            return Cursor()
        if found[3] or found[4]:
            return Cursor(verdict=True, ended=bool(found[4]))
        return Cursor(int(found[1]), {int(p) for p in found[2].split(".") if p})

    @property
    def id(self) -> str:
        """The id of an event after which this is what its reader has."""
        if self.ended or self.verdict:
            return "e" if self.ended else "v"
        return f"{self.round}:{'.'.join(map(str, sorted(self.places)))}"


async def job_events(request: Request, job_id: str) -> Response:
    """A job's replies as they come, its rounds as they close, its verdict and its end. The job goes on when nobody reads any more."""
    key, desk = await caller(request), desk_of(request)
    await asyncio.to_thread(check_tenant, desk, key, job_id)
    cursor = Cursor.read(request.headers.get("last-event-id") or request.query_params.get("last_event_id"))
    return sse(guarded(_events(desk, job_id, cursor), AsyncExitStack()))


async def _events(desk: Desk, job_id: str, cursor: Cursor) -> AsyncGenerator[str, None]:
    yield "retry: 1000\n\n"
    job = await asyncio.to_thread(recorded_job, desk, job_id)
    watched = Watched(job)
    quiet = 0.0
    while not cursor.ended:
        result, found = await asyncio.to_thread(_look, desk, job_id, watched, cursor)
        events = list(_told(job_id, cursor, watched.rounds, found, result))
        for event in events:
            yield event
        if cursor.ended:
            return
        quiet = 0.0 if events else quiet + LOOK_S
        if quiet > SILENCE_S:
            yield SILENT
            quiet = 0.0
        await asyncio.sleep(LOOK_S)


@dataclass(slots=True)
class Watched:
    """A job as it was last looked at."""

    job: Job
    #: those that were closed; they only grow
    rounds: list[RoundRecord] = field(default_factory=list)
    #: what follows them, and how many they were when that was found out
    step: Round | None = None
    step_of: int = -1

    def turns(self) -> tuple[Turn, ...]:
        """The turns of the open round; the play is replayed once for each."""
        if self.step_of != len(self.rounds):
            self.step, self.step_of = _step(self.job, self.rounds), len(self.rounds)
        return self.step.turns if self.step is not None else ()


def _step(job: Job, rounds: list[RoundRecord]) -> Round | None:
    try:
        step = advance(job, played(rounds))
    except SymposiaError:
        return None
    return step if isinstance(step, Round) else None


def _look(desk: Desk, job_id: str, watched: Watched, cursor: Cursor) -> tuple[Result | None, list[tuple[Turn, Reply | None]]]:
    """What stands now: the rounds grow by those that were closed; then the result, or the open round's turns, with the replies the reader has not."""
    entry, archive, rounds = desk.client.ledger.job(job_id), desk.client.archive, watched.rounds
    if entry is None:
        result = archive.result(job_id)
        if result is not None:
            rounds[:] = result.rounds
        return result, []
    while len(rounds) < entry.current and (record := archive.round(job_id, len(rounds))) is not None:
        rounds.append(record)
    if entry.round is None or len(rounds) != entry.current:
        return None, []
    turns = watched.turns()
    if len(turns) != len(entry.round.turns):
        return None, []
    has = cursor.places if cursor.round == entry.current else ()
    return None, [(turn, _reply(archive, t.reply) if t.reply and place not in has else None)
                  for place, (turn, t) in enumerate(zip(turns, entry.round.turns, strict=True))]


def _reply(archive: Archive, text: str) -> Reply:
    return _AReply.model_validate({"reply": json.loads(archive.read(text))}).reply


def _told(job_id: str, cursor: Cursor, rounds: list[RoundRecord], found: list[tuple[Turn, Reply | None]], result: Result | None) -> Iterator[str]:
    """What of that the reader has not been told."""
    if not cursor.verdict:
        for record in rounds[cursor.round:]:
            yield from _replies(job_id, cursor, [(t.turn, t.reply) for t in record.turns])
            cursor.round, cursor.places = record.round + 1, set()
            yield _event(cursor, "round", round_extension(job_id, record))
        yield from _replies(job_id, cursor, found)
    if result is None:
        return
    if not cursor.verdict:
        cursor.verdict = True
        yield _event(cursor, "verdict", extension(result) | {"answer": result.answer})
    cursor.ended = True
    fault = fault_in(result)
    yield _event(cursor, "ended", {"job_id": job_id, "status": result.state, "error": None if fault is None else fault.body["error"],
                                   "result_uri": result.result_uri})


def _replies(job_id: str, cursor: Cursor, found: list[tuple[Turn, Reply | None]]) -> Iterator[str]:
    for place, (turn, reply) in enumerate(found):
        if reply is None or place in cursor.places:
            continue
        cursor.places.add(place)
        said = {"text": reply.text} if reply.kind == "completion" else {"cause": reply.cause}
        yield _event(cursor, "reply", {"job_id": job_id, "round": cursor.round, "turn": place, "member": turn.member, "model": turn.model,
                                       "spoke": reply.spoke, **said})


def _event(cursor: Cursor, kind: str, data: dict[str, Any]) -> str:
    return f"id: {cursor.id}\nevent: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


router = APIRouter()
router.add_api_route("/v1/jobs/{job_id}/events", job_events, methods=["GET"], tags=["jobs"], openapi_extra=schemas.KEYED)
