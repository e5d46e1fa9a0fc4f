"""A problem solved in two steps: first what is to be resident, then where, with copies of what is hot.

First the tokens that resident checkpoints answer are made as many as fit. Among the placements of those checkpoints, the one is
taken whose busiest device has the least load; ties go to fewer copies, then to fewer moves. Both steps are mixed-integer
programs that HiGHS solves (Huangfu and Hall 2018, Math. Prog. Comp. 10); where a greedy placement is within ``ENOUGH`` of the
relaxation's bound the search is spared, and where it finds nothing in time the greedy placement stands, its distance told.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from symposia_worker.placing import greedy, programs
from symposia_worker.placing.problem import Problem
from symposia_worker.placing.programs import Numbers, Pair
from symposia_worker.placing.solution import Placed, Plan

#: a greedy placement this near to the bound is not searched further
ENOUGH = 0.01


@dataclass(frozen=True, slots=True)
class _Step:
    pairs: Sequence[Pair]
    reached: float
    bound: float
    by: str


def solved(problem: Problem, *, time_limit_s: float = 20.0, search: bool = True) -> Plan:
    """The placement, found within about ``time_limit_s`` seconds. ``search`` False: the greedy one, with the relaxations' bounds."""
    began = time.monotonic()
    n = Numbers.of(problem)
    first = _choice(n, time_limit_s=time_limit_s / 2 if search else 0.0)
    chosen = {c for c, _ in first.pairs}
    if not chosen:
        return Plan(placed=(), left_out=tuple(d.checkpoint for d in problem.demands), served=0.0, served_bound=first.bound, peak=0.0, peak_bound=0.0,
                    by=first.by, seconds=time.monotonic() - began)
    left_s = max(1.0, time_limit_s - (time.monotonic() - began))
    second = _spread(n, chosen, first.pairs, time_limit_s=left_s if search else 0.0)
    division, peak = programs.shares(n, second.pairs)
    placed = tuple(_placed(problem, n, pair, division[pair]) for pair in sorted(second.pairs, key=lambda p: (p[1], p[0])))
    return Plan(placed=placed, left_out=tuple(d.checkpoint for c, d in enumerate(problem.demands) if c not in chosen), served=first.reached,
                served_bound=first.bound, peak=peak, peak_bound=second.bound, by=max(first.by, second.by), seconds=time.monotonic() - began)


def _choice(n: Numbers, *, time_limit_s: float) -> _Step:
    packing = greedy.choice(n)
    reached = _worth(n, packing)
    bound = min(1.0, -programs.choose(n, time_limit_s=0.0).bound)
    if not time_limit_s or reached >= bound * (1 - ENOUGH):
        return _Step(packing, reached, max(bound, reached), "greedy")
    found = programs.choose(n, time_limit_s=time_limit_s)
    bound = min(bound, -found.bound)
    if found.x is None:
        return _Step(packing, reached, bound, "greedy")
    taken = [c for c in range(len(n.copies)) if found.x[len(n.pairs) + c] > 0.5]
    searched = _fewest(n, [p for k, p in enumerate(n.pairs) if found.x[k] > 0.5 and p[0] in set(taken)])
    if _worth(n, searched) <= reached:
        return _Step(packing, reached, max(bound, reached), "greedy")
    return _Step(searched, _worth(n, searched), max(bound, _worth(n, searched)), "solver")


def _spread(n: Numbers, chosen: Collection[int], packing: Sequence[Pair], *, time_limit_s: float) -> _Step:
    held = greedy.spread(n, chosen, packing)
    peak = programs.shares(n, held)[1]
    unit = programs.ideal(n, chosen)
    bound = max(unit, _peak_bound(n, chosen, 0.0).bound)
    if not time_limit_s or peak <= bound * (1 + ENOUGH):
        return _Step(held, peak, min(bound, peak), "greedy")
    found = _peak_bound(n, chosen, time_limit_s)
    bound = max(bound, found.bound)
    if found.pairs and (searched := programs.shares(n, found.pairs)[1]) < peak:
        return _Step(found.pairs, searched, min(bound, searched), "solver")
    return _Step(held, peak, min(bound, peak), "greedy")


def _peak_bound(n: Numbers, chosen: Collection[int], time_limit_s: float) -> _Step:
    """The program's placement and the bound it proves of the peak alone: its costs of copies and moves, at their most, are taken off."""
    found = programs.spread(n, chosen, time_limit_s=time_limit_s)
    pairs = [p for p in n.pairs if p[0] in chosen]
    most = programs.COPY_COST + programs.MOVE_COST
    bound = max(0.0, found.bound - most) * programs.ideal(n, chosen)
    held = [p for k, p in enumerate(pairs) if found.x is not None and found.x[k] > 0.5]
    return _Step(held, 0.0, bound, "solver")


def _fewest(n: Numbers, pairs: Sequence[Pair]) -> list[Pair]:
    """No more copies of each than it must have: the second step adds those that are worth it."""
    kept: list[Pair] = []
    for c, s in pairs:
        if sum(k == c for k, _ in kept) < n.copies[c]:
            kept.append((c, s))
    return kept


def _worth(n: Numbers, pairs: Sequence[Pair]) -> float:
    return sum(n.value[c] for c in {c for c, _ in pairs})


def _placed(problem: Problem, n: Numbers, pair: Pair, share: float) -> Placed:
    demand, site = problem.demands[pair[0]], problem.sites[pair[1]]
    return Placed(checkpoint=demand.checkpoint, pool=site.pool, bytes=n.bytes[pair], precision=demand.on(site), share=min(1.0, max(0.0, share)),
                  load=max(0.0, n.load(pair, share)))
