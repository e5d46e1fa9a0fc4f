"""Answers told while they are made, for whoever listens now: published, never stored."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from redis.exceptions import RedisError

from symposia_shared.ledger import Ledger, Seat
from symposia_shared.said import Piece, channel

log = logging.getLogger(__name__)

#: seconds in which what is said is gathered: a round trip for each token would slow the engine's reading thread
GATHER_S = 0.02
#: seconds after which a piece has the whole answer so far, for those who came late
WHOLE_S = 1.0


@dataclass(slots=True)
class _Saying:
    """One lease's answer: what was published, what is not yet, and when all of it was last said."""

    said: str = ""
    fresh: str = ""
    whole_at: float = 0.0

    def take(self, seat: Seat, fence: str, now: float) -> Piece:
        """What is to be published now."""
        at, text = len(self.said), self.fresh
        self.said, self.fresh = self.said + self.fresh, ""
        if at and now - self.whole_at >= WHOLE_S:
            at, text = 0, self.said
        if at == 0:
            self.whole_at = now
        return Piece(fence=fence, at=at, text=text, round=seat.round, turn=seat.turn)


class Sayer:
    """Publishes pieces from a thread of its own. Redis away: what was to be said is dropped, for the result has all of it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sayings: dict[tuple[Seat, str], _Saying] = {}
        self._mutex = threading.Lock()
        self._some = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="saying", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def begin(self, seat: Seat, fence: str) -> Callable[[str], None]:
        """What is to be called with each piece of a lease's answer, until ``end``; it returns at once."""
        with self._mutex:
            self._sayings[seat, fence] = _Saying()
        return partial(self._say, seat, fence)

    def end(self, seat: Seat, fence: str) -> None:
        """The lease has ended. What was not published yet is not needed: the reply has it."""
        with self._mutex:
            self._sayings.pop((seat, fence), None)

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._some.set()

    def _say(self, seat: Seat, fence: str, text: str) -> None:
        with self._mutex:
            saying = self._sayings.get((seat, fence))
            if saying is None:
                return
            saying.fresh += text
        self._some.set()

    def _loop(self) -> None:
        while not self._over.is_set():
            self._some.wait()
            self._over.wait(GATHER_S)
            self._some.clear()
            self._publish(self._take())

    def _take(self) -> list[tuple[str, Piece]]:
        now = time.monotonic()
        with self._mutex:
            return [(seat.job_id, saying.take(seat, fence, now)) for (seat, fence), saying in self._sayings.items() if saying.fresh]

    def _publish(self, pieces: list[tuple[str, Piece]]) -> None:
        try:
            with self.ledger.redis.pipeline(transaction=False) as pipe:
                for job_id, piece in pieces:
                    pipe.publish(channel(self.ledger.prefix, job_id), piece.to_json())
                pipe.execute()
        except (RedisError, OSError) as error:
            log.debug("%d pieces of answers are not told: %s", len(pieces), error)
