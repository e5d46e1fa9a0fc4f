"""A placement without the solver's search: dense ones first, the busiest placed on the least loaded site, the hot ones copied.

It is what a plan falls back to where the solver found nothing in time, and what spares the search where it is already good.
The order is Graham's longest-processing-time rule (Graham 1969, SIAM J. Appl. Math. 17(2)) under memory limits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from symposia_worker.placing.programs import Numbers, Pair, shares

#: copies are tried so often at most, and kept where the peak falls by this share
COPY_TRIES, COPY_GAIN = 48, 0.005
#: moves and exchanges at most
EASE_TRIES = 64


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
    return _copied(n, _eased(n, list(packing) if held is None else held))


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


def _eased(n: Numbers, held: list[Pair]) -> list[Pair]:
    """Moves off the busiest site, and exchanges with less busy ones, as long as they make it less busy."""
    for _ in range(EASE_TRIES):
        better = _exchange(n, held)
        if better is None:
            break
        held = better
    return held


def _exchange(n: Numbers, held: list[Pair]) -> list[Pair] | None:
    sites, here = range(len(n.memory)), set(held)
    load = [sum(n.load(p, 1 / n.copies[p[0]]) for p in held if p[1] == s) for s in sites]
    room = [n.memory[s] - sum(n.bytes[p] for p in held if p[1] == s) for s in sites]
    top = max(sites, key=lambda s: load[s])

    def part(c: int, s: int) -> float:
        return n.load((c, s), 1 / n.copies[c])

    best, least = None, load[top] * (1 - COPY_GAIN)
    for c in (p[0] for p in held if p[1] == top):
        for s in sites:
            if s == top or (c, s) not in n.bytes or (c, s) in here:
                continue
            for other in (None, *(p[0] for p in held if p[1] == s)):
                back = 0 if other is None else n.bytes.get((other, top), -1)
                if back < 0 or (other is not None and (other, top) in here):
                    continue
                given = 0 if other is None else n.bytes[other, s]
                if n.bytes[c, s] > room[s] + given or back > room[top] + n.bytes[c, top]:
                    continue
                there = load[s] + part(c, s) - (0.0 if other is None else part(other, s))
                left = load[top] - part(c, top) + (0.0 if other is None else part(other, top))
                if max(there, left) < least:
                    least = max(there, left)
                    best = [(c, s) if p == (c, top) else (other, top) if other is not None and p == (other, s) else p for p in held]
    return best


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
