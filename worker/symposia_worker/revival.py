"""How a pool outlives its engine process: its turns are handed back, and one thread starts another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from symposia_worker.recorder import backoff

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
        threading.Thread(target=pool.give_back, args=(lost,), kwargs={"killed": True}, name="hand back", daemon=True).start()
        self._died.set()

    def _loop(self) -> None:
        attempt = 0
        while not self.pool.stopping.is_set():
            if not self._died.wait(timeout=0.5):
                continue
            self._died.clear()
            try:
                self.pool.engine.restart()
            except Exception as error:
                log.error("the engine process does not start: %s", error)
                self.pool.stopping.wait(backoff(attempt))
                attempt += 1
                self._died.set()
                continue
            attempt = 0
            self.pool.heartbeat.loads += len(self.pool.placement.checkpoints)
            self._up.set()
            if self._died.is_set():  # it died again meanwhile
                self._up.clear()
            else:
                log.info("the engine process of %s is up again, pid %s", self.pool.name, self.pool.engine.pid)
