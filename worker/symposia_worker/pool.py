"""A pool: one device, its engine process, and the turns it has leased.

A doorbell's thread ends in ``tend``: it claims its turn (and a few more of the queue while slots are free), hands them to the
engine process and waits until its own is recorded, which the ``Recorder`` sees to. One thread keeps the leases alive, another
restarts the engine process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from symposia_shared.archive import Archive
from symposia_shared.broker import CHECKS, Doorbell
from symposia_shared.errors import SymposiaError, Unavailable
from symposia_shared.jobs import parse_single
from symposia_shared.ledger import LEASE_MS, Ledger, Seat
from symposia_shared.ledger.quarantined import Quarantines
from symposia_shared.turns import LIKENESS, Abstention, Cause, Completion, Reply, Timing, Turn
from symposia_worker.checks import COMPARER, checked
from symposia_worker.course import Course
from symposia_worker.engines.protocol import Pulse
from symposia_worker.probe import probe
from symposia_worker.quarantine import ANSWER_S, FIRST_S, MOST_STARTS, Quarantine
from symposia_worker.recorder import Recorder, backoff
from symposia_worker.saying import Sayer
from symposia_worker.spool import Spool
from symposia_worker.tickets import Suspects, Ticket, Tickets

log = logging.getLogger(__name__)

#: turns one doorbell may claim: messages, not claims, are what a small turn costs (facts: ledger)
BELL_CLAIMS = 8
#: a turn whose engine died this often while it ran is not tried again; nor one that was tried so often for whatever reason
MOST_DEATHS, MOST_ATTEMPTS = 4, 20
#: seconds a pool takes no turn after its device could not answer one: what fails fast would else take every turn from those that work
REST_S = 10.0
#: a turn whose engine died this often runs beside no other such turn, so that one that kills engines is told from its neighbours
SUSPECT_DEATHS = 2
#: seconds between heartbeats; a lease outlives nine of them
BEAT_S = LEASE_MS / 1000 / 10


class EngineSeat(Protocol):
    """What a pool asks of its engine process (``engines.client.EngineProcess``)."""

    @property
    def pid(self) -> int | None: ...

    @property
    def pulse(self) -> Pulse | None: ...

    def generate(self, turn_id: str, turn: Turn, on_first: Callable[[float], None], on_done: Callable[[Completion | Abstention], None], *,
                 on_delta: Callable[[str], None] | None = None) -> None: ...

    def cancel(self, turn_id: str) -> None: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...

    def stop(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Placement:
    """What a pool serves: checkpoint → its queue and the facts a submit needs."""

    models: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues the pool's worker reads, each once."""
        return tuple(dict.fromkeys(str(place["queue"]) for place in self.models.values()))


