"""A pool's heartbeat: it keeps the leases alive, says what the pool is, and looks for work that nobody rang for."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from symposia_shared.errors import Unavailable
from symposia_shared.ledger import LEASE_MS
from symposia_shared.ledger.traffic import Traffic
from symposia_shared.standing import alive

if TYPE_CHECKING:
    from symposia_worker.pool import Pool

log = logging.getLogger(__name__)

#: seconds between heartbeats; a lease outlives nine of them
BEAT_S = LEASE_MS / 1000 / 10


class Heartbeat:
    """The thread that beats for a pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        #: loads since the last beat
        self.loads = len(pool.placement.checkpoints)
        #: pools that serve a queue of ours, this one included
        self.peers = 1
        #: when the worker began to consume
        self.ready_at: float | None = None
        self._passes_told = 0
        self._thread = threading.Thread(target=self._loop, name="beat_loop", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def _loop(self) -> None:
        beats, pool = 0, self.pool
        while not pool.stopped.wait(BEAT_S):
            try:
                self._renew()
                if beats % 2 == 0:
                    self.beat()
                if beats % 10 == 0:
                    self._count_peers()
                if beats % 2 == 1 and pool.adoption is not None:
                    pool.adoption.look()
                if beats % 2 == 1 and pool.reconciler is not None:
                    pool.reconciler.look()
                if pool.watch and not pool.stopping.is_set() and pool.revival.up and self.ready_at is not None:
                    pool.feed()
            except Unavailable as error:
                log.warning("heartbeat: %s", error)
            except Exception:
                log.exception("heartbeat")
            beats += 1

    def _renew(self) -> None:
        pool = self.pool
        held = {t.claim.seat: t for t in pool.tickets.all() if not t.recorded}
        if not held:
            return
        for seat in pool.ledger.renew([(s, t.claim.fence) for s, t in held.items()]):
            ticket = held[seat]
            if pool.tickets.get(ticket.id) is not None and pool.recorder.idle and not ticket.recorded:
                log.info("%s × %s r%d t%d stopped: the round was closed", ticket.claim.kind, seat.job_id, seat.round, seat.turn)
                pool.engine.cancel(ticket.id)
                pool.recorder.end(ticket, "stopped")

    def beat(self) -> None:
        """Write the pool's heartbeat. Raises BrokerUnavailable."""
        pool, passes = self.pool, self.pool.revival.passes
        pulse, models = pool.engine.pulse, pool.placement.models
        facts = {
            "role": "pool", "pid": os.getpid(), "device": pool.device, "engine_pid": pool.engine.pid, "host": socket.gethostname(),
            "ready_at": self.ready_at, "beat_at": time.time(), "models": pool.placement.shown, "queues": pool.placement.queues,
            "slots": pool.tickets.slots, "held": len(pool.tickets), "origin": pool.origin, "repeats": pulse.repeats if pulse else 0,
            "idle_because": pool.idle_because, "spooled": {"replies": len(pool.recorder.keeping.spool), "bytes": pool.recorder.keeping.spool.bytes},
            "resident": sorted(pool.swapping.residents.all) if pool.swapping is not None else pool.placement.checkpoints,
            "memory_bytes": pool.memory_bytes, "tokens": pool.burden.tokens, "placement": pool.reconciler.version if pool.reconciler else 0,
            "engines": {m: f"{place['engine']} {place.get('mode', '')}".strip() for m, place in models.items() if "engine" in place},
        }
        pool.ledger.beat(pool.name, facts, {"forward_passes": passes - self._passes_told, "loads": self.loads})
        self._passes_told, self.loads = passes, 0
        Traffic(pool.ledger).add(pool.burden.asked())

    def _count_peers(self) -> None:
        mine = set(self.pool.placement.queues)
        self.peers = max(1, sum(1 for w in alive(self.pool.ledger.workers(), "pool") if not w.get("idle_because") and mine & set(w.get("queues", ()))))
