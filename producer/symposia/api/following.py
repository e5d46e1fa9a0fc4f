"""A job followed to its end: its rounds as they close, the text of its verdict as it is written.

What is told, and in which order, is a function of the job's record alone: whoever follows it again, from another process or after its
end, is told the same things in the same order and so can go on where he stopped. The rounds that were closed before the verdict was
begun come first, then the verdict in words, then the round it was spoken in, then the result.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from symposia.api.desk import Desk
from symposia.handle import Handle
from symposia_shared.answers.reading import MOST_CHARACTERS, said
from symposia_shared.errors import SymposiaError, UnknownJob
from symposia_shared.jobs import Collaboration, Job
from symposia_shared.patterns import parse_job
from symposia_shared.patterns.artefacts import spoken
from symposia_shared.play import Round, advance, played
from symposia_shared.results import Result, RoundRecord
from symposia_shared.said import Hearing, Piece, visible, whole_words, words

#: seconds between looks for a closed round
ROUND_LOOK_S = 0.3


@dataclass(frozen=True, slots=True)
class Closed:
    """A round was closed."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Word:
    """More of the verdict."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended. ``diverged``: the words told are not the beginning of its answer, which was begun again after its device was lost."""

    result: Result
    diverged: bool = False


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing was told for a while."""


Told = Closed | Word | Ended | Silence


def speaks(job: Job, rounds: Sequence[RoundRecord]) -> tuple[int, int] | None:
    """Round and place of the turn that writes the verdict, where the play says so of the round that follows ``rounds``."""
    if not isinstance(job, Collaboration):
        return (0, 0) if not rounds else None
    try:
        step = advance(job, played(rounds))
    except SymposiaError:
        return None
    return (len(rounds), step.verdict_by) if isinstance(step, Round) and step.verdict_by is not None else None


@dataclass(slots=True)
class Following:
    """How far one reader has been told."""

    job: Job
    rounds: list[RoundRecord] = field(default_factory=list)
    seat: tuple[int, int] | None = None
    hearings: dict[tuple[int, int], Hearing] = field(default_factory=dict)
    #: text told so far
    told: str = ""
    diverged: bool = False

    async def look(self) -> None:
        """Find out who speaks next, once it is known which rounds are closed."""
        self.seat = await asyncio.to_thread(speaks, self.job, list(self.rounds))

    def hear(self, piece: Piece) -> list[Told]:
        """A pool has said something of a turn; what it says of one that may speak later is kept."""
        seat = (piece.round, piece.turn)
        if seat[0] < len(self.rounds):
            return []
        self.hearings.setdefault(seat, Hearing(self._shown)).hear(piece)
        return self.fresh()

    def fresh(self) -> list[Told]:
        """The words of the turn that speaks which were not told yet."""
        hearing = self.hearings.get(self.seat) if self.seat is not None else None
        return [] if hearing is None or self.diverged else self._tell(whole_words(hearing.sent))

    async def closed(self, record: RoundRecord) -> list[Told]:
        """The next round was closed."""
        before: list[Told] = []
        if self.seat is not None and isinstance(self.job, Collaboration):
            text = spoken(record.turns[self.seat[1]].reply)
            if text is not None or self.told:
                before = self._whole(text or "")
        self.rounds.append(record)
        self.hearings = {seat: h for seat, h in self.hearings.items() if seat[0] >= len(self.rounds)}
        await self.look()
        return [*before, Closed(record), *self.fresh()]

    async def ended(self, result: Result) -> list[Told]:
        """All that was not told yet."""
        told: list[Told] = []
        if isinstance(self.job, Collaboration):
            for record in result.rounds[len(self.rounds):]:
                told += await self.closed(record)
        answer = result.answer
        reply = result.completion if not isinstance(self.job, Collaboration) else None
        told += self._whole(reply.text if reply is not None else answer) if answer is not None else []
        return [*told, Ended(result, self.diverged)]

    def _shown(self, text: str) -> str:
        if not isinstance(self.job, Collaboration):
            return visible(text)
        # a longer answer loses its middle before it becomes the verdict
        return said(visible(text[: MOST_CHARACTERS // 2])).strip()

    def _whole(self, text: str) -> list[Told]:
        """The rest of the verdict's text; nothing where what was told is not its beginning."""
        if self.diverged or not text.startswith(self.told):
            self.diverged = True
            return []
        return self._tell(text)

    def _tell(self, text: str) -> list[Told]:
        if not text.startswith(self.told):
            return []
        fresh, self.told = text[len(self.told):], text
        return [Word(word) for word in words(fresh)]


def recorded_job(desk: Desk, job_id: str) -> Job:
    """The job as it is run: its draws fixed, its members weighed. Raises UnknownJob."""
    entry = desk.client.ledger.job(job_id)
    if entry is not None:
        return parse_job(json.loads(desk.client.archive.read(entry.spec)))
    result = desk.client.archive.result(job_id)
    if result is None:
        raise UnknownJob(f"there is no job {job_id!r}.", field="job_id", value=job_id)
    return parse_job(result.job)


async def follow(desk: Desk, handle: Handle, queue: asyncio.Queue[Any]) -> AsyncGenerator[Told, None]:
    """What becomes of a job, until it has ended. ``queue`` is one that ``Ears.listen`` fills with what is said of it."""
    state = Following(await asyncio.to_thread(recorded_job, desk, handle.job_id))
    await state.look()
    waiting = asyncio.ensure_future(handle.wait_async())
    try:
        while not waiting.done():
            heard = await _next(queue, waiting)
            if isinstance(heard, Piece):
                for told in state.hear(heard):
                    yield told
                if heard.round <= len(state.rounds):
                    continue
            record = await _closed_round(desk, handle.job_id, state)
            for told in await state.closed(record) if record is not None else ([Silence()] if heard is None else []):
                yield told
        for told in await state.ended(await waiting):
            yield told
    finally:
        waiting.cancel()


async def _next(queue: asyncio.Queue[Any], waiting: asyncio.Future[Result]) -> Piece | None:
    getting = asyncio.ensure_future(queue.get())
    await asyncio.wait({getting, waiting}, timeout=ROUND_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    if not getting.done():
        getting.cancel()
        return None
    piece = getting.result()[1]
    return piece if isinstance(piece, Piece) else None


async def _closed_round(desk: Desk, job_id: str, state: Following) -> RoundRecord | None:
    if not isinstance(state.job, Collaboration):
        return None
    with suppress(SymposiaError):
        return await asyncio.to_thread(desk.client.archive.round, job_id, len(state.rounds))
    return None