class Pool:
    """The pool of one device. ``watch`` False leaves leases to expire and lost doorbells unheard: for tests of the chord alone."""

    def __init__(self, *, name: str, device: str, slots: int, ledger: Ledger, archive: Archive, course: Course, bell: Doorbell, engine: EngineSeat,
                 placement: Placement, origin: str = "", watch: bool = True, adopt: Callable[[str], dict[str, object]] | None = None,
                 rests_for: frozenset[Cause] = frozenset(), spool: Spool | None = None,
                 quarantine_s: float = FIRST_S) -> None:
        self.name, self.device, self.ledger, self.archive, self.course, self.bell = name, device, ledger, archive, course, bell
        self.engine, self.placement, self.origin, self.watch = engine, placement, origin, watch
        self.tickets = Tickets(slots)
        self._adopt, self._adopting = adopt, threading.Lock()
        #: causes after which it rests, so that another pool of the queue may take the turn that is tried again
        self._rests_for = rests_for
        self._rest_until = 0.0
        self.quarantine = Quarantine(name, device, Quarantines(ledger), first_s=quarantine_s)
        self._suspects = Suspects()
        # texts are compared one check after another, the first of which waits for torch: no paper shall wait behind them
        self._comparing = ThreadPoolExecutor(1, thread_name_prefix="likeness")
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self.recorder = Recorder(ledger=ledger, archive=archive, course=course, bell=bell, tickets=self.tickets, stopping=self._stopping,
                                 stopped=self._stopped, on_end=self._ended, on_recorded=self._feed_if_left, spool=spool)
        self._sayer = Sayer(ledger)
        self._engine_up = threading.Event()
        self._engine_up.set()
        self._engine_died = threading.Event()
        self._left = 0
        self._peers = 1
        self._passes_told = 0
        self._passes_before = 0
        self._loads = len(_checkpoints(placement))
        self._ready_at: float | None = None
        self._threads = [threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True)
                         for target in (self._beat_loop, self._revive_loop)]

    def start(self) -> None:
        """Say what is served, then begin to beat and to record. The engine is up and its checkpoints are loaded."""
        self.recorder.patiently(lambda: self.ledger.place(self.name, self.placement.models, origin=self.origin))
        self.recorder.patiently(self.quarantine.resume)
        self.recorder.start()
        self._sayer.start()
        for thread in self._threads:
            thread.start()

    def ready(self) -> None:
        """The worker consumes: from now on the pool counts as ready."""
        self._ready_at = time.time()
        self._beat()

    # -- turns -----------------------------------------------------------------------------------------------------

    def tend(self, seat: Seat) -> str:
        """Answer a doorbell: see to it that this turn is done, here or elsewhere. Returns what became of it; never raises."""
        try:
            return self._tend(seat)
        except Unavailable as error:
            log.warning("turn %s: %s", seat.key, error)
            return "left to the ledger"
        except Exception:
            log.exception("turn %s", seat.key)
            return "left to the ledger"

    def _tend(self, seat: Seat) -> str:
        ended = self.tickets.ended(seat)
        if ended is not None:
            return ended
        while not self._stopping.is_set():
            ticket = self.tickets.attend(seat)
            if ticket is not None:
                ticket.let_go.wait()
                return ticket.outcome or "its reply waits for S3"
            if not self._engine_up.wait(timeout=1.0) or self._rests(wait_s=1.0):
                continue
            named = self._claim(named=seat, wait_s=1.0)
            if named not in ("queued", "ok"):
                return self.tickets.ended(seat) or named
        return "left to the ledger"

    def _claim(self, *, named: Seat | None = None, wait_s: float = 0.0) -> str:
        """Lease turns for the free slots and begin them. Returns what became of the named one."""
        most = self.tickets.reserve(BELL_CLAIMS, wait_s=wait_s, seat=named)
        if most == 0:
            return "queued"
        tickets: list[Ticket] = []
        try:
            claimed = self.ledger.claim(most=most, pools=self._peers, queues=self.placement.queues, named=named, pool=self.name)
            now = time.time()
            tickets = [Ticket(claim=c, claimed_at=now, attended=named is not None and c.seat == named) for c in claimed.claims]
        finally:
            self.tickets.take(tickets, most)
        self._left = claimed.left
        for ticket in tickets:
            self._begin(ticket)
        return claimed.named

    def _begin(self, ticket: Ticket) -> None:
        claim = ticket.claim
        if claim.deaths >= MOST_DEATHS or claim.attempt > MOST_ATTEMPTS:
            message = f"tried {claim.attempt - 1} times, and {claim.deaths} engine processes died of it; it is not tried again"
            self.recorder.put(ticket, Abstention(cause="poison", message=message))
        elif (claim.deaths < SUSPECT_DEATHS and not claim.alone) or self._suspects.admit(ticket):
            self._launch(ticket)

    def _launch(self, ticket: Ticket) -> None:
        claim = ticket.claim
        if (claim.payload or claim.spec).startswith("@"):
            self.recorder.later(self._read_and_run, ticket)
        else:
            self._run(ticket, claim.payload, claim.spec)

    def _read_and_run(self, ticket: Ticket) -> None:
        claim = ticket.claim
        payload, spec = self.recorder.patiently(lambda: (self.archive.read(claim.payload), self.archive.read(claim.spec) if not claim.payload else ""), ticket)
        if not ticket.over.is_set():
            self._run(ticket, payload, spec)

    def _run(self, ticket: Ticket, payload: str, spec: str) -> None:
        seat = ticket.claim.seat
        try:
            ticket.turn = Turn.from_json(payload) if payload else parse_single(json.loads(spec)).turn
            log.info("%s → %s r%d t%d %s", ticket.claim.kind, seat.job_id, seat.round, seat.turn, ticket.turn.model)
            if ticket.turn.is_check:
                if ticket.turn.model == LIKENESS:
                    self._comparing.submit(self._check, ticket, ticket.turn)
                else:
                    self.recorder.later(self._check, ticket, ticket.turn)
                return
            if not self._engine_up.is_set():  # it may run already, and is being asked by itself
                self._give_back([ticket], killed=False)
                return
            on_delta = self._sayer.begin(seat.job_id, ticket.claim.fence) if ticket.claim.stream else None
            self.engine.generate(ticket.id, ticket.turn, partial(self._on_first, ticket), partial(self._on_done, ticket), on_delta=on_delta)
        except Unavailable:
            self._give_back([ticket], killed=False)
        except SymposiaError as error:
            self.recorder.put(ticket, Abstention(cause="bad_prompt", message=str(error)))
        except Exception as error:
            log.exception("turn %s", seat.key)
            self.recorder.put(ticket, Abstention(cause="bug", message=f"{type(error).__name__}: {error}"))

    def _check(self, ticket: Ticket, turn: Turn) -> None:
        """A check asks no model; it runs beside the engine."""
        try:
            reply = checked(turn)
        except Exception as error:
            log.exception("check %s", ticket.claim.seat.key)
            reply = Abstention(cause="bug", message=f"{type(error).__name__}: {error}")
        self._on_done(ticket, reply)

    def _on_first(self, ticket: Ticket, at: float) -> None:
        ticket.first_token_at = at

    def _on_done(self, ticket: Ticket, reply: Completion | Abstention) -> None:
        if isinstance(reply, Abstention) and reply.cause in self._rests_for:  # the recorder puts the turn off, and whoever has room then takes it
            log.warning("%s rests for %.0f s (%s): %s", self.name, REST_S, reply.cause, reply.message)
            self._rest_until = time.monotonic() + REST_S
        self._judge(ticket, reply)
        timing = Timing(claimed_at=ticket.claimed_at, first_token_at=ticket.first_token_at, last_token_at=time.time())
        self.recorder.put(ticket, reply.model_copy(update={"timing": timing, "pool": self.name}))

    def _judge(self, ticket: Ticket, reply: Reply) -> None:
        """What a reply says of the device; an endpoint's faults are told and rested from as they come."""
        if self._rests_for or (ticket.turn is not None and ticket.turn.is_check):
            return
        if reply.spoke:
            self.quarantine.worked()
        elif isinstance(reply, Abstention) and reply.cause == "device_lost":
            self.quarantine.failed()
            if self.quarantine.doubtful:
                self.engine.kill()  # its death leads to a new process, which is asked by itself

    # -- what follows a record -------------------------------------------------------------------------------------

    def _ended(self, ticket: Ticket) -> None:
        self._sayer.end(ticket.claim.seat.job_id, ticket.claim.fence)
        follows = self._suspects.leave(ticket)
        if follows is not None:
            self._launch(follows)

    def _feed_if_left(self) -> None:
        if self._left > 0 and not self._stopping.is_set() and self._engine_up.is_set():
            self._feed()

    def _feed(self) -> None:
        """Claim for free slots without being rung: a doorbell may be lost, and one may stand for many."""
        if self._rests():
            return
        try:
            self._claim()
        except Unavailable as error:
            log.warning("cannot claim: %s", error)

    def _rests(self, wait_s: float = 0.0) -> bool:
        """Whether no turn is to be taken now (``_idle_because``, or the device has just failed some); waits up to ``wait_s`` for the end of that."""
        left = max(self._rest_until - time.monotonic(), wait_s if self._idle_because else 0.0, bool(self._idle_because))
        if left > 0 and wait_s:
            self._stopping.wait(min(left, wait_s))
        return left > 0

    @property
    def _idle_because(self) -> str:
        """Why no turn is taken; '' where turns are."""
        return self.quarantine.why or self.recorder.keeping.spool.full

    # -- heartbeat -------------------------------------------------------------------------------------------------

    def _beat_loop(self) -> None:
        beats = 0
        while not self._stopped.wait(BEAT_S):
            try:
                self._renew()
                if beats % 2 == 0:
                    self._beat()
                if beats % 10 == 0:
                    self._count_peers()
                if beats % 2 == 1 and self._adopt is not None:
                    self._take_up()
                if self.watch and not self._stopping.is_set() and self._engine_up.is_set() and self._ready_at is not None:
                    self._feed()
            except Unavailable as error:
                log.warning("heartbeat: %s", error)
            except Exception:
                log.exception("heartbeat")
            beats += 1

    def _renew(self) -> None:
        held = {t.claim.seat: t for t in self.tickets.all()}
        if not held:
            return
        for seat in self.ledger.renew([(s, t.claim.fence) for s, t in held.items()]):
            ticket = held[seat]
            if self.tickets.get(ticket.id) is not None and self.recorder.idle:
                log.info("%s × %s r%d t%d stopped: the round was closed", ticket.claim.kind, seat.job_id, seat.round, seat.turn)
                self.engine.cancel(ticket.id)
                self.recorder.end(ticket, "stopped")

    def _beat(self) -> None:
        total = self._passes_before + self._passes()
        models = [m for m in sorted(self.placement.models) if m != CHECKS]
        facts = {
            "role": "pool", "pid": os.getpid(), "device": self.device, "engine_pid": self.engine.pid, "host": socket.gethostname(),
            "ready_at": self._ready_at, "beat_at": time.time(), "models": models, "queues": self.placement.queues,
            "slots": self.tickets.slots, "held": len(self.tickets), "origin": self.origin, "idle_because": self._idle_because,
            "spooled": {"replies": len(self.recorder.keeping.spool), "bytes": self.recorder.keeping.spool.bytes},
            "repeats": self.engine.pulse.repeats if self.engine.pulse else 0,
            "engines": {m: f"{place['engine']} {place.get('mode', '')}".strip() for m, place in self.placement.models.items() if "engine" in place},
        }
        self.ledger.beat(self.name, facts, {"forward_passes": total - self._passes_told, "loads": self._loads})
        self._passes_told, self._loads = total, 0

    def _take_up(self) -> None:
        """Load what the pool was asked to serve since it began, beside its work."""
        new = self.ledger.wanted(self.name) - set(self.placement.models)
        if new and self._engine_up.is_set() and self._adopting.acquire(blocking=False):
            threading.Thread(target=self._load_wanted, args=(sorted(new),), name="adopt", daemon=True).start()

    def _load_wanted(self, models: Sequence[str]) -> None:
        try:
            for model in models:
                try:
                    place = self._adopt(model) if self._adopt else {}
                except Unavailable as error:
                    log.warning("%s is not taken up yet: %s", model, error)
                    return
                except SymposiaError as error:
                    log.error("%s is not taken up: %s", model, error)
                    self.ledger.refuse(self.name, model, str(error))
                    continue
                self.placement = Placement({**self.placement.models, model: place})
                self._loads += 1
                self.ledger.place(self.name, self.placement.models, origin=self.origin)
                log.info("%s is served from now on", model)
        except Exception:
            log.exception("taking up %s", models)
        finally:
            self._adopting.release()

    def _count_peers(self) -> None:
        now, mine = time.time(), set(self.placement.queues)
        self._peers = max(1, sum(1 for w in self.ledger.workers().values()
                                 if w["role"] == "pool" and now - w["beat_at"] < 10 and not w.get("idle_because") and mine & set(w.get("queues", ()))))

    # -- faults and the end ----------------------------------------------------------------------------------------

    def _passes(self) -> int:
        pulse = self.engine.pulse
        return pulse.forward_passes if pulse is not None else 0

    def on_engine_death(self, ids: Sequence[str]) -> None:
        """The engine process is gone: its turns are handed back, and another one is started."""
        self._engine_up.clear()
        self._passes_before += self._passes()
        log.error("the engine process of %s died with %d turns in flight; it is started again", self.name, len(ids))
        lost = self.tickets.of(ids)
        self.quarantine.died(lost, suspect_deaths=SUSPECT_DEATHS)
        threading.Thread(target=self._give_back, args=(lost,), kwargs={"killed": True}, name="hand back", daemon=True).start()
        self._engine_died.set()

    def _revive_loop(self) -> None:
        """The one thread that restarts the engine process: two at once would stop each other's."""
        while not self._stopping.is_set():
            if not self._engine_died.wait(timeout=0.5):
                if self.quarantine.over():
                    self._bring_up()
                continue
            self._engine_died.clear()
            if not self.quarantine.why:
                self._bring_up()

    def _bring_up(self) -> None:
        """A new engine process that is trusted; or a quarantine."""
        asked = bool(self.quarantine.why) or self.quarantine.doubtful
        why = self._restarted() or (probe(self.engine, self.placement.models, self._engine_died, within_s=ANSWER_S) if asked else "")
        why = why or self.quarantine.unsteady
        if self._stopping.is_set():
            return
        if why:
            self._engine_died.clear()
            self.quarantine.impose(why)
            return
        if asked:
            self.quarantine.lift()
        self._loads += len(_checkpoints(self.placement))
        self._engine_up.set()
        if self._engine_died.is_set():  # it died again meanwhile
            self._engine_up.clear()
        else:
            log.info("the engine process of %s is up again, pid %s", self.name, self.engine.pid)

    def _restarted(self) -> str:
        """Start the engine process; why that failed again and again, '' where it runs."""
        why = ""
        for attempt in range(MOST_STARTS):
            try:
                self.engine.restart()
            except Exception as error:
                why = f"its engine process does not start: {error}"
                log.error("the engine process does not start: %s", error)
                if self._stopping.wait(backoff(attempt)):
                    break
            else:
                return ""
        return why

    def _give_back(self, tickets: Sequence[Ticket], *, killed: bool) -> None:
        if tickets:
            given = [(t.claim.seat, t.claim.fence) for t in tickets]
            self.recorder.patiently(lambda: self.ledger.hand_back(given, killed=killed))
        for ticket in tickets:
            self.recorder.end(ticket, "handed back", final=False)

    def stop(self, grace_s: float) -> None:
        """Claim nothing more, let what runs end within ``grace_s`` seconds, hand the rest back."""
        self._stopping.set()
        until = time.monotonic() + grace_s
        while self.tickets.busy and time.monotonic() < until:
            time.sleep(0.05)
        self.recorder.keeping.spool_all()
        # what is in the spool keeps its lease: the next process of this pool records it
        rest = [t for t in self.tickets.all() if not t.shelved]
        try:
            if rest:
                self.ledger.hand_back([(t.claim.seat, t.claim.fence) for t in rest], killed=False)
            self.ledger.gone(self.name)
        except Unavailable as error:
            log.warning("could not take leave: %s; the leases end by themselves", error)
        for ticket in rest:
            self.recorder.end(ticket, "handed back", final=False)
            self.engine.cancel(ticket.id)  # not before: the abstention would be recorded as the turn's reply
        COMPARER.stop()
        self._comparing.shutdown(wait=True, cancel_futures=True)
        self.recorder.finish()
        self._sayer.stop()
        self._stopped.set()
        self.engine.stop()


def _checkpoints(placement: Placement) -> list[str]:
    """What of a placement takes memory."""
    return [m for m in placement.models if not m.startswith(("test/", "check/"))]
