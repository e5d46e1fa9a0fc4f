"""Seeded arrivals: per slot, the checkpoints that are asked. Pure, but for a generator seeded by the caller."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

#: by slot, the numbers of the checkpoints that are asked in it
Trace = tuple[tuple[int, ...], ...]


def zipf(seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
    """Popularity falls as 1/rank (Breslau et al. 1999 found about that of web requests)."""
    return _poisson(seed, slots, lambda _: [1 / (n + 1) for n in range(checkpoints)], rate)


def uniform(seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
    """All are asked alike."""
    return _poisson(seed, slots, lambda _: [1.0] * checkpoints, rate)


def diurnal(seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
    """Two days, each checkpoint with an hour of its own in which it is asked most."""
    day = slots / 2
    return _poisson(seed, slots, lambda t: [max(0.0, math.cos(2 * math.pi * (t / day - n / checkpoints))) ** 2 + 0.02 for n in range(checkpoints)], rate)


def bursty(seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
    """Each is silent for a while and then asked much: 40 slots on average, and silent for 120, so that a quarter of them are asked at a time."""
    return _bursts(seed, checkpoints, slots, rate, on=40, off=120)


def crowded(seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
    """The same, but silent for 60 slots only: as many are asked at a time as ten checkpoints' device for four holds."""
    return _bursts(seed, checkpoints, slots, rate, on=40, off=60)


def _bursts(seed: int, checkpoints: int, slots: int, rate: float, *, on: float, off: float) -> Trace:
    chance, share = random.Random(seed), on / (on + off)
    asked = [chance.random() < share for _ in range(checkpoints)]
    weights: list[list[float]] = []
    for _ in range(slots):
        asked = [not a if chance.random() < (1 / on if a else 1 / off) else a for a in asked]
        weights.append([float(a) for a in asked])
    return _poisson(seed + 1, slots, lambda t: weights[t], rate, of=checkpoints * share)


def round_robin(seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
    """One after the other, for ever, at most one a slot, so that first-in-first-out keeps pace: the worst that can be done to recency."""
    rate = min(rate, 1.0)
    return tuple(tuple((n + seed) % checkpoints for n in range(round(t * rate), round((t + 1) * rate))) for t in range(slots))


TRACES: dict[str, Callable[[int, int, int, float], Trace]] = {
    "zipf": zipf, "uniform": uniform, "bursty": bursty, "crowded bursts": crowded, "diurnal": diurnal, "round-robin": round_robin,
}


def _poisson(seed: int, slots: int, weights: Callable[[int], Sequence[float]], rate: float, *, of: float | None = None) -> Trace:
    """``rate`` arrivals a slot in all; with ``of``: a checkpoint of weight 1 has rate/of."""
    chance = random.Random(seed)
    found = []
    for t in range(slots):
        now = weights(t)
        total = sum(now)
        mean = rate * (total / of if of else 1.0)
        found.append(tuple(chance.choices(range(len(now)), now, k=_drawn(chance, mean))) if total else ())
    return tuple(found)


def _drawn(chance: random.Random, mean: float) -> int:
    """A Poisson number, by Knuth's product of uniforms."""
    limit, n, product = math.exp(-mean), 0, chance.random()
    while product > limit:
        n, product = n + 1, product * chance.random()
    return n
