"""Swap-aware scheduling: load as late as the longest wait allows, keep what would have to be loaded most often.

Where turns may wait, a load serves all that has gathered. The fewest visits to one checkpoint are those of interval stabbing: wait until the
oldest turn must be served, then serve every turn that waits. With several checkpoints the visits are ordered by earliest deadline (Jackson
1955), and begin as soon as the last of them would else come too late. A resident that is asked costs no load; of a budget that holds some
of them those are kept whose absence would cost the most load time a second for their bytes: ``rate of visits × load time / bytes``, a
visit being due once in ``longest wait + time between two turns``. (GreedyDual-Size, Cao and Irani 1997, weighs cost and size alike, but by
recency.)

Compared with in ``benchmarks/scheduling``: Belady 1966 (the furthest next use), least recently used and least frequently used (Sleator and
Tarjan 1985 on what any such rule can do), first-in-first-out with lookahead, and a solver's optimum under the same longest wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from symposia_shared.residency.view import Standing, View

#: of the longest wait: with more work than that before it, a device does not wait for more to gather
BUSY_SHARE = 0.5
#: turns that would have come meanwhile, if a checkpoint that has been silent were still asked as often
SILENCE = 1.0
#: sums of seconds are compared up to that
EPSILON_S = 1e-9


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now."""

    #: to be made resident, once ``evict`` is gone
    load: str | None = None
    #: idle residents to unload now
    evict: tuple[str, ...] = ()
    #: busy residents, and bases of such, from which nothing more is to be taken, so that they can be evicted
    drain: tuple[str, ...] = ()
    #: residents whose waiting turns may be taken, the most urgent first
    take: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SwapAware:
    """The policy. ``decide`` is a pure function of what it sees.

    **The guarantee.** A turn's wait is the time until its checkpoint is resident and its queue is taken from. When a turn comes, let the work
    before it be: the rest of the load that is going on, and for each checkpoint that is waited for its load (unless it is resident) and the
    serving of what waits there, its own included; and let the budget hold any one checkpoint beside the pinned ones. If at each arrival
    this work, and for each visit the time until a victim's running turns have ended and one ``tick_s``, is no more than
    ``longest_wait_s``, no turn waits longer. (Visits are made in the order of deadlines, all of which are alike, so a new turn's is the last,
    and waiting on purpose ends before the sum of the visits no longer fits.) With more work than that no order could keep it in general;
    the oldest turn then goes first, without waiting on purpose, so that nothing starves.
    """

    #: no turn shall wait longer for its checkpoint, in seconds
    longest_wait_s: float = 30.0
    #: how long the oldest turn of a queue waits before a full device swaps for it although there is time; None: as long as there is time.
    #: Less answers sooner and loads more often
    patience_s: float | None = None
    #: seconds between two decisions
    tick_s: float = 0.1
    #: residents that nobody has asked for so long are unloaded; None: never
    idle_ttl_s: float | None = None

    def decide(self, view: View) -> Decision:
        """What to load and evict now, and whose turns to take. Of no two decisions must the first have been carried out."""
        waited = sorted((s for s in view.standings if s.waiting), key=lambda s: (-s.oldest_s, s.checkpoint))
        wanted = self._wanted(view, waited)
        take = tuple(s.checkpoint for s in waited if s.resident)
        if wanted is None:
            return Decision(evict=self._all_expired(view), take=take)
        victims = self._victims(view, wanted)
        if victims is None:
            return Decision(take=take)
        awaited = {v.base for v in victims if v.running}
        busy = tuple(v.checkpoint for v in victims if v.running or v.checkpoint in awaited)
        gone = {v.checkpoint for v in victims}
        idle = tuple(v.checkpoint for v in victims if v.checkpoint not in busy)
        return Decision(load=None if busy else wanted.checkpoint, evict=idle, drain=busy, take=tuple(t for t in take if t not in gone))

    def _wanted(self, view: View, waited: Sequence[Standing]) -> Standing | None:
        """What to make room for now, if anything."""
        staying = [s for s in view.resident if s.pinned]
        away = [s for s in waited if not s.resident and view.fits((*staying, s))]
        if not away:
            return None
        if (self.patience_s is not None and away[0].oldest_s >= self.patience_s) or self._pressed(view, waited):
            return away[0]
        # nothing is lost by loading at once what takes nobody's place
        return next((s for s in away if view.fits((*view.resident, s))), None)

    def _pressed(self, view: View, waited: Sequence[Standing]) -> bool:
        """Whether the visits that are due, begun at the next decision, would no longer all be in time; or there is so much work that to wait
        for more of it would be idle."""
        begin = self.tick_s + max((s.serve_s for s in view.resident if s.running), default=0.0)
        work = 0.0
        for s in waited:
            load_s = 0.0 if s.resident else s.load_s
            if not s.resident and s.oldest_s + begin + work + load_s > self.longest_wait_s + EPSILON_S:
                return True
            work += max(load_s + s.serve_s, 0.0 if s.resident else self.tick_s)
        return work >= BUSY_SHARE * self.longest_wait_s

    def _victims(self, view: View, wanted: Standing) -> list[Standing] | None:
        """The residents that go for ``wanted``; [] where there is room, None where those that may go do not make room."""
        victims: list[Standing] = []
        staying = {s.checkpoint: s for s in (*view.resident, wanted)}
        for s in self._least_first(view.resident):
            if view.fits(staying.values()):
                break
            if not (s.pinned or _leant_on(s, staying.values())):
                victims.append(staying.pop(s.checkpoint))
        return victims if view.fits(staying.values()) else None

    def _least_first(self, residents: Sequence[Standing]) -> list[Standing]:
        """By what they are worth, each base after its adapters: without them it is given up for nothing, and they need it."""
        worth = {s.checkpoint: self._worth(s) for s in residents}
        under = {s.base for s in residents}
        most = {base: max(worth[s.checkpoint] for s in residents if base in (s.base, s.checkpoint)) for base in under}
        return sorted(residents, key=lambda s: (most.get(s.checkpoint, worth[s.checkpoint]), s.checkpoint in under))

    def _worth(self, s: Standing) -> tuple[bool, bool, float, float, str]:
        """What it is worth to keep a resident, the least first: what is being emptied already; not what is waited for, and would be loaded
        again at once."""
        return (not s.draining, s.waiting > 0, self._saved(s), -s.idle_s, s.checkpoint)

    def _saved(self, s: Standing) -> float:
        """Seconds of loading that a second of its residence saves, by byte."""
        rate = s.rate if s.idle_s <= 0.0 else min(s.rate, SILENCE / s.idle_s)
        if rate <= 0.0:
            return 0.0
        wait = self.longest_wait_s if self.patience_s is None else min(self.patience_s, self.longest_wait_s)
        return s.load_s / (wait + 1.0 / rate) / max(s.bytes, 1)

    def _all_expired(self, view: View) -> tuple[str, ...]:
        """Those that are, adapters first; a base is not while an adapter of it stays."""
        staying = [s for s in view.resident if not self._expired(s)]
        gone = [s for s in self._least_first(view.resident) if self._expired(s) and not _leant_on(s, staying)]
        return tuple(s.checkpoint for s in gone)

    def _expired(self, s: Standing) -> bool:
        return self.idle_ttl_s is not None and s.idle_s > self.idle_ttl_s and not (s.pinned or s.running or s.waiting)


def _leant_on(s: Standing, staying: Iterable[Standing]) -> bool:
    """Whether one of these goes on from its weights."""
    return any(other.base == s.checkpoint for other in staying)
