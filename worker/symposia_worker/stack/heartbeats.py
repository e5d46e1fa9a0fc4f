"""What coordinator and pools say of themselves in Redis, read often enough that the supervisor never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from symposia_shared.errors import BrokerUnavailable
from symposia_shared.ledger import Ledger


class Heartbeats(threading.Thread):
    """The last heartbeats seen, by pid. Raises BrokerUnavailable when made while Redis is away.

    Left out are those of other machines, whose pids mean nothing here, and those that have not changed since this was made:
    a worker that was killed leaves its last one, and in a container the next has the same pid.
    """

    def __init__(self, ledger: Ledger, host: str, *, every_s: float = 0.5) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self.ledger, self.host, self.every_s = ledger, host, every_s
        self._old = ledger.workers()
        self._beats: Mapping[int, Mapping[str, Any]] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self.every_s):
            try:
                self._beats = by_pid(self.ledger.workers(), self.host, old=self._old)
            except BrokerUnavailable:
                continue  # what was last seen stands until the broker is back

    def stop(self) -> None:
        """End; a read that hangs is not waited for."""
        self._over.set()

    def ready(self, pid: int) -> bool:
        """Whether the process of this pid has said that it is ready."""
        return bool(self._beats.get(pid, {}).get("ready_at"))

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
