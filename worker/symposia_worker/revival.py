"""How a pool outlives its engine process: its turns are handed back, and one thread starts another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from symposia_worker.probe import probe
from symposia_worker.quarantine import ANSWER_S, MOST_STARTS
from symposia_worker.retrying import backoff
from symposia_worker.tickets import SUSPECT_DEATHS

if TYPE_CHECKING:
    from symposia_worker.pool import Pool

log = logging.getLogger(__name__)


class Revival:
    """Restarts a pool's engine process. One thread does: two at once would stop each other's."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._up, self._died = threading.Event(), threading.Event()
        self._up.set()
        self._passes_before = 0
        self._thread = threading.Thread(target=self._loop, name="revive_loop", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    @property
    def up(self) -> bool:
        """Whether the engine process runs and holds what it is to hold."""
        return self._up.is_set()

    def wait_up(self, timeout_s: float) -> bool:
        """``up``, waited for."""
        return self._up.wait(timeout=timeout_s)

    @property
    def passes(self) -> int:
        """Forward passes of all the engine processes so far."""
        return self._passes_before + self._passes()

    def _passes(self) -> int:
        pulse = self.pool.engine.pulse
        return pulse.forward_passes if pulse is not None else 0

    def on_death(self, ids: Sequence[str]) -> None:
        """The engine process is gone: its turns are handed back, and another one is started."""
        pool = self.pool
        self._up.clear()
        self._passes_before += self._passes()
        log.error("the engine process of %s died with %d turns in flight; it is started again", pool.name, len(ids))
        lost = pool.tickets.of(ids)
        pool.quarantine.died(lost, suspect_deaths=SUSPECT_DEATHS)
        threading.Thread(target=pool.give_back, args=(lost,), kwargs={"killed": True}, name="hand back", daemon=True).start()
        self._died.set()

    def _loop(self) -> None:
        quarantine = self.pool.quarantine
        while not self.pool.stopping.is_set():
            if not self._died.wait(timeout=0.5):
                if quarantine.over():
                    self._bring_up()
                continue
            self._died.clear()
            if not quarantine.why:
                self._bring_up()

    def _bring_up(self) -> None:
        """A new engine process that is trusted; or a quarantine."""
        pool, quarantine = self.pool, self.pool.quarantine
        asked = bool(quarantine.why) or quarantine.doubtful
        why = self._restarted() or (self._asked() if asked else "") or quarantine.unsteady
        if pool.stopping.is_set():
            return
        if why:
            self._died.clear()
            quarantine.impose(why)
            return
        if asked:
            quarantine.lift()
        pool.heartbeat.loads += len(pool.placement.checkpoints)
        self._up.set()
        if self._died.is_set():  # it died again meanwhile
            self._up.clear()
        else:
            log.info("the engine process of %s is up again, pid %s", pool.name, pool.engine.pid)

    def _restarted(self) -> str:
        """Start the engine process; why that failed again and again, '' where it runs."""
        why = ""
        for attempt in range(MOST_STARTS):
            try:
                self.pool.engine.restart()
            except Exception as error:
                why = f"its engine process does not start: {error}"
                log.error("the engine process does not start: %s", error)
                if self.pool.stopping.wait(backoff(attempt)):
                    break
            else:
                return ""
        return why

    def _asked(self) -> str:
        """Why the device does not answer by itself; '' where it does. What is not resident is not asked: it would have to be loaded first."""
        pool = self.pool
        away = set() if pool.swapping is None else set(pool.placement.models) - set(pool.swapping.residents.all)
        models = {m: place for m, place in pool.placement.models.items() if m not in away or m.startswith("test/")}
        return probe(pool.engine, models, self._died, within_s=ANSWER_S)
