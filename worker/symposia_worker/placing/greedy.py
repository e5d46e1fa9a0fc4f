"""A placement without the solver's search: dense ones first, the busiest placed on the least loaded site, the hot ones copied.

It is what a plan falls back to where the solver found nothing in time, and what spares the search where it is already good.
The order is Graham's longest-processing-time rule (Graham 1969, SIAM J. Appl. Math. 17(2)) under memory limits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from symposia_worker.placing.programs import Numbers, Pair, shares

#: copies are tried so often at most, and kept where the peak falls by this share
COPY_TRIES, COPY_GAIN = 48, 0.005


def choice(n: Numbers) -> list[Pair]:
    """A packing of the most worth by byte; a checkpoint is in with all its copies or not at all."""
    room, taken = list(n.memory), []
    cost = [min((n.bytes[p] for p in n.pairs if p[0] == c), default=0) * n.copies[c] for c in range(len(n.value))]
    for c in sorted(range(len(n.value)), key=lambda c: (-n.value[c] / max(cost[c], 1), c)):
        fits = sorted((room[s] - n.bytes[c, s], s) for k, s in n.pairs if k == c and n.bytes[c, s] <= room[s])
        if len(fits) >= n.copies[c]:
            for _, s in fits[:n.copies[c]]:
                room[s] -= n.bytes[c, s]
                taken.append((c, s))
    return taken


def spread(n: Numbers, chosen: Collection[int], packing: Sequence[Pair]) -> list[Pair]:
    """The chosen over the sites by load, copies included; ``packing`` is known to fit and is taken where this order does not."""
    held = _by_load(n, chosen)
    return _copied(n, list(packing) if held is None else held)


def _by_load(n: Numbers, chosen: Collection[int]) -> list[Pair] | None:
    room, load, held = list(n.memory), [0.0] * len(n.memory), []
    for c in sorted(chosen, key=lambda c: (-n.work[c], c)):
        part = 1 / n.copies[c]
        sites = sorted((load[s] + n.load((c, s), part), (c, s) not in n.held, s) for k, s in n.pairs if k == c and n.bytes[c, s] <= room[s])
        if len(sites) < n.copies[c]:
            return None
        for _, _, s in sites[:n.copies[c]]:
            room[s] -= n.bytes[c, s]
            load[s] += n.load((c, s), part)
            held.append((c, s))
    return held


def _copied(n: Numbers, held: list[Pair]) -> list[Pair]:
    """Copies of what makes the busiest site busy, on the least loaded sites that have room."""
    division, peak = shares(n, held)
    for _ in range(COPY_TRIES):
        for pair in _candidates(n, held, division):
            more, now = shares(n, [*held, pair])
            if now < peak * (1 - COPY_GAIN):
                held, division, peak = [*held, pair], more, now
                break
        else:
            return held
    return held


def _candidates(n: Numbers, held: Sequence[Pair], division: dict[Pair, float]) -> list[Pair]:
    sites = range(len(n.memory))
    load = [sum(n.load(p, division[p]) for p in held if p[1] == s) for s in sites]
    room = [n.memory[s] - sum(n.bytes[p] for p in held if p[1] == s) for s in sites]
    busiest = max(sites, key=lambda s: load[s])
    hot = sorted((p[0] for p in held if p[1] == busiest), key=lambda c: -n.load((c, busiest), division[c, busiest]))[:3]
    free = [(c, s) for c in hot for s in sorted(sites, key=lambda s: load[s])
            if (c, s) in n.bytes and (c, s) not in division and n.bytes[c, s] <= room[s] and load[s] < load[busiest]]
    return free[:6]
