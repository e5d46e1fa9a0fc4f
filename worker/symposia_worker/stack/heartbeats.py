"""What coordinator and pools say of themselves in Redis, read often enough that the supervisor never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from symposia_shared.errors import BrokerUnavailable
from symposia_shared.ledger import Ledger

#: seconds without a heartbeat after which a worker is taken to hang; its leases ended long before
HUNG_S = 20.0


class Heartbeats(threading.Thread):
    """The last heartbeats seen, by pid. Raises BrokerUnavailable when made while Redis is away.

    Left out are those of other machines, whose pids mean nothing here, and those that have not changed since this was made:
    a worker that was killed leaves its last one, and in a container the next has the same pid.
    """

    def __init__(self, ledger: Ledger, host: str, *, every_s: float = 0.5) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self.ledger, self.host, self._usual_s = ledger, host, every_s
        #: whether nobody waits for a worker to be ready: four times as rarely is often enough then
        self.calm = False
        self._old = ledger.workers()
        self._beats: Mapping[int, Mapping[str, Any]] = {}
        #: pid → the beat's own time, and for how long of this thread's looks it has been the same
        self._still: dict[int, tuple[object, float]] = {}
        self._over = threading.Event()

    @property
    def every_s(self) -> float:
        """Seconds between two looks."""
        return self._usual_s * (4 if self.calm else 1)

    def run(self) -> None:
        while not self._over.wait(self.every_s):
            try:
                self.see(by_pid(self.ledger.workers(), self.host, old=self._old))
            except BrokerUnavailable:
                self._still = {}  # what was last seen stands until the broker is back, and the pools could not beat either

    def see(self, beats: Mapping[int, Mapping[str, Any]]) -> None:
        """Take what was read in one look."""
        still: dict[int, tuple[object, float]] = {}
        for pid, beat in beats.items():
            at, since = self._still.get(pid, (None, 0.0))
            still[pid] = (beat.get("beat_at"), since + self.every_s if at == beat.get("beat_at") else 0.0)
        self._beats, self._still = beats, still

    def stop(self) -> None:
        """End; a read that hangs is not waited for."""
        self._over.set()

    def ready(self, pid: int) -> bool:
        """Whether the process of this pid has said that it is ready."""
        return bool(self._beats.get(pid, {}).get("ready_at"))

    def hung(self, pid: int | None) -> bool:
        """Whether a process that has beaten does so no more: counted in looks that found Redis there, so that no clock and no outage mislead."""
        return self._still.get(pid or 0, (None, 0.0))[1] >= HUNG_S

    def engine(self, pid: int | None) -> int | None:
        """The engine process of the pool of this pid."""
        engine = self._beats.get(pid or 0, {}).get("engine_pid")
        return engine if isinstance(engine, int) else None


def by_pid(workers: Mapping[str, object], host: str, *, old: Mapping[str, object]) -> dict[int, Mapping[str, Any]]:
    """Heartbeats by pid, without the old ones, those of other machines, and what is none."""
    beats: dict[int, Mapping[str, Any]] = {}
    for name, beat in workers.items():
        if isinstance(beat, dict) and isinstance(beat.get("pid"), int) and beat.get("host", host) == host and beat != old.get(name):
            beats[beat["pid"]] = beat
    return beats
