"""A pool brings what it serves to what the desired placement says, as it runs, and after it was away.

One version at a time: what is too much is given up once another pool serves it, what is missing is loaded once there is room.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from symposia_shared.errors import SymposiaError, Unavailable
from symposia_shared.ledger.desired import Assigned, Desired
from symposia_shared.standing import alive
from symposia_worker.heartbeat import BEAT_S

if TYPE_CHECKING:
    from symposia_worker.pool import Pool

log = logging.getLogger(__name__)

#: seconds a pool keeps a checkpoint that is to move until another one serves it: two that wait for one another's room end so
HANDOVER_S = 20.0
#: seconds the turns of a checkpoint that is given up may take to end; the rest are asked again by whoever serves it then
DRAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Grasp:
    """How a pool gets hold of a checkpoint, and lets it go."""

    #: loads it and begins to read its queue; returns where it is served
    take: Callable[[Assigned], dict[str, object]]
    #: reads its queue no more
    close: Callable[[str], None]
    #: returns its memory
    unload: Callable[[str], None]


class Reconciler:
    """Compares what a pool serves with what it is to serve, each time the placement's version is not its own."""

    def __init__(self, pool: Pool, grasp: Grasp, *, begun_with: tuple[Assigned, ...], memory_bytes: int) -> None:
        self.pool, self._grasp, self._begun_with, self._memory = pool, grasp, begun_with, memory_bytes
        self.desired = Desired(pool.ledger)
        #: the placement's version this pool has reached; what it could not load is refused and does not hold it up
        self.version = 0
        self._seen = -1
        self._refused: set[str] = set()
        self._since: dict[str, float] = {}
        #: as what a checkpoint was served that is to be served as something else: it is again if that cannot be
        self._before: dict[str, Assigned] = {}
        self._busy = threading.Lock()

    def look(self) -> None:
        """Begin to reconcile where the version is another, unless that is being done already. Raises BrokerUnavailable."""
        if self.desired.version != self.version and self.pool.revival.up and self._busy.acquire(blocking=False):
            threading.Thread(target=self._run, name="reconcile", daemon=True).start()

    def _run(self) -> None:
        try:
            self._run_now()
        except Unavailable as error:
            log.warning("the placement waits: %s", error)
        except Exception:
            log.exception("reconciling %s", self.pool.name)
        finally:
            self._busy.release()

    def _run_now(self) -> None:
        while not self.pool.stopping.is_set() and self._step():
            pass

    def _step(self) -> bool:
        """One checkpoint given up or loaded; False where nothing is left that can be done now. Each reads the placement anew."""
        version, target = self._target()
        if version != self._seen:
            log.info("placement version %d: %s", version, ", ".join(sorted(target)) or "nothing")
            self._seen, self._refused, self._since = version, set(), {}
        served = {m: self.pool.placement.models[m] for m in self.pool.placement.checkpoints}
        surplus = [m for m, place in served.items() if m not in target or (_other(place, target[m]) and m not in self._refused)]
        for model in surplus:
            if model in target or self._may_go(model):
                if model in target:
                    self._before[model] = Assigned(checkpoint=model, precision=str(served[model]["precision"]))
                self._give_up(model)
                return True
        missing = [a for m, a in target.items() if m not in served and m not in self._refused]
        for assigned in missing:
            if not surplus or self._fits(assigned, served):
                return self._take_up(assigned, last=not surplus)
        if not surplus and not missing:
            self.version = version
            log.info("placement version %d is reached", version)
        return False

    def _target(self) -> tuple[int, dict[str, Assigned]]:
        """What is to be served: what the placement says of this pool, else what it began with; and what it was asked to take up."""
        pool = self.pool
        version, rows = self.desired.of(pool.name)
        named = {a.checkpoint: a for a in (rows if rows is not None else self._begun_with)}
        return version, {**{m: _plainly(m) for m in sorted(pool.ledger.wanted(pool.name))}, **named}

    def _may_go(self, model: str) -> bool:
        """Whether nobody else is to serve it, or somebody does, or was waited for long enough."""
        heirs = {name for name, rows in self.desired.all()[1].items() if name != self.pool.name and any(a.checkpoint == model for a in rows)}
        if not heirs:
            return True
        serving = {str(w["name"]) for w in alive(self.pool.ledger.workers(), "pool") if model in w.get("models", ())}
        return bool(heirs & serving) or time.monotonic() - self._since.setdefault(model, time.monotonic()) > HANDOVER_S

    def _fits(self, assigned: Assigned, served: Mapping[str, Mapping[str, Any]]) -> bool:
        held = sum(int(place.get("bytes") or 0) for place in served.values())
        return 0 < assigned.bytes <= self._memory - held

    def _take_up(self, assigned: Assigned, *, last: bool) -> bool:
        """Load it. What is wrong with it is refused; what is in its way only while others are to go is tried again then."""
        model = assigned.checkpoint
        try:
            place = self._grasp.take(assigned)
        except Unavailable:
            raise
        except SymposiaError as error:
            if not last:
                return False
            log.error("%s is not taken up: %s", model, error)
            self._refused.add(model)
            self.pool.ledger.refuse(self.pool.name, model, str(error))
            before = self._before.pop(model, None)
            return True if before is None else self._take_up(before, last=True)
        self._before.pop(model, None)
        self.pool.serve(model, place)
        log.info("%s is served from now on", model)
        return True

    def _give_up(self, model: str) -> None:
        """Serve it no more: nothing new is claimed, what runs ends, then its memory is returned."""
        pool, queue = self.pool, str(self.pool.placement.models[model]["queue"])
        pool.unserve(model)
        if queue not in pool.placement.queues:
            self._grasp.close(queue)
        until = time.monotonic() + DRAIN_S
        pool.stopping.wait(2 * BEAT_S)  # a claim that was under way has come back by then
        while any(t.claim.queue == queue for t in pool.tickets.all()) and time.monotonic() < until and not pool.stopping.is_set():
            pool.stopping.wait(0.1)
        self._grasp.unload(model)
        log.info("%s is no longer served", model)


def _plainly(model: str) -> Assigned:
    return Assigned(checkpoint=model)


def _other(place: Mapping[str, Any], assigned: Assigned) -> bool:
    """Whether it is served in another precision than it is to be."""
    return assigned.precision is not None and place.get("precision") not in (None, assigned.precision)
