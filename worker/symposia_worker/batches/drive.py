"""One batch, driven: read a span, ask its lines, hear what they came to, write its parts; at the end put all parts together.

What is known here may be lost at any moment: spans, results and the ledger say it again. A line's jobs have ids of their own, so that to
submit them again is no harm, and of a span that an earlier driver had begun a line is asked only where it has neither a job nor a result.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from symposia_shared.archive import Archive
from symposia_shared.batches.files import Files
from symposia_shared.batches.lines import Question, answered, missing, refused, seed_of, unfinished
from symposia_shared.batches.parts import Parts
from symposia_shared.batches.records import Batches
from symposia_shared.batches.values import ENDED, Batch, Counts, Status, fault
from symposia_shared.broker import Doorbell
from symposia_shared.errors import BadInput, SymposiaError, Unavailable, UnknownJob
from symposia_shared.ledger import Ledger, NewJob
from symposia_shared.ledger.control import Control
from symposia_shared.results import Result
from symposia_shared.settings import ApiSettings, BatchSettings, LimitSettings
from symposia_shared.standing import alive
from symposia_shared.store import Replaced
from symposia_shared.submission import busy, new_job, refusal, ring
from symposia_worker.batches.rates import Rates
from symposia_worker.batches.reading import Input
from symposia_worker.batches.spans import Asked, OpenSpan

log = logging.getLogger(__name__)

#: seconds between two steps
TICK_S = 0.1
#: spans open at once, lines submitted and results read in one step
MOST_OPEN, MOST_AT_ONCE = 32, 100
#: of a batch that ends early: spans written in one step
MOST_CLOSED = 50
#: looks at which a job is nowhere before it is asked again, or given up where it cannot be
MOST_UNSEEN = 20
#: lines in flight at least, and seconds for which the pools' slots are remembered
LEAST, SLOTS_S = 64, 2.0
#: seconds between two words on progress, and before a queue that is full is tried again
TELL_S, FULL_S = 0.5, 1.0
#: seconds a line's job may outlast its batch, whose own end it is that decides
GRACE_S = 30.0


@dataclass(slots=True)
class Seams:
    """What drives need of the outside."""

    ledger: Ledger
    archive: Archive
    bell: Doorbell
    batches: Batches
    files: Files
    limits: LimitSettings
    api: ApiSettings
    settings: BatchSettings


class _Lost(Exception):
    """The batch is another driver's, has moved on, or this driver is stopped."""


