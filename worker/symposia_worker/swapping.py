"""How a pool serves more checkpoints than its device holds: the policy of ``symposia_shared.residency``, carried out.

One thread looks at the queues, asks the policy, and loads and unloads. Turns begin only of checkpoints that are resident and open; a claim
that comes too late is handed back as unused. One load at a time: the engine process answers nothing while it loads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from symposia_shared.errors import BadInput, SymposiaError, Unavailable
from symposia_shared.ledger.backlog import pins, waiting
from symposia_shared.residency import Demand, Standing, SwapAware, View
from symposia_worker.residents import Residents

if TYPE_CHECKING:
    from symposia_worker.pool import Pool
    from symposia_worker.tickets import Ticket

log = logging.getLogger(__name__)

#: seconds between two looks while all that is served is resident, told and open
IDLE_S = 1.0
#: seconds between two looks at what is pinned
PINS_EVERY_S = 2.0
#: seconds before a load that could not be done now is tried again
AGAIN_S = 5.0
#: what a checkpoint is thought to need more than it was, after a device had no room for it
SHORT_BY = 1.25


@dataclass(frozen=True, slots=True)
class Under:
    """The base an adapter goes on from, and what its weights take while one of its adapters is resident."""

    base: str
    bytes: int


@dataclass(slots=True)
class Registered:
    """A checkpoint this pool serves, resident or not. ``bytes`` and ``load_s`` are expected until it was loaded once, then measured."""

    bytes: int
    load_s: float = 1.0
    #: of the engine process: what two engines of it hold they do not share
    engine: str = ""
    under: Under | None = None
    demand: Demand = field(default_factory=Demand)
    #: since when a turn of it waits without one having been taken
    since: float | None = None
    waiting: int = 0
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Brought:
    """A checkpoint that was made resident: where it is served, and what it takes."""

    place: dict[str, object]
    bytes: int
    seconds: float
    under: Under | None = None


class Swapping:
    """The residency of one pool. ``bring`` fetches and loads a checkpoint, ``drop`` unloads one; both may take long."""

    def __init__(self, *, policy: SwapAware, budget_bytes: int, bring: Callable[[str], Brought], drop: Callable[[str], None],
                 pinned: frozenset[str] = frozenset(), bells: str | None = None) -> None:
        self.policy, self.budget_bytes = policy, budget_bytes
        self._bring, self._drop, self._pinned = bring, drop, pinned
        #: the Celery list doorbells for its checkpoints go to; None: each queue's own
        self.bells = bells
        self.residents = Residents()
        self._registered: dict[str, Registered] = {}
        #: a checkpoint is either resident and registered, or neither, also where it is forgotten while it is loaded
        self._mutex = threading.Lock()
        self._pinned_now, self._pins_due = pinned, 0.0
        self._wake = threading.Event()
        #: checkpoints whose place has changed since the ledger was told
        self._untold = False
        self.pool: Pool | None = None

    # -- what it serves --------------------------------------------------------------------------------------------

    def register(self, checkpoint: str, *, bytes: int, engine: str = "", under: Under | None = None) -> None:
        """Serve a checkpoint that is not resident."""
        now = time.monotonic()
        self._registered.setdefault(checkpoint, Registered(bytes, engine=engine, under=under, demand=Demand(at_s=now, since_s=now)))
        self._wake.set()

    def brought(self, checkpoint: str, brought: Brought) -> None:
        """A checkpoint is resident."""
        self.register(checkpoint, bytes=brought.bytes)
        self._arrived(checkpoint, brought)

    def _arrived(self, checkpoint: str, brought: Brought) -> bool:
        """Whether a checkpoint that was made resident is still to be served; then it may be asked."""
        with self._mutex:
            known = self._registered.get(checkpoint)
            if known is None:
                return False
            known.bytes, known.load_s, known.under = brought.bytes, brought.seconds, brought.under
            known.engine = str(brought.place.get("engine", ""))
            self.residents.add(checkpoint, bytes=brought.bytes, load_s=brought.seconds)
            return True

    def forget(self, checkpoint: str) -> None:
        """No longer serve a checkpoint whose turns have ended; whoever says so unloads it."""
        with self._mutex:
            self._registered.pop(checkpoint, None)
            self.residents.drop(checkpoint)

    @property
    def on_demand(self) -> bool:
        """Whether some of what it serves is not resident."""
        return any(name not in self.residents for name in list(self._registered))

    @property
    def all_fit(self) -> bool:
        """Whether all that it serves is expected to be resident together."""
        known = dict(self._registered)
        return View(self.budget_bytes, ()).fits(Standing(name, bytes=k.bytes, load_s=k.load_s, **self._based(k)) for name, k in known.items())

    def start(self, pool: Pool) -> None:
        """Begin."""
        self.pool = pool
        threading.Thread(target=self._loop, name="swap_loop", daemon=True).start()

    # -- turns -----------------------------------------------------------------------------------------------------

    def queues(self, pool: Pool) -> tuple[str, ...]:
        """Those of the pool's queues that may be claimed from now: what takes no memory, and the open residents."""
        models, closed = pool.placement.models, set(self._registered) - set(self.residents.open)
        return tuple(dict.fromkeys(str(place["queue"]) for name, place in models.items() if name not in closed))

    def enter(self, ticket: Ticket) -> bool:
        """Whether its turn may begin: its checkpoint is open, or takes no memory."""
        model = ticket.turn.model if ticket.turn else ""
        if model not in self._registered:
            return True
        if not self.residents.enter(model):
            self._wake.set()
            return False
        ticket.entered = model
        return True

    def leave(self, ticket: Ticket) -> None:
        """Its turn has ended; told twice it is as if told once."""
        model, ticket.entered = ticket.entered, ""
        if model:
            self.residents.leave(model, seconds=time.time() - ticket.claimed_at)
            known = self._registered.get(model)
            if known is not None and known.waiting == 0 and self.on_demand:
                self._wake.set()

    def rung(self) -> None:
        """Somebody rang for a turn that cannot begin yet."""
        self._wake.set()

    # -- loads -----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        pool = self.pool
        if pool is None:
            return
        while not pool.stopping.is_set():
            self._wake.wait(self.policy.tick_s if self._has_to_look else IDLE_S)
            self._wake.clear()
            if not pool.revival.up or pool.heartbeat.ready_at is None:
                continue
            try:
                self._step(pool)
            except Unavailable as error:
                log.warning("residency: %s", error)
                pool.stopping.wait(1.0)
            except Exception:
                log.exception("residency")
                pool.stopping.wait(1.0)
            pool.stopping.wait(self.policy.tick_s / 4)  # however often it is rung

    @property
    def _has_to_look(self) -> bool:
        return self.on_demand or self._untold or self.residents.some_closed or self.policy.idle_ttl_s is not None

    def _step(self, pool: Pool) -> None:
        if not self._has_to_look:
            return
        self._look(pool)
        decision = self.policy.decide(self._view())
        self.residents.keep_open_all_but({*decision.drain, *decision.evict})
        gone = [name for name in decision.evict if self._evict(name)]
        if decision.load is not None and len(gone) == len(decision.evict):
            self._load(pool, decision.load)
        if decision.take:
            pool.feed()
        if self._untold and decision.load is None:
            pool.tell_placement()
            self._untold = False

    def _look(self, pool: Pool) -> None:
        """See what waits, and what is pinned."""
        now = time.monotonic()
        if now >= self._pins_due:
            self._pinned_now, self._pins_due = self._pinned | pins(pool.ledger), now + PINS_EVERY_S
        if pool.engine.pulse is not None:
            self.residents.measured(pool.engine.pulse.held)
        queues = {str(place["queue"]): name for name, place in pool.placement.models.items() if name in self._registered}
        counts = {queues[queue]: count for queue, count in waiting(pool.ledger, queues).items()}
        begun = self.residents.begun()
        for name, known in list(self._registered.items()):
            count, taken = counts.get(name, 0), begun.get(name, 0)
            arrived = max(0, count - known.waiting + taken)
            if arrived:
                known.demand = known.demand.seen(now, arrived, memory_s=self.policy.longest_wait_s)
            known.waiting = count
            known.since = None if not count else now if taken or known.since is None else known.since

    def _view(self) -> View:
        now, held = time.monotonic(), self.residents.all
        shown = []
        for name, known in list(self._registered.items()):
            resident, pinned = held.get(name), name in self._pinned_now
            wanted = pinned and resident is None
            if resident is None and (now < known.not_before or not (known.waiting or wanted)):
                continue
            shown.append(Standing(
                name, bytes=max(known.bytes, resident.bytes if resident else 0), load_s=known.load_s, resident=resident is not None,
                waiting=max(known.waiting, int(wanted)), oldest_s=self.policy.longest_wait_s if wanted else now - known.since if known.since else 0.0,
                serve_s=resident.turn_s if resident and resident.running else 0.0, running=resident.running if resident else 0, pinned=pinned,
                draining=resident is not None and not resident.open, rate=known.demand.rate(now, memory_s=self.policy.longest_wait_s),
                idle_s=now - resident.asked_at if resident else 0.0, **self._based(known)))
        return View(self.budget_bytes, tuple(shown))

    def _based(self, known: Registered) -> dict[str, Any]:
        """What the policy is told of an adapter's base. One that is served by another engine is in memory a second time, by another name."""
        if known.under is None:
            return {}
        base = self._registered.get(known.under.base)
        apart = base is not None and base.engine != known.engine
        return {"base": f"{known.under.base} in {known.engine}" if apart else known.under.base, "base_bytes": known.under.bytes}

    def _leant_on(self, base: str) -> bool:
        """Whether an adapter of it is resident, so that its weights are in memory whatever it is itself."""
        return any(self._based(known).get("base") == base for name, known in list(self._registered.items()) if name in self.residents)

    def _evict(self, name: str) -> bool:
        known, held = self._registered.get(name), self.residents.all.get(name)
        if known is None or held is None or self._leant_on(name) or not self.residents.take_out(name):
            return False
        known.bytes = max(known.bytes, held.bytes)
        self._drop(name)
        log.info("%s is unloaded: %.0f MB", name, known.bytes / 1e6)
        return True

    def _load(self, pool: Pool, name: str) -> None:
        known = self._registered.get(name)
        if known is None:
            return
        try:
            brought = self._bring(name)
        except Unavailable as error:
            log.warning("%s is not loaded yet: %s", name, error)
            known.not_before = time.monotonic() + AGAIN_S
        except SymposiaError as error:
            if isinstance(error, BadInput) and error.field == "memory" and known.bytes * SHORT_BY <= self.budget_bytes:
                known.bytes = int(known.bytes * SHORT_BY)
                return
            log.error("%s is no longer served: %s", name, error)
            self.forget(name)
            pool.unserve(name)
            pool.ledger.refuse(pool.name, name, str(error))
        else:
            if self._arrived(name, brought):
                self._tell(pool, name, known, brought)
            else:  # it was given up meanwhile, and its memory returned before it had any
                self._drop(name)

    def _tell(self, pool: Pool, name: str, known: Registered, brought: Brought) -> None:
        place = {**brought.place, **({"bell": self.bells} if self.bells else {})}
        self._untold |= pool.serve_otherwise(name, place)
        pool.heartbeat.loads += 1
        known.since = time.monotonic() if known.waiting else None
        log.info("%s is resident: %.0f MB in %.2f s", name, brought.bytes / 1e6, brought.seconds)
        pool.feed()
        self._wake.set()
