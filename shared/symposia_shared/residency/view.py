"""What a residency policy sees of a device at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """How one checkpoint stands with a device. Times are seconds, sizes bytes."""

    checkpoint: str
    #: what it takes while it is resident: weights and cache, measured once it was
    bytes: int
    #: how long it takes to make it resident
    load_s: float
    resident: bool = False
    #: turns that wait, and for how long the oldest has
    waiting: int = 0
    oldest_s: float = 0.0
    #: how long the device takes to serve what waits
    serve_s: float = 0.0
    #: turns in progress; it is not evicted before they have ended
    running: int = 0
    #: never evicted
    pinned: bool = False
    #: nothing more is taken of it, for it is to be evicted
    draining: bool = False
    #: turns that come, a second, as ``Demand`` has seen them
    rate: float = 0.0
    #: since it was last asked or loaded
    idle_s: float = 0.0
    #: of an adapter: whose weights it goes on from, which are in memory while it is, and what they take there
    base: str = ""
    base_bytes: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A device's memory budget and every checkpoint that is resident or waited for."""

    budget_bytes: int
    standings: tuple[Standing, ...]

    @property
    def resident(self) -> tuple[Standing, ...]:
        """Those on the device."""
        return tuple(s for s in self.standings if s.resident)

    @property
    def free_bytes(self) -> int:
        """What no resident takes; below 0 where they were found to take more than was thought."""
        return self.budget_bytes - taken(self.resident)

    def fits(self, standings: Iterable[Standing]) -> bool:
        """Whether these could be resident together."""
        return taken(standings) <= self.budget_bytes


def taken(standings: Iterable[Standing]) -> int:
    """Bytes that checkpoints take together, the bases they go on from included, each once."""
    held, bases = {}, {}
    for s in standings:
        held[s.checkpoint] = s.bytes
        if s.base:
            bases[s.base] = s.base_bytes
    return sum({**bases, **held}.values())
