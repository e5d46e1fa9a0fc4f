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
    """Each is silent for a while and then asked much: on for 40 slots on average, off for as long as makes a quarter of them be on."""
    chance = random.Random(seed)
    on = [chance.random() < 0.25 for _ in range(checkpoints)]
    weights: list[list[float]] = []
    for _ in range(slots):
        on = [not o if chance.random() < (1 / 40 if o else 1 / 120) else o for o in on]
        weights.append([1.0 if o else 0.0 for o in on])
    return _poisson(seed + 1, slots, lambda t: weights[t], rate, of=checkpoints / 4)


def round_robin(seed: int, checkpoints: int, slots: int, rate: float) -> Trace:
    """One after the other, for ever: the worst that can be done to recency."""
    return tuple(tuple((n + seed) % checkpoints for n in range(round(t * rate), round((t + 1) * rate))) for t in range(slots))


TRACES: dict[str, Callable[[int, int, int, float], Trace]] = {
    "zipf": zipf, "uniform": uniform, "bursty": bursty, "diurnal": diurnal, "round-robin": round_robin,
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