class Drive:
    """One batch from where it stands to its end, or until ``stop``."""

    def __init__(self, batch_id: str, seams: Seams, owner: str, stop: threading.Event) -> None:
        self.id, self.seams, self.owner, self._stop = batch_id, seams, owner, stop
        self.parts = Parts(seams.archive.store, batch_id)
        self._input: Input
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="batch")
        self._forget()

    def _forget(self) -> None:
        """Know nothing: the next step reads all anew."""
        self._batch: Batch | None = None
        self._open: dict[int, OpenSpan] = {}
        #: spans to be opened, in order; those up to ``_begun`` may have been by an earlier driver
        self._next: list[int] = []
        self._begun = -1
        self._end = ""
        self._full_until = self._told_at = self._cancelled_at = 0.0
        self._slots, self._slots_at = 0, -SLOTS_S
        self._rates = Rates()

    def run(self) -> None:
        """Until the batch has ended, another driver has it, or this one is stopped."""
        log.info("batch → %s", self.id)
        try:
            while not self._stop.is_set() and not self._stepped():
                self._stop.wait(TICK_S)
        finally:
            self._threads.shutdown(wait=True)

    def _stepped(self) -> bool:
        """One step; True where there is no other."""
        try:
            status = self.seams.batches.hold(self.id, self.owner)
            if status == "gone":
                self.seams.batches.drop(self.id)
            return status in ("", "gone") or status in ENDED or self._went_on(status)
        except _Lost:
            log.info("batch ← %s is left to another driver", self.id)
            return True
        except Unavailable as error:
            log.warning("batch %s waits: %s", self.id, error)
            self._stop.wait(0.5)
        except Exception:
            log.exception("batch %s: begun again from what is recorded", self.id)
            self._forget()
            self._stop.wait(2.0)
        return False

    def _went_on(self, status: str) -> bool:
        try:
            return self._step(status)
        except Replaced:
            self._fail("input_file_gone", "the input file was deleted before every line was asked.")
            return False

    def _step(self, status: str) -> bool:
        if status == "validating":
            self._validate()
            return False
        if status == "finalizing":
            return self._finalize()
        batch = self._batch or self._take_up()
        self._decide(status, batch)
        self._collect(batch)
        if self._end:
            self._close(batch)
        else:
            self._fill(batch)
        self._write()
        self._tell()
        if not self._open and not self._next:
            self.seams.batches.move(self.id, ("in_progress", "cancelling"), "finalizing", end=self._end)
        return False

    # -- beginning

    def _validate(self) -> None:
        batches, batch = self.seams.batches, self.seams.batches.get(self.id)
        try:
            survey = self.seams.files.survey(batch.order.input_file_id)
        except UnknownJob:
            self._fail("input_file_gone", "the input file was deleted before the batch had begun.")
            return
        if not survey.lines:
            self._fail("empty_file", "the input file has no lines.")
        elif survey.lines > self.seams.settings.max_lines:
            self._fail("too_many_lines", f"the input file has {survey.lines:,} lines; at most {self.seams.settings.max_lines:,} are taken "
                                         "(SYMPOSIA_BATCHES__MAX_LINES).")
        else:
            batches.move(self.id, ("validating",), "in_progress", total=survey.lines)

    def _fail(self, code: str, message: str) -> None:
        # by their tag: also those that an earlier driver had submitted
        self._cancel_jobs(Control(self.seams.ledger).tagged(f"batch:{self.id}"))
        self.seams.batches.end(self.id, ("validating", "in_progress", "cancelling"), "failed", why=json.dumps([fault(code, message)]))
        log.warning("batch ← %s failed: %s", self.id, message)

    def _take_up(self) -> Batch:
        """Read how far an earlier driver came. Raises Replaced where the input is gone."""
        batches = self.seams.batches
        batch = batches.get(self.id)
        try:
            survey = self.seams.files.survey(batch.order.input_file_id)
        except UnknownJob as error:
            raise Replaced(batch.order.input_file_id) from error
        self._input = Input(batch.order, survey, ledger=self.seams.ledger, archive=self.seams.archive, limits=self.seams.api)
        marked, self._begun = batches.marked(self.id), batches.begun(self.id)
        self._next = [n for n in range(len(survey.spans)) if n not in marked]
        self._rates = Rates()
        self._batch = batch
        return batch

    def _decide(self, status: str, batch: Batch) -> None:
        if status == "cancelling":
            self._end = "cancelled"
        elif time.time() >= batch.expires_at:
            self._end = "expired"

    # -- asking

    def _fill(self, batch: Batch) -> None:
        """Ask until as much is in flight as may be, or a step's worth was asked."""
        if time.monotonic() < self._full_until:
            return
        chosen: list[tuple[OpenSpan, Question]] = []
        try:
            self._choose(batch, chosen)
            if chosen:
                self._submit(batch, chosen)
        except Unavailable:
            # lines that left their spans may have been recorded or not: the ledger is asked, as after a kill. Without any, what is known still holds
            if chosen:
                self._forget()
            raise

    def _choose(self, batch: Batch, chosen: list[tuple[OpenSpan, Question]]) -> None:
        """Take lines from their spans, in order; added to ``chosen`` one by one, so that none is out of sight where a span cannot be opened."""
        room = self._window() - self._in_flight
        while len(chosen) < min(room, MOST_AT_ONCE):
            span = next((s for s in self._open.values() if s.todo), None)
            if span is not None:
                chosen.append((span, span.todo.popleft()))
            elif self._next and len(self._open) < MOST_OPEN:
                self._open_next(batch)
            else:
                return

    def _window(self) -> int:
        """Lines that may be in flight: twice what the pools hold, so that none waits for the next line and no queue is long."""
        if time.monotonic() - self._slots_at > SLOTS_S:
            self._slots = sum(int(pool.get("slots", 0)) for pool in alive(self.seams.ledger.workers(), "pool"))
            self._slots_at = time.monotonic()
        return min(self.seams.settings.in_flight, max(LEAST, 2 * self._slots))

    @property
    def _in_flight(self) -> int:
        return sum(len(s.asked) for s in self._open.values())

    def _open_next(self, batch: Batch) -> OpenSpan:
        number = self._next[0]
        if number > self._begun:
            self.seams.batches.begin(self.id, number)
        span = self._input.open(number)
        if number <= self._begun or batch.attempt > 1:
            self._recover(batch, span)
        self._open[number] = span
        self._next.pop(0)
        return span

    def _recover(self, batch: Batch, span: OpenSpan) -> None:
        """Of a span that was open before, find the lines that are in flight or have ended."""
        tries = range(1, batch.attempt + 1)
        wanted = {q.number: [q.job_ids(self.id, n) for n in tries] for q in span.todo}
        ids = [i for of_line in wanted.values() for of_try in of_line for i in of_try]
        there = self._there(ids)  # before S3 is asked: a job that is not there any more has its result
        results = self._results([i for i in ids if i not in there])
        todo, span.todo = list(span.todo), type(span.todo)()
        for question in todo:
            for job_ids in wanted[question.number]:
                known = [i for i in job_ids if i in there or i in results]
                ended = {i: results[i] for i in job_ids if i in results and results[i].state != "cancelled"}
                if len(known) == len(job_ids) and len(ended) + len(there & set(job_ids)) == len(job_ids):
                    span.asked[question.number] = Asked(question, list(job_ids), ended)
                    break
            else:
                span.todo.append(question)
        for asked in list(span.asked.values()):
            self._end_line(span, asked)

    def _submit(self, batch: Batch, chosen: Sequence[tuple[OpenSpan, Question]]) -> None:
        """Have lines recorded. What finds a queue full waits."""
        seconds = min(30 * 86_400.0, max(1.0, batch.expires_at - time.time()) + GRACE_S)
        made = self._threads.map(lambda c: self._records(batch, c[1], seconds), chosen)
        records: list[NewJob] = []
        ready: list[tuple[OpenSpan, Question, list[NewJob]]] = []
        for (span, question), found in zip(chosen, made, strict=True):
            if isinstance(found, SymposiaError):
                span.write(refused(question.number, question.custom_id, found, request_id=question.job_ids(self.id, batch.attempt)[0]))
            else:
                ready.append((span, question, found))
                records += found
        answers = dict(zip((r.job_id for r in records), self._recorded(records), strict=True))
        for span, question, of_line in reversed(ready):
            self._taken(span, question, of_line, [answers[r.job_id] for r in of_line])

    def _recorded(self, records: Sequence[NewJob]) -> list[str]:
        if not records:
            return []
        answers = self.seams.ledger.submit(records, limits=self.seams.limits)
        ring(self.seams.bell, records, answers)
        return answers

    def _records(self, batch: Batch, question: Question, seconds: float) -> list[NewJob] | SymposiaError:
        ids = question.job_ids(self.id, batch.attempt)
        try:
            return [new_job(self.seams.ledger, self.seams.archive, job_id, job.model_copy(update={"deadline_s": seconds}), seed=seed_of(ids[0]) + place)
                    for place, (job_id, job) in enumerate(zip(ids, question.jobs, strict=True))]
        except BadInput as error:
            return error

    def _taken(self, span: OpenSpan, question: Question, records: Sequence[NewJob], answers: Sequence[str]) -> None:
        words = [a.partition(" ")[0] for a in answers]
        if any(w in ("busy", "draining") for w in words):
            told = next(a for a in answers if a.startswith(("busy", "draining")))
            wait = busy(told.partition(" ")[2]).retry_after_s if told.startswith("busy") else FULL_S
            self._full_until = time.monotonic() + min(10.0, max(FULL_S, wait))
            span.todo.appendleft(question)
            return
        for record, answer, word in zip(records, answers, words, strict=True):
            if word not in ("ok", "exists", "later"):
                error = refusal(self.seams.ledger, self.seams.archive.store, record, answer)
                span.write(refused(question.number, question.custom_id, error, request_id=record.job_id))
                return
        span.asked[question.number] = Asked(question, [r.job_id for r in records])

    # -- hearing

    def _collect(self, batch: Batch) -> None:
        """Write down the lines whose jobs have ended."""
        ids = [i for s in self._open.values() for a in s.asked.values() for i in a.waiting]
        there = self._there(ids)
        gone = [i for i in ids if i not in there][:MOST_AT_ONCE]
        results = self._results(gone)
        sought = set(gone)
        for span in self._open.values():
            for asked in list(span.asked.values()):
                for job_id in asked.waiting:
                    if job_id in results:
                        asked.results[job_id] = results[job_id]
                    elif job_id in sought:
                        asked.unseen += 1
                self._end_line(span, asked)

    def _end_line(self, span: OpenSpan, asked: Asked) -> None:
        question = asked.question
        if not asked.waiting:
            results = tuple(asked.results[i] for i in asked.ids)
            span.write(answered(question, results, end=self._end), results)
            self._rates.ended(question.model)
        elif asked.unseen > MOST_UNSEEN:
            span.write(missing(question.number, question.custom_id, request_id=asked.ids[0]))
        else:
            return
        del span.asked[question.number]

    def _there(self, ids: Sequence[str]) -> set[str]:
        return self.seams.ledger.known(ids)

    def _results(self, ids: Sequence[str]) -> dict[str, Result]:
        found = self._threads.map(self.seams.archive.result, ids)
        return {i: r for i, r in zip(ids, found, strict=True) if r is not None}

    # -- ending

    def _close(self, batch: Batch) -> None:
        """A batch that ends early: what runs is stopped, what was not asked is told so."""
        if time.monotonic() - self._cancelled_at > 1.0:
            self._cancelled_at = time.monotonic()
            self._cancel_jobs(i for s in self._open.values() for a in s.asked.values() for i in a.waiting)
        for span in self._open.values():
            self._give_up(span, batch)
        for _ in range(min(MOST_CLOSED, len(self._next))):
            fresh = self._open_next(batch)
            self._cancel_jobs(i for a in fresh.asked.values() for i in a.waiting)
            self._give_up(fresh, batch)
            if fresh.over:
                self._write()

    def _give_up(self, span: OpenSpan, batch: Batch) -> None:
        while span.todo:
            q = span.todo.popleft()
            span.write(unfinished(q.number, q.custom_id, request_id=q.job_ids(self.id, batch.attempt)[0], end=self._end))

    def _cancel_jobs(self, job_ids: Iterable[str]) -> None:
        for job_id in Control(self.seams.ledger).cancel(list(job_ids)):
            self.seams.bell.advance(job_id, kind="cancelled")

    def _write(self) -> None:
        """Write the parts of spans that are over, then mark them."""
        again = self._batch is not None and self._batch.attempt > 1
        for number in [n for n, s in self._open.items() if s.over]:
            span = self._open[number]
            self.parts.keep(number, span.written, again=again)
            live = self._live(but=number)
            self.seams.batches.mark(self.id, number, span.counts, live=live)
            del self._open[number]

    def _live(self, *, but: int = -1) -> Counts:
        found = Counts()
        for number, span in self._open.items():
            if number != but:
                found = found.plus(span.counts)
        return found

    def _tell(self) -> None:
        now = time.monotonic()
        self._rates.look(now, in_flight=self._in_flight)
        if now - self._told_at < TELL_S:
            return
        self._told_at = now
        self.seams.batches.tell(self.id, self._live(), rate=self._rates.lines_per_s)
        measured = self._rates.take_measured()
        if measured:
            self.seams.batches.measured(measured, now_s=time.time())

    def _finalize(self) -> bool:
        """Put the parts together and end the batch."""
        batches = self.seams.batches
        batch = batches.get(self.id)
        made = {which: self.parts.assemble(self.seams.files, batch, which, still=self._still_finalizing) for which in ("out", "err")}
        status: Status = batch.end or "completed"
        fields: dict[str, object] = {which: file.id if file else "" for which, file in made.items()}
        if status == "completed":
            fields |= {"sum": batch.counts.to_json(), **{f"c:{n}": "" for n in batches.marked(self.id)}}
        if batches.end(self.id, ("finalizing",), status, **fields):
            log.info("batch ← %s %s: %d completed, %d failed", self.id, status, batch.counts.completed, batch.counts.failed)
            if status == "completed":
                self.parts.delete()
        return True

    def _still_finalizing(self) -> None:
        """Renew the hold. Raises _Lost."""
        if self._stop.is_set() or self.seams.batches.hold(self.id, self.owner) != "finalizing":
            raise _Lost
