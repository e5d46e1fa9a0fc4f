"""Published policies, driven by the same simulator. Each loads the checkpoint of the oldest turn that waits for one that is not resident,
as soon as it can, and serves all that waits for the residents; they differ in what they evict. First-in-first-out serves in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.scheduling.simulator import Policy
from benchmarks.scheduling.traces import Rates, Trace
from symposia_shared.residency import Decision, Standing, View


def _evicted(view: View, wanted: Standing, worth: Callable[[Standing], float], *, spared: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The residents of least worth whose place ``wanted`` takes."""
    gone: list[str] = []
    free = view.free_bytes
    for s in sorted((s for s in view.resident if s.checkpoint not in spared), key=lambda s: (worth(s), s.checkpoint)):
        if free >= wanted.bytes:
            break
        gone.append(s.checkpoint)
        free += s.bytes
    return tuple(gone)


def _on_demand(view: View, worth: Callable[[Standing], float]) -> Decision:
    waited = sorted((s for s in view.standings if s.waiting), key=lambda s: (-s.oldest_s, s.checkpoint))
    wanted = next((s for s in waited if not s.resident), None)
    gone = _evicted(view, wanted, worth) if wanted else ()
    return Decision(load=wanted.checkpoint if wanted else None, evict=gone, take=tuple(s.checkpoint for s in waited if s.resident and s.checkpoint not in gone))


class LRU:
    """The least recently used goes."""

    def decide(self, view: View) -> Decision:
        """Decide."""
        return _on_demand(view, lambda s: -s.idle_s)


@dataclass
class LFU:
    """The least frequently used goes: by all turns it was asked so far."""

    asked: dict[str, int] = field(default_factory=dict)

    def look(self, trace: Trace, slot: int) -> None:
        """Count."""
        for n in trace[slot] if slot < len(trace) else ():
            self.asked[str(n)] = self.asked.get(str(n), 0) + 1

    def decide(self, view: View) -> Decision:
        """Decide."""
        return _on_demand(view, lambda s: self.asked.get(s.checkpoint, 0))


@dataclass
class Belady:
    """The one whose next turn is the furthest away goes (Belady 1966): optimal where no turn can wait, and it knows what comes."""

    trace: Trace = ()
    slot: int = 0

    def look(self, trace: Trace, slot: int) -> None:
        """See what comes."""
        self.trace, self.slot = trace, slot

    def decide(self, view: View) -> Decision:
        """Decide."""
        return _on_demand(view, lambda s: -self._next(int(s.checkpoint)))

    def _next(self, n: int) -> int:
        return next((t for t in range(self.slot + 1, len(self.trace)) if n in self.trace[t]), len(self.trace) + 1)


@dataclass
class Told:
    """Another policy, told of each checkpoint how much it is asked at present, which nobody can know better; not what comes."""

    policy: Policy
    rates: Rates
    slot: int = 0

    def look(self, trace: Trace, slot: int) -> None:
        """Note the time."""
        self.slot = slot

    def decide(self, view: View) -> Decision:
        """Decide."""
        now = self.rates[min(self.slot, len(self.rates) - 1)]
        told = {s.checkpoint: now[int(s.checkpoint)] for s in view.standings}
        # what is asked is so whatever its silence; of the others the one that has been silent for longest goes
        return self.policy.decide(replace(view, standings=tuple(
            replace(s, rate=told[s.checkpoint], idle_s=0.0 if told[s.checkpoint] else s.idle_s) for s in view.standings)))


@dataclass
class FIFO:
    """In order of arrival; of the first ``lookahead`` turns those whose checkpoint is resident go first (1: none does)."""

    lookahead: int = 1
    queue: list[tuple[int, int]] = field(default_factory=list)  # (slot, checkpoint)

    def look(self, trace: Trace, slot: int) -> None:
        """Take what has come."""
        self.queue += [(slot, n) for n in (trace[slot] if slot < len(trace) else ())]

    def decide(self, view: View) -> Decision:
        """Decide."""
        resident = {int(s.checkpoint): s for s in view.resident}
        waiting = {int(s.checkpoint): s.waiting for s in view.standings}
        self.queue = _left(self.queue, waiting)
        window = self.queue[: self.lookahead]
        ready = list(dict.fromkeys(n for _, n in window if n in resident))
        if ready or not window:
            return Decision(take=tuple(map(str, ready[:1] if self.lookahead == 1 else ready)))
        wanted = next(s for s in view.standings if int(s.checkpoint) == window[0][1])
        return Decision(load=wanted.checkpoint, evict=_evicted(view, wanted, lambda s: -s.idle_s))


def _left(queue: list[tuple[int, int]], waiting: dict[int, int]) -> list[tuple[int, int]]:
    """The queue without what was served: of each checkpoint the oldest go first."""
    surplus: dict[int, int] = {}
    for _, n in queue:
        surplus[n] = surplus.get(n, 0) + 1
    surplus = {n: have - waiting.get(n, 0) for n, have in surplus.items()}
    kept = []
    for slot, n in queue:
        if surplus[n] > 0:
            surplus[n] -= 1
        else:
            kept.append((slot, n))
    return kept
