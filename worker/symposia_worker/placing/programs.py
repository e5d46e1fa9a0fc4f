"""The two mixed-integer programs of a placement, as HiGHS takes them (through scipy), and their relaxations, which bound them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array

from symposia_worker.placing.problem import Problem

#: a copy counts as so much of the least possible peak load where it fills all memory, and a move likewise: ties are broken by it
COPY_COST, MOVE_COST = 0.01, 0.005
#: HiGHS stops where it has proved that no placement is better by more than this share
REL_GAP = 0.01

Pair = tuple[int, int]
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A problem in numbers: ``pairs`` are the (checkpoint, site) that may be."""

    pairs: tuple[Pair, ...]
    bytes: dict[Pair, int]
    memory: tuple[int, ...]
    copies: tuple[int, ...]
    #: what having a checkpoint resident is worth; all together 1
    value: tuple[float, ...]
    #: seconds a second each checkpoint takes of a site of speed 1
    work: tuple[float, ...]
    speed: tuple[float, ...]
    held: frozenset[Pair]

    @classmethod
    def of(cls, problem: Problem) -> Numbers:
        """Where nothing is asked of any checkpoint, all count as asked alike."""
        demands, sites = problem.demands, problem.sites
        traffic = [d.traffic for d in demands]
        if not any(traffic):
            traffic = [1.0] * len(demands)
        worth = [t + 1e-3 * sum(traffic) / len(traffic) for t in traffic]
        pairs = tuple((c, s) for c, d in enumerate(demands) for s, site in enumerate(sites) if d.may(site))
        return cls(
            pairs=pairs, bytes={(c, s): demands[c].bytes_on(sites[s]) for c, s in pairs}, memory=tuple(s.memory_bytes for s in sites),
            copies=tuple(d.copies for d in demands), value=tuple(w / sum(worth) for w in worth),
            work=tuple(t * d.params_b for t, d in zip(traffic, demands, strict=True)), speed=tuple(s.speed or 1.0 for s in sites),
            held=frozenset((c, s) for c, s in pairs if demands[c].checkpoint in sites[s].holds),
        )

    def load(self, pair: Pair, share: float) -> float:
        """What a share of a checkpoint's work makes of a site's time."""
        return share * self.work[pair[0]] / self.speed[pair[1]]


@dataclass(frozen=True, slots=True)
class Solved:
    """What HiGHS found: the variables, or None where it found none in time; and the bound it proved."""

    x: Vector | None
    bound: float


