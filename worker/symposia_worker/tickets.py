"""What a pool holds: a ticket per leased turn."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from symposia_shared.ledger import Claim, Seat
from symposia_shared.turns import Turn

REMEMBERED = 20_000
#: of so many slots one is left for turns that are of no batch
KEPT = 16

#: a turn whose engine died this often runs beside no other such turn, so that one that kills engines is told from its neighbours
SUSPECT_DEATHS = 2


@dataclass(slots=True, eq=False)
class Ticket:
    """A turn this pool has leased, from claim to record."""

    claim: Claim
    claimed_at: float
    turn: Turn | None = None
    first_token_at: float | None = None
    #: whether a doorbell's thread waits for it
    attended: bool = False
    #: the checkpoint it keeps from being unloaded
    entered: str = ""
    #: where its reply is kept to be given again; empty where it is not
    reuse_key: str = ""
    #: what became of it, in a few words; set before ``over``
    outcome: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    #: its doorbell's thread may go: it is over, or its reply waits on disk for S3
    let_go: threading.Event = field(default_factory=threading.Event)
    #: the ledger has its reply, and it waits for its result's commit: there is no lease of it any more
    recorded: bool = False
    #: it takes no slot any more: its reply is in the spool
    shelved: bool = False

    @property
    def id(self) -> str:
        """What the engine calls it: seat and fence, so that two leases of one seat never meet."""
        return f"{self.claim.seat.key}|{self.claim.fence}"

    def finish(self) -> None:
        """It is over; whoever waits for it goes on."""
        self.over.set()
        self.let_go.set()


class Suspects:
    """Turns whose engine has died more than once: one of them runs at a time, the others wait their turn."""

    def __init__(self) -> None:
        self._running: Ticket | None = None
        self._waiting: deque[Ticket] = deque()
        self._mutex = threading.Lock()

    def admit(self, ticket: Ticket) -> bool:
        """Whether it may run now; else it is returned by a later ``leave``."""
        with self._mutex:
            if self._running is None:
                self._running = ticket
                return True
            self._waiting.append(ticket)
            return False

    def leave(self, ticket: Ticket) -> Ticket | None:
        """A ticket has ended; the next to run, if it was the one that ran."""
        with self._mutex:
            if self._running is not ticket:
                return None
            while self._waiting and self._waiting[0].over.is_set():
                self._waiting.popleft()
            self._running = self._waiting.popleft() if self._waiting else None
            return self._running


class Tickets:
    """The tickets of one pool and its free slots. All methods are safe between threads."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._held: dict[Seat, Ticket] = {}
        self._by_id: dict[str, Ticket] = {}
        self._ended: OrderedDict[Seat, str] = OrderedDict()
        self._reserved = 0
        self._shelved = 0
        self._change = threading.Condition()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def busy(self) -> int:
        """How many take a slot."""
        return len(self._held) - self._shelved

    def shelve(self, ticket: Ticket) -> None:
        """Free the slot of a held ticket whose reply is on disk; its lease goes on being renewed."""
        with self._change:
            if ticket.shelved or self._by_id.get(ticket.id) is not ticket:
                return
            ticket.shelved, ticket.attended = True, False  # nobody waits for it: its record rings for itself
            self._shelved += 1
            self._change.notify_all()
        ticket.let_go.set()

    def all(self) -> list[Ticket]:
        """A snapshot of what is held."""
        with self._change:
            return list(self._held.values())

    def of(self, ids: Iterable[str]) -> list[Ticket]:
        """The tickets of these engine ids that are still held."""
        with self._change:
            return [self._by_id[i] for i in ids if i in self._by_id]

    def get(self, ticket_id: str) -> Ticket | None:
        """The ticket of an engine id, while it is held."""
        return self._by_id.get(ticket_id)

    def attend(self, seat: Seat) -> Ticket | None:
        """The ticket of a seat, marked as waited for; None where it is not held."""
        with self._change:
            ticket = self._held.get(seat)
            if ticket is not None:
                ticket.attended = True
            return ticket

    def ended(self, seat: Seat) -> str | None:
        """What became of a seat this pool has seen to its end, if it was not long ago."""
        return self._ended.get(seat)

    def reserve(self, most: int, *, wait_s: float = 0.0, seat: Seat | None = None) -> int:
        """Set up to ``most`` free slots aside, waiting for one; 0 when none came free or ``seat`` is held meanwhile."""
        with self._change:
            if wait_s:
                self._change.wait_for(lambda: self._free() > 0 or (seat is not None and seat in self._held), timeout=wait_s)
            if seat is not None and seat in self._held:
                return 0
            got = max(0, min(most, self._free()))
            self._reserved += got
            return got

    def for_batches(self, reserved: int) -> int:
        """Of slots that were set aside those that turns of batches may take: one in sixteen of a pool's is left for what somebody waits for."""
        with self._change:
            kept = max(1, self.slots // KEPT) if self.slots >= KEPT // 2 else 0
            return max(0, reserved - max(0, kept - self._free()))

    def _free(self) -> int:
        return self.slots - self.busy - self._reserved

    def take(self, tickets: Iterable[Ticket], reserved: int) -> None:
        """Hold these; give the whole reservation back."""
        with self._change:
            for ticket in tickets:
                self._held[ticket.claim.seat] = ticket
                self._by_id[ticket.id] = ticket
            self._reserved -= reserved
            self._change.notify_all()

    def drop(self, ticket: Ticket, outcome: str, *, final: bool = True) -> bool:
        """End a ticket; ``final``: its turn will not come here again. False when it had ended before."""
        with self._change:
            if self._by_id.pop(ticket.id, None) is None:
                return False
            self._shelved -= ticket.shelved
            if self._held.get(ticket.claim.seat) is ticket:
                del self._held[ticket.claim.seat]
            ticket.outcome = outcome
            if final:
                self._ended[ticket.claim.seat] = outcome
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
            self._change.notify_all()
            return True
