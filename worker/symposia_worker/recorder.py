"""The recorder of a pool: it writes down what the turns came to.

Replies are recorded in batches by one thread; what is long, and the results of single prompts, go to S3 from a few others.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from symposia_shared.archive import Archive
from symposia_shared.broker import Doorbell
from symposia_shared.errors import Unavailable
from symposia_shared.jobs import SINGLE_KINDS
from symposia_shared.ledger import INLINE_BYTES, Ledger
from symposia_shared.turns import Reply
from symposia_worker.course import Course, told
from symposia_worker.keeping import Keeping
from symposia_worker.retrying import backoff, put_off
from symposia_worker.spool import Spool
from symposia_worker.tickets import Ticket, Tickets

log = logging.getLogger(__name__)

#: records written in one round trip at most
RECORD_BATCH = 64
#: the longest reply of a single prompt that is recorded as it stands: it leaves Redis with its job as soon as the result is committed, and would else
#: be written to S3, and read again, for these few milliseconds. While commits fail, it goes the way of the others.
SINGLE_BYTES = 4096


class Recorder:
    """Records replies, each once, and ends their tickets.

    ``on_end`` is called with each ticket that has ended, ``on_recorded`` after each batch, from the recorder's threads.
    ``stopping``: nothing new is begun; ``stopped``: what still waits for Redis or S3 is left to the ledger.
    """

    def __init__(self, *, ledger: Ledger, archive: Archive, course: Course, bell: Doorbell, tickets: Tickets, stopping: threading.Event,
                 stopped: threading.Event, on_end: Callable[[Ticket], None], on_recorded: Callable[[], None],
                 spool: Spool | None = None) -> None:
        self.ledger, self.archive, self.course, self.bell, self.tickets = ledger, archive, course, bell, tickets
        self._stopping, self._stopped = stopping, stopped
        self._on_end, self._on_recorded = on_end, on_recorded
        self._replies: queue.Queue[tuple[Ticket, Reply, str | None]] = queue.Queue()
        #: whether the last commit went through
        self._commits = True
        self._papers = ThreadPoolExecutor(8, thread_name_prefix="papers")
        self.keeping = Keeping(archive=archive, tickets=tickets, spool=Spool(None, 0) if spool is None else spool, stopped=stopped,
                               put=lambda ticket, reply, kept: self._replies.put((ticket, reply, kept)),
                               end=lambda ticket, words: self.end(ticket, words, final=False))
        self._thread = threading.Thread(target=self._loop, name="record_loop", daemon=True)

    def start(self) -> None:
        """Begin to record; what an earlier process of this pool left in its spool comes first."""
        self.keeping.start()
        self._thread.start()

    def finish(self) -> None:
        """Wait for the papers that are being written."""
        self._papers.shutdown(wait=True)
        self.keeping.finish()

    @property
    def idle(self) -> bool:
        """Whether no reply waits to be recorded."""
        return self._replies.empty()

    def put(self, ticket: Ticket, reply: Reply) -> None:
        """Have a reply recorded."""
        self._replies.put((ticket, reply, None))

    def later(self, act: Callable[..., None], *args: object) -> None:
        """Run ``act`` beside, on one of the threads for papers."""
        self._papers.submit(act, *args)

    def end(self, ticket: Ticket, words: str, *, final: bool = True) -> None:
        """End a ticket: its doorbell's thread goes on, its slot is free."""
        self.tickets.drop(ticket, words, final=final)
        self.archive.let_go(ticket.claim.spec)
        ticket.finish()
        self.keeping.forget(ticket.id)
        self._on_end(ticket)

    def patiently(self, act: Callable[[], Any], ticket: Ticket | None = None) -> Any:
        """``act`` until Redis and S3 are there; None where ``ticket`` ended meanwhile. Leases go on being renewed by the heartbeat."""
        attempt = 0
        while True:
            try:
                return act()
            except Unavailable as error:
                if (ticket is not None and ticket.over.is_set()) or self._stopped.is_set():
                    return None
                log.warning("waiting: %s", error)
                time.sleep(backoff(attempt))
                attempt += 1

    def _loop(self) -> None:
        while not self._stopped.is_set():
            try:
                batch = [self._replies.get(timeout=0.5)]
            except queue.Empty:
                continue
            while len(batch) < RECORD_BATCH:
                try:
                    batch.append(self._replies.get_nowait())
                except queue.Empty:
                    break
            try:
                self._record(batch)
            except Exception:
                log.exception("recording %d replies", len(batch))

    def _record(self, batch: Sequence[tuple[Ticket, Reply, str | None]]) -> None:
        rows: list[tuple[Ticket, Reply, str]] = []
        for ticket, reply, kept in batch:
            if kept is None and getattr(reply, "vectors", None):
                self.keeping.begin(ticket, reply, None)  # to write megabytes of figures out would hold the others up
                continue
            text = kept or reply.to_json()
            if kept is None and len(text.encode()) > self._most_inline(ticket):
                self.keeping.begin(ticket, reply, text)
            elif not ticket.over.is_set():
                rows.append((ticket, reply, text))
        rows = self.patiently(lambda: put_off(self.ledger, rows, self.end))
        if not rows:
            return
        answers = self.patiently(lambda: self.ledger.record([(t.claim, text, r.spoke, t.attended) for t, r, text in rows]))
        for (ticket, reply, _), answer in zip(rows, answers, strict=True):
            self._recorded(ticket, reply, answer.status, answer.closed, answer.ring)
        self._on_recorded()

    def _most_inline(self, ticket: Ticket) -> int:
        """Bytes of a reply that may stand in Redis."""
        leaves_soon = self._commits and ticket.claim.kind in SINGLE_KINDS and not ticket.claim.reuse  # one that is kept to be given again stays
        return SINGLE_BYTES if leaves_soon else INLINE_BYTES

    def _recorded(self, ticket: Ticket, reply: Reply, status: str, closed: str, ring: str) -> None:
        claim, seat = ticket.claim, ticket.claim.seat
        self.keeping.forget(ticket.id)
        words = told(reply) if status in ("ok", "again") else status
        log.info("%s ← %s r%d t%d %s", claim.kind, seat.job_id, seat.round, seat.turn, words)
        if claim.kind in SINGLE_KINDS and closed:
            ticket.recorded = True
            self.keeping.writers.submit(self._commit, ticket, words)
            return
        if ring == "advance":
            self.bell.advance(seat.job_id, kind=claim.kind)
        elif ring == "settle":
            self.bell.settle(seat.job_id, seat.round, kind=claim.kind)
        self.end(ticket, words)

    def _commit(self, ticket: Ticket, words: str) -> None:
        """A single prompt needs no coordinator: its pool commits. Should this fail, the sweeper finds the job."""
        job_id = ticket.claim.seat.job_id
        self._on_end(ticket)
        self.tickets.drop(ticket, words)
        try:
            for attempt in range(5):
                try:
                    self.course.advance(job_id)
                    self._commits = True
                    break
                except Unavailable as error:
                    self._commits = False
                    log.warning("commit of %s waits: %s", job_id, error)
                    ticket.let_go.set()  # the ledger has the reply: its doorbell's thread is of more use elsewhere
                    if self._stopping.wait(backoff(attempt)):
                        break
        except Exception:
            log.exception("commit of %s", job_id)
        finally:
            self.archive.let_go(ticket.claim.spec)
            ticket.finish()
