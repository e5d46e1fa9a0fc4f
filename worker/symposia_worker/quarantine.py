"""When a device is no longer trusted with turns: its engine dies again and again, and does not answer when it is asked alone.

A turn that kills engines (poison) and a device that does look alike from one death. They are told apart by asking: after a few
deaths without a single answer between them the engine, started anew, is given a tiny prompt of our own, alone. One that answers
is sound, whatever its turns are; one that does not is put into quarantine, and its turns are left to others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from symposia_shared.errors import Unavailable
from symposia_shared.ledger import Seat
from symposia_shared.ledger.quarantined import Quarantines
from symposia_worker.tickets import Ticket

log = logging.getLogger(__name__)

#: failures without an answer between them after which the device is asked by itself
ASK_AFTER = 3
#: tries to start the engine process in a row
MOST_STARTS = 3
#: deaths within WINDOW_S that no turn alone is to blame for: more is a device that fails now and then, though it answers when asked
MOST_DEATHS, WINDOW_S = 12, 3600.0
#: seconds of a first quarantine; each that follows without an answer between lasts twice as long
FIRST_S, LONGEST_S = 300.0, 3600.0
#: seconds a device is given for an answer of a few tokens
ANSWER_S = 180.0


class Quarantine:
    """The trust in one pool's device. Safe between threads."""

    def __init__(self, pool: str, device: str, quarantines: Quarantines, *, first_s: float = FIRST_S) -> None:
        self.pool, self.device, self._quarantines = pool, device, quarantines
        #: why no turn is taken; '' while it is trusted
        self.why = ""
        self._first_s = self._next_s = first_s
        self._failures = 0
        self._deaths: list[tuple[float, frozenset[Seat]]] = []
        self._mutex = threading.Lock()

    def resume(self) -> None:
        """Take up a quarantine that an earlier process of the pool was put into. Raises BrokerUnavailable."""
        found = self._quarantines.of(self.pool)
        if found is not None:
            self.why = f"its device is in quarantine: {found.reason}"

    def died(self, tickets: Sequence[Ticket], *, suspect_deaths: int) -> None:
        """The engine process died or hung with these turns in flight; a turn that ran alone, as a suspect, is to blame for its deaths."""
        now = time.monotonic()
        seats = frozenset(t.claim.seat for t in tickets)
        blamed = {t.claim.seat for t in tickets if t.claim.deaths >= suspect_deaths}
        with self._mutex:
            self._failures += 1
            self._deaths = [(at, among) for at, among in self._deaths if now - at < WINDOW_S and not among & blamed]
            if not blamed:
                self._deaths.append((now, seats))

    def failed(self) -> None:
        """A turn ended because the device failed it."""
        with self._mutex:
            self._failures += 1

    def worked(self) -> None:
        """The device has answered a turn."""
        self._failures, self._next_s = 0, self._first_s

    @property
    def doubtful(self) -> bool:
        """Whether it is to be asked by itself before it takes more."""
        return self._failures >= ASK_AFTER

    @property
    def unsteady(self) -> str:
        """Why it is put away though it answers; '' where it is not."""
        with self._mutex:
            count = sum(1 for at, _ in self._deaths if time.monotonic() - at < WINDOW_S)
        return f"its engine process died {count} times within an hour, not by one turn" if count >= MOST_DEATHS else ""

    def impose(self, reason: str) -> None:
        """Begin a quarantine, or a longer one."""
        for_s, self._next_s = self._next_s, min(LONGEST_S, max(self._first_s, 2 * self._next_s))
        self.why = f"its device is in quarantine: {reason}"
        with self._mutex:
            self._deaths.clear()
        log.error("%s: %s. It is tried again in %.0f s, or after `symposia release %s`", self.device, self.why, for_s, self.pool)
        try:
            self._quarantines.impose(self.pool, self.device, reason, for_s=for_s)
        except Unavailable as error:
            log.warning("the quarantine of %s is not known to others: %s", self.pool, error)

    def over(self) -> bool:
        """Whether its time has passed, or a command has released it: the device is then to be asked."""
        try:
            return bool(self.why) and self._quarantines.of(self.pool) is None
        except Unavailable:
            return False

    def lift(self) -> None:
        """It has answered: it is trusted again."""
        if self.why:
            log.info("%s has answered; its quarantine is over", self.device)
        self.why = ""
        with self._mutex:
            self._failures = 0
        try:
            self._quarantines.release(self.pool)
        except Unavailable as error:
            log.warning("the end of the quarantine of %s is not known to others: %s", self.pool, error)
