"""Answers told while they are made, for whoever listens now: published, never stored."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from redis.exceptions import RedisError

from symposia_shared.ledger import Ledger
from symposia_shared.said import Piece, channel

log = logging.getLogger(__name__)

#: seconds in which what is said is gathered: a round trip for each token would slow the engine's reading thread
GATHER_S = 0.02


@dataclass(slots=True)
class _Saying:
    """One lease's answer: how much was published, what is not yet."""

    at: int = 0
    fresh: str = ""


class Sayer:
    """Publishes pieces from a thread of its own. Redis away: what was to be said is dropped, for the result has all of it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sayings: dict[tuple[str, str], _Saying] = {}
        self._mutex = threading.Lock()
        self._some = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="saying", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def begin(self, job_id: str, fence: str) -> Callable[[str], None]:
        """What is to be called with each piece of a lease's answer, until ``end``; it returns at once."""
        with self._mutex:
            self._sayings[job_id, fence] = _Saying()
        return partial(self._say, job_id, fence)

    def end(self, job_id: str, fence: str) -> None:
        """The lease has ended. What was not published yet is not needed: the reply has it."""
        with self._mutex:
            self._sayings.pop((job_id, fence), None)

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._some.set()

    def _say(self, job_id: str, fence: str, text: str) -> None:
        with self._mutex:
            saying = self._sayings.get((job_id, fence))
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
        with self._mutex:
            fresh = [(job_id, Piece(fence=fence, at=s.at, text=s.fresh)) for (job_id, fence), s in self._sayings.items() if s.fresh]
            for saying in self._sayings.values():
                saying.at, saying.fresh = saying.at + len(saying.fresh), ""
        return fresh

    def _publish(self, pieces: list[tuple[str, Piece]]) -> None:
        try:
            with self.ledger.redis.pipeline(transaction=False) as pipe:
                for job_id, piece in pieces:
                    pipe.publish(channel(self.ledger.prefix, job_id), piece.to_json())
                pipe.execute()
        except (RedisError, OSError) as error:
            log.debug("%d pieces of answers are not told: %s", len(pieces), error)