class _Rows:
    """Constraints, row by row."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._at: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, terms: Sequence[tuple[int, float]], low: float, high: float) -> None:
        self._at += [(len(self.low), column, factor) for column, factor in terms]
        self.low.append(low)
        self.high.append(high)

    @property
    def matrix(self) -> coo_array:
        rows, columns, factors = zip(*self._at, strict=True) if self._at else ((), (), ())
        return coo_array((factors, (rows, columns)), shape=(len(self.low), self.columns))


def choose(n: Numbers, *, time_limit_s: float) -> Solved:
    """Which checkpoints are to be resident at all: the most value that fits. Variables: a bit a pair, a bit a checkpoint."""
    pairs, count = len(n.pairs), len(n.copies)
    rows = _memory(n, pairs + count)
    for c in range(count):
        mine = [(k, 1.0) for k, pair in enumerate(n.pairs) if pair[0] == c]
        rows.add([*mine, (pairs + c, -float(n.copies[c]))], 0.0, np.inf)
    cost = np.concatenate([np.full(pairs, 1e-9), -np.array(n.value)])
    return _solved(cost, rows, np.ones(pairs + count), np.ones(pairs + count), time_limit_s=time_limit_s)


def spread(n: Numbers, chosen: Collection[int], *, time_limit_s: float) -> Solved:
    """Where the chosen live: the least load of the busiest site. Variables: a bit a pair, a share a pair, the peak (in ideal peaks)."""
    pairs = [pair for pair in n.pairs if pair[0] in chosen]
    m = len(pairs)
    unit = ideal(n, chosen)
    rows = _memory(n, 2 * m + 1, pairs)
    for c in sorted(chosen):
        mine = [k for k, pair in enumerate(pairs) if pair[0] == c]
        rows.add([(k, 1.0) for k in mine], float(n.copies[c]), np.inf)
        rows.add([(m + k, 1.0) for k in mine], 1.0, 1.0)
    for k in range(m):
        rows.add([(m + k, 1.0), (k, -1.0)], -np.inf, 0.0)
    for s in range(len(n.memory)):
        rows.add([(2 * m, 1.0), *((m + k, -n.load(pair, 1.0) / unit) for k, pair in enumerate(pairs) if pair[1] == s)], 0.0, np.inf)
    total = float(sum(n.memory))
    cost = np.zeros(2 * m + 1)
    cost[:m] = [n.bytes[p] / total * (COPY_COST + (0.0 if p in n.held else MOVE_COST)) for p in pairs]
    cost[2 * m] = 1.0
    upper = np.ones(2 * m + 1)
    upper[2 * m] = np.inf
    return _solved(cost, rows, np.concatenate([np.ones(m), np.zeros(m + 1)]), upper, time_limit_s=time_limit_s)


def shares(n: Numbers, held: Sequence[Pair]) -> tuple[dict[Pair, float], float]:
    """How the copies' work is best divided, and the peak that leaves: a linear program, solved exactly."""
    m, unit = len(held), ideal(n, {c for c, _ in held})
    rows = _Rows(m + 1)
    for c in sorted({c for c, _ in held}):
        rows.add([(k, 1.0) for k, pair in enumerate(held) if pair[0] == c], 1.0, 1.0)
    equal = rows.matrix, np.ones(len(rows.low))
    under = _Rows(m + 1)
    for s in range(len(n.memory)):
        under.add([(m, -1.0), *((k, n.load(pair, 1.0) / unit) for k, pair in enumerate(held) if pair[1] == s)], -np.inf, 0.0)
    cost = np.zeros(m + 1)
    cost[m] = 1.0
    found = linprog(cost, A_ub=under.matrix, b_ub=np.zeros(len(under.low)), A_eq=equal[0], b_eq=equal[1], bounds=(0, None), method="highs")
    return {pair: float(found.x[k]) for k, pair in enumerate(held)}, float(found.x[m]) * unit


def ideal(n: Numbers, chosen: Collection[int]) -> float:
    """The peak if all work could be divided at will over all sites: no placement has less."""
    return max(sum(n.work[c] for c in chosen) / sum(n.speed), 1e-12)


def _memory(n: Numbers, columns: int, pairs: Sequence[Pair] | None = None) -> _Rows:
    rows = _Rows(columns)
    for s, memory in enumerate(n.memory):
        mine = [(k, n.bytes[pair] / memory) for k, pair in enumerate(n.pairs if pairs is None else pairs) if pair[1] == s]
        rows.add(mine, -np.inf, 1.0)
    return rows


def _solved(cost: Vector, rows: _Rows, whole: Vector, upper: Vector, *, time_limit_s: float) -> Solved:
    """``time_limit_s`` 0: the relaxation, whose optimum bounds the program."""
    found = milp(cost, integrality=whole if time_limit_s else np.zeros_like(whole), bounds=Bounds(np.zeros_like(upper), upper),
                 constraints=LinearConstraint(rows.matrix, rows.low, rows.high), options={"time_limit": time_limit_s or 60.0, "mip_rel_gap": REL_GAP})
    if found.x is None:
        return Solved(None, -np.inf if time_limit_s or found.status != 2 else np.inf)
    bound = found.mip_dual_bound if time_limit_s and found.mip_dual_bound is not None else found.fun
    return Solved(np.asarray(found.x), float(bound))
