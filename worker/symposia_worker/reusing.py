"""Turns of a pool that a kept reply may answer: looked up before they are run, kept afterwards, and of equal ones at once only one is run."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from symposia_shared.broker import placed_as
from symposia_shared.errors import Unavailable
from symposia_shared.reuse import Replies, digest_of
from symposia_shared.turns import Completion, Kept, Reply, Timing
from symposia_worker.tickets import Ticket

log = logging.getLogger(__name__)


class Reusing:
    """Of one pool. ``run`` begins a ticket in the engine; ``record`` has its reply recorded. All methods are safe between threads."""

    def __init__(self, replies: Replies, *, device: str, run: Callable[[Ticket], None], record: Callable[[Ticket, Reply], None]) -> None:
        self.replies, self.device = replies, device
        self._run, self._record = run, record
        #: key → who waits for the reply of the one that is looked up or run
        self._waiting: dict[str, deque[Ticket]] = {}
        #: who is looked up or run
        self._leaders: dict[str, Ticket] = {}
        self._mutex = threading.Lock()

    def key(self, ticket: Ticket, models: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Where a ticket's reply may be kept; None where it is neither looked up nor kept."""
        if not ticket.claim.reuse or ticket.turn is None:
            return None
        digest = digest_of(ticket.turn, models.get(placed_as(ticket.turn.model), {}), device=self.device)
        return None if digest is None else self.replies.key(ticket.claim.reuse, digest)

    def begin(self, ticket: Ticket, key: str) -> None:
        """Answer a ticket with the kept reply, or with that of an equal one that runs, or run it."""
        ticket.reuse_key = key
        with self._mutex:
            if key in self._leaders:
                self._waiting[key].append(ticket)
                return
            self._leaders[key], self._waiting[key] = ticket, deque()
        found = self._kept(key)
        if found is None:
            self._run(ticket)
            return
        for each in [ticket, *self._over(ticket)]:
            self._give(each, found)

    def done(self, ticket: Ticket, reply: Reply, models: Mapping[str, Mapping[str, Any]]) -> None:
        """A ticket was run: keep its reply and give it to who waits, or let the next of them run.

        It is given to nobody where the checkpoint was meanwhile loaded otherwise: nobody knows then which of the two answered.
        """
        if not isinstance(reply, Completion) or self.key(ticket, models) != ticket.reuse_key:
            self._record(ticket, reply)
            self.left(ticket)
            return
        try:
            reply = self.replies.keep(ticket.reuse_key, reply, job_id=ticket.claim.seat.job_id)
        except Unavailable as error:
            log.warning("a reply of %s is not kept: %s", ticket.claim.seat.key, error)
        except Exception:  # what is wrong with a copy is no reason to lose the reply
            log.exception("a reply of %s is not kept", ticket.claim.seat.key)
        waiting = self._over(ticket)
        self._record(ticket, reply)
        given = reply.model_copy(update={"kept": Kept(key=ticket.reuse_key, made_in=ticket.claim.seat.job_id)})
        for each in waiting:
            self._give(each, given)

    def left(self, ticket: Ticket) -> None:
        """A ticket has ended without a reply to give: who waits for it is run instead."""
        with self._mutex:
            if self._leaders.get(ticket.reuse_key) is not ticket:
                return
            waiting = self._waiting[ticket.reuse_key]
            while waiting and waiting[0].over.is_set():
                waiting.popleft()
            follows = waiting.popleft() if waiting else None
            if follows is None:
                del self._leaders[ticket.reuse_key], self._waiting[ticket.reuse_key]
            else:
                self._leaders[ticket.reuse_key] = follows
        if follows is not None:
            self._run(follows)

    def _over(self, ticket: Ticket) -> list[Ticket]:
        """End the run of a ticket's key; who waited for it."""
        with self._mutex:
            if self._leaders.get(ticket.reuse_key) is not ticket:
                return []
            del self._leaders[ticket.reuse_key]
            return list(self._waiting.pop(ticket.reuse_key))

    def _kept(self, key: str) -> Completion | None:
        try:
            return self.replies.get(key)
        except Unavailable as error:
            log.warning("kept replies cannot be looked up: %s", error)
        except Exception:
            log.exception("the kept reply %s cannot be read", key)
        return None

    def _give(self, ticket: Ticket, reply: Completion) -> None:
        if not ticket.over.is_set():
            self._record(ticket, reply.model_copy(update={"timing": Timing(claimed_at=ticket.claimed_at, last_token_at=time.time())}))
