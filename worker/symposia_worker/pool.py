"""A pool: one device, its engine process, and the turns it has leased.

A doorbell's thread ends in ``tend``: it claims its turn (and a few more of the queue while slots are free), hands them to the
engine process and waits until its own is recorded, which the ``Recorder`` sees to. The ``Heartbeat`` keeps the leases alive, the
``Revival`` restarts the engine process, the ``Adoption`` takes up what the pool is asked to serve as it runs.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from symposia_shared.archive import Archive
from symposia_shared.broker import Doorbell, placed_as
from symposia_shared.errors import SymposiaError, Unavailable
from symposia_shared.jobs import parse_single
from symposia_shared.ledger import Ledger, Seat
from symposia_shared.ledger.quarantined import Quarantines
from symposia_shared.reuse import Replies
from symposia_shared.turns import LIKENESS, Abstention, Cause, Completion, Reply, Timing, Turn
from symposia_worker.adoption import Adoption
from symposia_worker.burden import Burden
from symposia_worker.checks import COMPARER, checked
from symposia_worker.course import Course
from symposia_worker.engines.asked import AskedEngine
from symposia_worker.heartbeat import BEAT_S, Heartbeat
from symposia_worker.nudges import Nudges
from symposia_worker.placement import Placement
from symposia_worker.quarantine import FIRST_S, Quarantine
from symposia_worker.reconciling import Reconciler
from symposia_worker.recorder import Recorder
from symposia_worker.reusing import Reusing
from symposia_worker.revival import Revival
from symposia_worker.saying import Sayer
from symposia_worker.spool import Spool
from symposia_worker.swapping import Swapping
from symposia_worker.tickets import SUSPECT_DEATHS, Suspects, Ticket, Tickets

log = logging.getLogger(__name__)

#: turns claimed in one round trip; more follow while any are left, for messages, not claims, are what a small turn costs (facts: ledger)
BELL_CLAIMS = 8
#: a turn whose engine died this often while it ran is not tried again; nor one that was tried so often for whatever reason
MOST_DEATHS, MOST_ATTEMPTS = 4, 20
#: seconds a pool takes no turn after its device could not answer one: what fails fast would else take every turn from those that work
REST_S = 10.0


class Pool:
    """The pool of one device. ``watch`` False leaves leases to expire and lost doorbells unheard: for tests of the chord alone."""

    def __init__(self, *, name: str, device: str, slots: int, ledger: Ledger, archive: Archive, course: Course, bell: Doorbell, engine: AskedEngine,
                 placement: Placement, origin: str = "", watch: bool = True, adopt: Callable[[str], dict[str, object]] | None = None,
                 rests_for: frozenset[Cause] = frozenset(), reuse_s: float = 7 * 86_400.0, memory_bytes: int = 0, swapping: Swapping | None = None,
                 spool: Spool | None = None, quarantine_s: float = FIRST_S) -> None:
        self.name, self.device, self.ledger, self.archive, self.course, self.bell = name, device, ledger, archive, course, bell
        self.engine, self.placement, self.origin, self.watch = engine, placement, origin, watch
        #: the placement is changed by several threads, and what is told last must be what it came to
        self._placing, self._telling = threading.Lock(), threading.Lock()
        self.tickets = Tickets(slots)
        #: what its device's weights and caches may fill; 0: it is not its to say
        self.memory_bytes = memory_bytes
        #: causes after which it rests, so that another pool of the queue may take the turn that is tried again
        self._rests_for = rests_for
        self._rest_until = 0.0
        self.quarantine = Quarantine(name, device, Quarantines(ledger), first_s=quarantine_s)
        self._suspects = Suspects()
        # texts are compared one check after another, the first of which waits for torch: no paper shall wait behind them
        self._comparing = ThreadPoolExecutor(1, thread_name_prefix="likeness")
        self.stopping = threading.Event()
        self.stopped = threading.Event()
        self.recorder = Recorder(ledger=ledger, archive=archive, course=course, bell=bell, tickets=self.tickets, stopping=self.stopping,
                                 stopped=self.stopped, on_end=self._ended, on_recorded=self._feed_if_left, spool=spool)
        self._sayer = Sayer(ledger)
        self._reusing = Reusing(Replies(archive.store, life_s=reuse_s), device=device, run=self._generate, record=self.recorder.put)
        self._left = 0
        self.revival, self.heartbeat = Revival(self), Heartbeat(self)
        self.adoption = Adoption(self, adopt) if adopt is not None else None
        #: where it serves what may not be resident
        self.swapping = swapping
        self.burden, self.nudges = Burden(), Nudges(ledger, name, self.feed)
        #: keeps what is served to the desired placement, where there is one
        self.reconciler: Reconciler | None = None

    def start(self) -> None:
        """Say what is served, then begin to beat and to record. The engine is up and its checkpoints are loaded."""
        self.recorder.patiently(self.tell_placement)
        self.recorder.patiently(self.quarantine.resume)
        self.recorder.start()
        self._sayer.start()
        self.revival.start()
        self.heartbeat.start()
        if self.swapping is not None:
            self.swapping.start(self)
        if self.watch:
            self.nudges.start()

    def ready(self) -> None:
        """The worker consumes: from now on the pool counts as ready."""
        self.heartbeat.ready_at = time.time()
        self.heartbeat.beat()

    def serve(self, model: str, place: dict[str, object]) -> None:
        """Serve one checkpoint more, which is resident. Raises BrokerUnavailable."""
        with self._placing:
            self.placement = self.placement.having(model, place)
        self.heartbeat.loads += 1
        self.tell_placement()

    def serve_otherwise(self, model: str, place: dict[str, object]) -> bool:
        """Note another place of a checkpoint that is served, without telling; whether that is news."""
        with self._placing:
            if self.placement.models.get(model, place) == place:
                return False
            self.placement = self.placement.having(model, place)
            return True

    def tell_placement(self) -> None:
        """Say what is served. Raises BrokerUnavailable."""
        with self._telling:  # read within: who comes later tells of the later
            self.ledger.place(self.name, self.placement.models, origin=self.origin)

    def unserve(self, model: str) -> None:
        """Serve one checkpoint less; what is held of it goes on. Raises BrokerUnavailable."""
        with self._placing:
            self.placement = self.placement.without(model)
        self.tell_placement()

    def on_engine_death(self, ids: Sequence[str]) -> None:
        """The engine process is gone with these turns in flight."""
        self.revival.on_death(ids)

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
        while not self.stopping.is_set():
            ticket = self.tickets.attend(seat)
            if ticket is not None:
                ticket.let_go.wait()
                return ticket.outcome or "its reply waits for S3"
            if not self.revival.wait_up(1.0) or self._rests(wait_s=1.0):
                continue
            named = self._claim(named=seat, wait_s=1.0)
            if named == "queued" and self.swapping is not None and self.swapping.on_demand:
                self.swapping.rung()
                return "waits for its checkpoint"
            if named not in ("queued", "ok"):
                return self.tickets.ended(seat) or named
            if named == "queued":  # there may be free slots that this turn may not have: a batch's, or more than this pool's share
                self.stopping.wait(BEAT_S / 2)
        return "left to the ledger"

    def _claim(self, *, named: Seat | None = None, wait_s: float = 0.0) -> str:
        """Lease turns for the free slots and begin them, until none is left. Returns what became of the named one."""
        became, began = self._claim_some(named, wait_s)
        while began and self._left > 0 and not self.stopping.is_set():
            _, began = self._claim_some(None, 0.0)
        return became

    def _claim_some(self, named: Seat | None, wait_s: float) -> tuple[str, bool]:
        """Lease a few and begin them: what became of the named one, and whether there were any and none was handed back."""
        most = self.tickets.reserve(BELL_CLAIMS, wait_s=wait_s, seat=named)
        if most == 0:
            return "queued", False
        tickets: list[Ticket] = []
        try:
            # without the look-around a turn left to another pool, who was not told, would lie there
            burden = self.burden.said(self.tickets.slots - self.tickets.busy) if self.watch else ""
            queues = self.placement.queues if self.swapping is None else self.swapping.queues(self)
            claimed = self.ledger.claim(most=most, pools=self.heartbeat.peers, queues=queues, named=named, pool=self.name, burden=burden,
                                        batch=self.tickets.for_batches(most), strict=self.swapping is not None)
            now = time.time()
            tickets = [Ticket(claim=c, claimed_at=now, attended=named is not None and c.seat == named) for c in claimed.claims]
        finally:
            self.tickets.take(tickets, most)
        self._left = claimed.left
        if not tickets:
            return claimed.named, False
        with self.engine.together():
            for ticket in tickets:
                self._begin(ticket)
        return claimed.named, not any(t.over.is_set() for t in tickets)

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
            if placed_as(ticket.turn.model) not in self.placement.models:  # a doorbell of what it served until just now
                self.give_back([ticket], killed=False)
                return
            self.burden.take(ticket.id, ticket.turn)
            if ticket.over.is_set():
                self.burden.drop(ticket.id)
            if ticket.turn.is_check:
                if ticket.turn.model == LIKENESS:
                    self._comparing.submit(self._check, ticket, ticket.turn)
                else:
                    self.recorder.later(self._check, ticket, ticket.turn)
                return
            key = self._reusing.key(ticket, self.placement.models)
            if key is not None:
                self.recorder.later(self._reusing.begin, ticket, key)
                return
            self._generate(ticket)
        except Exception as error:
            log.exception("turn %s", seat.key)
            self.recorder.put(ticket, Abstention(cause="bug", message=f"{type(error).__name__}: {error}"))

    def _generate(self, ticket: Ticket) -> None:
        """Ask the engine."""
        seat, turn = ticket.claim.seat, ticket.turn
        assert turn is not None  # noqa: S101 - it was read before
        try:
            if not self.revival.up:  # it may run already, and is being asked by itself
                self.give_back([ticket], killed=False)
                return
            if self.swapping is not None and not self.swapping.enter(ticket):
                self.give_back([ticket], killed=False)
                return
            on_delta = self._sayer.begin(seat, ticket.claim.fence) if ticket.claim.stream else None
            self.engine.generate(ticket.id, turn, partial(self._on_first, ticket), partial(self._on_done, ticket), on_delta=on_delta)
        except Unavailable:
            self.give_back([ticket], killed=False)
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
        if ticket.turn is not None:
            self.burden.learn(ticket.turn, reply)
        self._judge(ticket, reply)
        timing = Timing(claimed_at=ticket.claimed_at, first_token_at=ticket.first_token_at, last_token_at=time.time())
        reply = reply.model_copy(update={"timing": timing, "pool": self.name})
        if ticket.reuse_key:
            self.recorder.later(self._reusing.done, ticket, reply, self.placement.models)
        else:
            self.recorder.put(ticket, reply)

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
        self._sayer.end(ticket.claim.seat, ticket.claim.fence)
        if ticket.reuse_key:
            self._reusing.left(ticket)
        self.burden.drop(ticket.id)
        if self.swapping is not None:
            self.swapping.leave(ticket)
        follows = self._suspects.leave(ticket)
        if follows is not None:
            self._launch(follows)

    def _feed_if_left(self) -> None:
        if self._left > 0 and not self.stopping.is_set() and self.revival.up:
            self.feed()

    def feed(self) -> None:
        """Claim for free slots without being rung: a doorbell may be lost, and one may stand for many."""
        if self.stopping.is_set() or self._rests():
            return
        try:
            self._claim()
        except Unavailable as error:
            log.warning("cannot claim: %s", error)

    def _rests(self, wait_s: float = 0.0) -> bool:
        """Whether no turn is to be taken now (``idle_because``, or the device has just failed some); waits up to ``wait_s`` for the end of that."""
        left = max(self._rest_until - time.monotonic(), wait_s if self.idle_because else 0.0, bool(self.idle_because))
        if left > 0 and wait_s:
            self.stopping.wait(min(left, wait_s))
        return left > 0

    @property
    def idle_because(self) -> str:
        """Why no turn is taken; '' where turns are."""
        return self.quarantine.why or self.recorder.keeping.spool.full

    # -- the end ---------------------------------------------------------------------------------------------------

    def give_back(self, tickets: Sequence[Ticket], *, killed: bool) -> None:
        """Hand turns back to their queues; ``killed``: their engine died while they ran."""
        if tickets:
            given = [(t.claim.seat, t.claim.fence) for t in tickets]
            self.recorder.patiently(lambda: self.ledger.hand_back(given, killed=killed))
        for ticket in tickets:
            self.recorder.end(ticket, "handed back", final=False)

    def stop(self, grace_s: float) -> None:
        """Claim nothing more, let what runs end within ``grace_s`` seconds, hand the rest back."""
        self.stopping.set()
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
        self.nudges.stop()
        self.stopped.set()
        self.engine.stop()
