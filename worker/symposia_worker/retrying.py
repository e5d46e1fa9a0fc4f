"""What is tried again: when, and turns that failed for a cause another try may mend, which are put off instead of recorded."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence

from symposia_shared.ledger import Ledger
from symposia_shared.retries import retry_for
from symposia_shared.turns import Abstention, Reply
from symposia_worker.tickets import Ticket

log = logging.getLogger(__name__)

#: a reply about to be recorded: ticket, reply, its form in the ledger
Row = tuple[Ticket, Reply, str]


def backoff(attempt: int, *, first_s: float = 0.1, most_s: float = 2.0) -> float:
    """Seconds before the next try: doubling, with jitter so that many do not come at once."""
    return float(min(most_s, first_s * 2**min(attempt, 6)) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


def put_off(ledger: Ledger, rows: Sequence[Row], end: Callable[..., None]) -> list[Row]:
    """The rows that are to be recorded now; the others' turns are queued again for later and their tickets ended.

    Raises BrokerUnavailable; it may then be called again with the same rows: a turn that was put off already is ended.
    """
    return [row for row in rows if not _put_off(ledger, row[0], row[1], end)]


def _put_off(ledger: Ledger, ticket: Ticket, reply: Reply, end: Callable[..., None]) -> bool:
    retry = retry_for(reply)
    if ticket.over.is_set():
        return True
    if retry is None or not isinstance(reply, Abstention):
        return False
    if ledger.postpone(ticket.claim, reply.cause, retry, jitter=random.random()) != "later":  # noqa: S311 - jitter, not a secret
        return False
    seat = ticket.claim.seat
    log.info("%s ↻ %s r%d t%d tried again later: %s", ticket.claim.kind, seat.job_id, seat.round, seat.turn, reply.cause)
    end(ticket, f"tried again: {reply.cause}", final=False)
    return True
