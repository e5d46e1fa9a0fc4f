"""Long replies on their way to S3, with the spool beside: what S3 has not taken within a moment goes to disk and frees its slot."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from symposia_shared.archive import Archive
from symposia_shared.errors import Unavailable
from symposia_shared.ledger import LEASE_MS, Ledger
from symposia_shared.turns import Reply
from symposia_shared.values import Value
from symposia_worker.retrying import backoff
from symposia_worker.spool import Left, Spool, Spooled
from symposia_worker.tickets import Ticket, Tickets

log = logging.getLogger(__name__)

#: seconds a reply may wait for S3 before it is spooled
SLOW_S = 2.0
#: seconds between looks at what waits
LOOK_S = 0.25
#: seconds before a write that failed is tried again, at first and at most
FIRST_S, MOST_S = 0.2, 5.0
#: replies sent from the spool at once
AT_ONCE = 4
#: replies and results written at once
WRITERS = 8


class _AReply(Value):
    reply: Reply


@dataclass(slots=True)
class _Waiting:
    ticket: Ticket
    reply: Reply
    #: its JSON, once it was written out
    text: str | None
    since: float
    #: the spool has refused it: it is kept in memory, and its slot with it
    refused: bool = False

    def written(self) -> str:
        """Its JSON."""
        if self.text is None:
            self.text = self.reply.to_json()
        return self.text


def hold_leases(ledger: Ledger, left: Sequence[Left], until: threading.Event) -> None:
    """Renew the leases of what an earlier process of the pool left, until its next one does: a checkpoint takes longer to load than a lease lasts."""
    held = [(found.claim.seat, found.claim.fence) for found in left]
    while held and not until.is_set():
        try:
            lost = set(ledger.renew(held))
            held = [(seat, fence) for seat, fence in held if seat not in lost]
        except Unavailable as error:
            log.warning("the leases of %d spooled replies are not renewed: %s", len(held), error)
        until.wait(LEASE_MS / 10_000)


class Keeping:
    """Brings long replies to S3. ``put`` is told each with the form it has in the ledger then, ``end`` a ticket whose turn is to be asked again.

    ``stopped``: no more is tried.
    """

    def __init__(self, *, archive: Archive, tickets: Tickets, spool: Spool, stopped: threading.Event,
                 put: Callable[[Ticket, Reply, str], None], end: Callable[[Ticket, str], None]) -> None:
        self.archive, self.tickets, self.spool, self._stopped, self._put, self._end = archive, tickets, spool, stopped, put, end
        self._waiting: dict[str, _Waiting] = {}
        self._shelved: dict[str, Ticket] = {}
        #: being sent to S3 now, and sent but not yet recorded
        self._sending: set[str] = set()
        #: how many are being sent from the spool, how many failed in a row, and when the next may be
        self._under_way, self._failures, self._not_before = 0, 0, 0.0
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="keeping", daemon=True)
        #: threads of their own: writes that hang shall not keep prompts from being read
        self.writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="writers")
        self._senders = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="spool")

    def start(self) -> None:
        """Take up what an earlier process of this pool left, and begin to look after what waits."""
        for found in self.spool.restore():
            ticket = Ticket(claim=found.claim, claimed_at=found.claimed_at)
            self.tickets.take([ticket], 0)
            self._shelve(ticket)
            log.info("%s ↑ %s is in the spool since before the start", ticket.claim.kind, ticket.claim.seat.key)
        self._thread.start()

    def begin(self, ticket: Ticket, reply: Reply, text: str | None) -> None:
        """Have a reply kept; ``text``: its JSON, where that is known."""
        with self._mutex:
            self._waiting[ticket.id] = _Waiting(ticket, reply, text, time.monotonic())
        self.writers.submit(self._try, ticket.id)

    def spool_all(self) -> None:
        """Bring to disk what still waits, for an end of the process that waits no longer."""
        for waiting in self._snapshot():
            self._to_spool(waiting)

    def forget(self, ticket_id: str) -> None:
        """A reply was recorded, or is not wanted any more."""
        with self._mutex:
            self._waiting.pop(ticket_id, None)
            self._shelved.pop(ticket_id, None)
            self._sending.discard(ticket_id)
        self.spool.drop(ticket_id)

    def finish(self) -> None:
        """Wait for what is being sent."""
        self.writers.shutdown(wait=True)
        self._senders.shutdown(wait=True, cancel_futures=True)

    def _snapshot(self) -> list[_Waiting]:
        with self._mutex:
            return list(self._waiting.values())

    def _try(self, ticket_id: str) -> None:
        """Send one from memory until it is sent, spooled, or not wanted any more."""
        attempt = 0
        while not self._stopped.is_set():
            with self._mutex:
                waiting = self._waiting.get(ticket_id)
                if waiting is None or waiting.ticket.over.is_set():
                    self._waiting.pop(ticket_id, None)
                    return
                self._sending.add(ticket_id)
            try:
                kept = self.archive.reply(waiting.ticket.claim, waiting.written())
            except Unavailable as error:
                with self._mutex:
                    self._sending.discard(ticket_id)
                if self._to_spool(waiting):
                    return
                log.warning("waiting: %s", error)
                self._stopped.wait(backoff(attempt, first_s=FIRST_S, most_s=MOST_S))
                attempt += 1
                continue
            with self._mutex:
                self._waiting.pop(ticket_id, None)
            self._put(waiting.ticket, waiting.reply, kept)
            return

    def _to_spool(self, waiting: _Waiting) -> bool:
        """Whether a reply is on disk now; its slot is then free."""
        ticket = waiting.ticket
        if ticket.over.is_set():
            return True
        if not self.spool.put(Spooled.of(ticket.claim, ticket.claimed_at, waiting.written())):
            waiting.refused = True
            return False
        with self._mutex:
            self._waiting.pop(ticket.id, None)
        self._shelve(ticket)
        if ticket.over.is_set():  # it ended meanwhile: nobody will come back for it
            self.forget(ticket.id)
            return True
        log.warning("%s ↓ %s is spooled: S3 has not taken its reply", ticket.claim.kind, ticket.claim.seat.key)
        return True

    def _shelve(self, ticket: Ticket) -> None:
        with self._mutex:
            self._shelved[ticket.id] = ticket
        self.tickets.shelve(ticket)

    def _loop(self) -> None:
        while not self._stopped.wait(LOOK_S):
            try:
                self._look()
                if time.monotonic() >= self._not_before:
                    self._send_some()
            except Exception:
                log.exception("the spool")

    def _look(self) -> None:
        now, room = time.monotonic(), self.spool.worth_asking()
        for waiting in self._snapshot():
            if now - waiting.since > SLOW_S and (room or not waiting.refused):
                self._to_spool(waiting)

    def _send_some(self) -> None:
        """Begin to send from the spool, oldest first, without waiting: where S3 hangs, what comes meanwhile must still be spooled."""
        with self._mutex:
            due = [t for i, t in self._shelved.items() if i not in self._sending][:max(0, AT_ONCE - self._under_way)]
            self._sending.update(t.id for t in due)
            self._under_way += len(due)
        for ticket in due:
            self._senders.submit(self._send_one, ticket)

    def _send_one(self, ticket: Ticket) -> None:
        try:
            sent = self._send(ticket)
        except Exception:
            log.exception("sending %s from the spool", ticket.claim.seat.key)
            sent = False
        with self._mutex:
            self._under_way -= 1
            self._failures = 0 if sent else self._failures + 1
            if not sent:
                self._sending.discard(ticket.id)
                self._not_before = time.monotonic() + backoff(self._failures, first_s=FIRST_S, most_s=MOST_S)

    def _send(self, ticket: Ticket) -> bool:
        spooled = self.spool.get(ticket.id)
        if spooled is None:
            self._end(ticket, "its spooled reply was lost")
            return True
        try:
            kept = self.archive.reply(ticket.claim, spooled.reply)
        except Unavailable as error:
            log.warning("waiting, with %d replies in the spool: %s", len(self.spool), error)
            return False
        self._put(ticket, _AReply.model_validate({"reply": json.loads(spooled.reply)}).reply, kept)
        return True
