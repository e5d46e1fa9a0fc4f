"""The coordinator's watch: what nobody came back for."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from symposia_shared.errors import Unavailable
from symposia_shared.ledger import LEASE_MS, Ledger
from symposia_shared.schedules import Schedules
from symposia_shared.settings import LimitSettings
from symposia_worker.course import Course

log = logging.getLogger(__name__)

SWEEP_S = 0.5


class Beside(Protocol):
    """What runs beside the sweep in threads of its own."""

    def start(self) -> None: ...

    def heed(self, due: Set[str]) -> None:
        """What is due, as the sweep saw it (``Glance.due``): so that nobody else needs to look as often."""

    def stop(self) -> None: ...


class Clocks:
    """Tells whether Redis' clock has jumped: it is the wall's, and may be set, or the machine was asleep."""

    def __init__(self) -> None:
        self._ahead: float | None = None

    def jumped(self, redis_s: float, monotonic_s: float) -> bool:
        """Whether Redis' clock has gone more than a second further, or less far, than ours since the last look."""
        ahead, before = redis_s - monotonic_s, self._ahead
        self._ahead = ahead
        return before is not None and abs(ahead - before) > 1.0


class Coordinator:
    """Sweeps the ledger: lost leases, passed deadlines, rounds whose doorbell was lost, jobs and schedules that are due.

    For one lease after its own start, after a restart of Redis, after it could not see Redis and after Redis' clock has jumped, it
    takes no lease for lost: the pools could not renew them either.
    """

    def __init__(self, *, name: str, ledger: Ledger, course: Course, watch: bool = True,
                 limits: LimitSettings = LimitSettings(), beside: Sequence[Beside] = ()) -> None:
        self.name, self.ledger, self.course, self.watch = name, ledger, course, watch
        self.schedules, self.limits = Schedules(ledger), limits
        self._beside = beside
        self._refused = ""
        self._clocks = Clocks()
        self._stop = threading.Event()
        self._ready_at: float | None = None
        self._run_id = ""
        self._blind_until = 0.0
        self._courses = ThreadPoolExecutor(8, thread_name_prefix="course")
        self._busy: set[str] = set()
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._wait_a_lease()
        self._thread.start()
        for one in self._beside:
            one.start()

    def ready(self) -> None:
        """The worker consumes."""
        self._ready_at = time.time()

    def stop(self) -> None:
        """End the sweeping and what was begun of it."""
        self._stop.set()
        for one in self._beside:
            one.stop()
        self._courses.shutdown(wait=True)
        try:
            self.ledger.gone(self.name)
        except Unavailable:
            pass

    def advance(self, job_id: str) -> str:
        """Advance a job; what is away leaves it to a later sweep. Never raises."""
        try:
            return self.course.advance(job_id)
        except Unavailable as error:
            log.warning("%s waits: %s", job_id, error)
            return "waits"
        except Exception:
            log.exception("advance of %s", job_id)
            return "failed; tried again by the sweeper"

    def settle(self, job_id: str, number: int) -> str:
        """Release the turns of a round whose predecessors have ended, and close it if it is settled. Never raises."""
        try:
            return self.course.settle(job_id, number)
        except Unavailable as error:
            log.warning("%s waits: %s", job_id, error)
            return "waits"
        except Exception:
            log.exception("settle of %s r%d", job_id, number)
            return "failed"

    def closed(self, job_id: str, number: int) -> str:
        """A chord's body: all turns returned, as far as Celery knows."""
        try:
            if self.ledger.close(job_id, number, "all", from_chord=True) == "notyet":
                return "early"
        except Unavailable as error:
            log.warning("%s waits: %s", job_id, error)
            return "waits"
        return self.advance(job_id)

    def _loop(self) -> None:
        beats = 0
        while not self._stop.wait(SWEEP_S):
            try:
                if beats % 2 == 0:
                    self._beat()
                if self.watch:
                    self._look()
            except Unavailable as error:
                log.warning("sweep: %s", error)
                self._wait_a_lease()
            except Exception:
                log.exception("sweep")
                self._wait_a_lease()
            beats += 1

    def _look(self) -> None:
        asked = time.monotonic()
        seen = self.ledger.glance()
        if seen.run_id != self._run_id:
            if self._run_id or seen.uptime_s < LEASE_MS / 1000:
                self._wait_a_lease()
            self._run_id = seen.run_id
        # of a slow answer it is not known when it was true
        if time.monotonic() - asked < 0.5 and self._clocks.jumped(seen.now_s, asked):
            log.warning("the clock of Redis has jumped; no lease is taken for lost until the pools have renewed theirs")
            self._wait_a_lease()
        for one in self._beside:
            one.heed(seen.due)
        self._sweep()
        if "occurrences" in seen.due:
            self._occur()

    def _sweep(self) -> None:
        for found in self.ledger.sweep(expire=time.monotonic() > self._blind_until):
            with self._mutex:
                if found in self._busy:
                    continue
                self._busy.add(found)
            self._courses.submit(self._take_swept, found)

    def _occur(self) -> None:
        """Submit what recurs and is due."""
        for job_id, answer in self.schedules.occur(self.course.archive, self.limits):
            word = answer.partition(" ")[0]
            if word == "ok":
                log.info("schedule → %s", job_id)
            elif word != "exists" and job_id != self._refused:
                log.warning("schedule: %s is refused (%s) and tried again until its next time", job_id, answer)
                self._refused = job_id

    def _take_swept(self, found: str) -> None:
        try:
            job_id, _, number = found.partition("|")
            log.info("sweep → %s: %s", job_id, self.settle(job_id, int(number)) if number else self.advance(job_id))
        finally:
            with self._mutex:
                self._busy.discard(found)

    def _wait_a_lease(self) -> None:
        self._blind_until = time.monotonic() + LEASE_MS / 1000 + 1.0

    def _beat(self) -> None:
        self.ledger.beat(self.name, {"role": "coordinator", "pid": os.getpid(), "device": None, "engine_pid": None, "host": socket.gethostname(),
                                     "ready_at": self._ready_at, "beat_at": time.time(), "models": []})
