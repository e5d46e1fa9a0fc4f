"""Seeded arrivals: per slot, the checkpoints that are asked. Pure, but for a generator seeded by the caller."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: by slot, the numbers of the checkpoints that are asked in it
Trace = tuple[tuple[int, ...], ...]
#: by slot, the turns each checkpoint is asked for on average
Rates = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of arrivals: what each checkpoint's are on average, and how many come."""

    #: of (seed, checkpoints, slots, turns a slot)
    rates: Callable[[int, int, int, float], Rates]
    #: added to the seed by which turns are drawn; None: none are, they come in turn
    beside: int | None = 0

    def trace(self, seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
        """A trace of that kind."""
        rates = self.rates(seed, checkpoints, slots, rate)
        return _in_turn(rates, seed) if self.beside is None else _poisson(rates, seed + self.beside)


def zipf(_: int, checkpoints: int, slots: int, rate: float) -> Rates:
    """Popularity falls as 1/rank (Breslau et al. 1999 found about that of web requests)."""
    return _shared(lambda _: [1 / (n + 1) for n in range(checkpoints)], slots, rate)


def uniform(_: int, checkpoints: int, slots: int, rate: float) -> Rates:
    """All are asked alike."""
    return _shared(lambda _: [1.0] * checkpoints, slots, rate)


def diurnal(_: int, checkpoints: int, slots: int, rate: float) -> Rates:
    """Two days, each checkpoint with an hour of its own in which it is asked most."""
    day = slots / 2
    return _shared(lambda t: [max(0.0, math.cos(2 * math.pi * (t / day - n / checkpoints))) ** 2 + 0.02 for n in range(checkpoints)], slots, rate)


def bursty(seed: int, checkpoints: int, slots: int, rate: float) -> Rates:
    """Each is silent for a while and then asked much: 40 slots on average, and silent for 120, so that a quarter of them are asked at a time."""
    return _bursts(seed, checkpoints, slots, rate, on=40, off=120)


def crowded(seed: int, checkpoints: int, slots: int, rate: float) -> Rates:
    """The same, but silent for 60 slots only: as many are asked at a time as ten checkpoints' device for four holds."""
    return _bursts(seed, checkpoints, slots, rate, on=40, off=60)


def round_robin(_: int, checkpoints: int, slots: int, rate: float) -> Rates:
    """One after the other, for ever, at most one a slot, so that first-in-first-out keeps pace: the worst that can be done to recency."""
    return _shared(lambda _: [1.0] * checkpoints, slots, min(rate, 1.0))


TRACES: dict[str, Kind] = {
    "zipf": Kind(zipf), "uniform": Kind(uniform), "bursty": Kind(bursty, 1), "crowded bursts": Kind(crowded, 1), "diurnal": Kind(diurnal),
    "round-robin": Kind(round_robin, None),
}


def _shared(weights: Callable[[int], Sequence[float]], slots: int, rate: float) -> Rates:
    """``rate`` turns a slot in all, shared by weight."""
    found = []
    for t in range(slots):
        now = weights(t)
        found.append(tuple(rate * w / sum(now) for w in now))
    return tuple(found)


def _bursts(seed: int, checkpoints: int, slots: int, rate: float, *, on: float, off: float) -> Rates:
    chance, share = random.Random(seed), on / (on + off)
    asked = [chance.random() < share for _ in range(checkpoints)]
    found = []
    for _ in range(slots):
        asked = [not a if chance.random() < (1 / on if a else 1 / off) else a for a in asked]
        found.append(tuple(rate / (checkpoints * share) * a for a in asked))
    return tuple(found)


def _in_turn(rates: Rates, seed: int) -> Trace:
    rate = sum(rates[0]) if rates else 0.0
    return tuple(tuple((n + seed) % len(now) for n in range(round(t * rate), round((t + 1) * rate))) for t, now in enumerate(rates))


def _poisson(rates: Rates, seed: int) -> Trace:
    chance = random.Random(seed)
    return tuple(tuple(chance.choices(range(len(now)), now, k=_drawn(chance, sum(now)))) if any(now) else () for now in rates)


def _drawn(chance: random.Random, mean: float) -> int:
    """A Poisson number, by Knuth's product of uniforms."""
    limit, n, product = math.exp(-mean), 0, chance.random()
    while product > limit:
        n, product = n + 1, product * chance.random()
    return n
