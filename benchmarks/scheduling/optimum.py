"""The fewest loads with which every turn of a trace can be served in time: a mixed-integer program, solved by HiGHS (Huangfu and Hall 2018).

Each checkpoint is one unit of flow through time. In a slot it is resident or away; away it is of the class of the first turn that came after
it was evicted, at slot ``a``, and must be resident again no later than ``a + longest wait``. Loads are the arcs from away to resident. What
couples the checkpoints: sizes of the residents ≤ budget, and one load a slot. (By slots and coverings alone, ``Σ x over the window ≥ 1``,
the relaxation is worth nothing: a checkpoint may be resident by 1/(W + 1) all the time.)

The time that serving takes is left out, so it is a bound from below for any policy of the simulator, and the optimum where serving is quick.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from benchmarks.scheduling.simulator import Device
from benchmarks.scheduling.traces import Trace


@dataclass(frozen=True, slots=True)
class Optimum:
    """What the solver found. ``bound``: no schedule has fewer loads; ``loads``: one that has so many exists (None: it found none)."""

    bound: int
    loads: int | None

    @property
    def closed(self) -> bool:
        """Whether both are one."""
        return self.loads == self.bound


@dataclass(slots=True)
class _Program:
    """Variables in [0, 1], and rows ``low ≤ Σ coefficient × variable ≤ high``."""

    cost: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    at: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def variable(self, *, cost: float = 0.0, whole: bool = False) -> int:
        self.cost.append(cost)
        self.whole.append(int(whole))
        return len(self.cost) - 1

    def row(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        self.at += [(len(self.low), v, c) for v, c in terms]
        self.low.append(low)
        self.high.append(high)


def optimum(trace: Trace, device: Device, *, within_s: float) -> Optimum:
    """The fewest loads, or a bound on them where the solver does not close within ``within_s``."""
    slots, program = len(trace) + device.longest_wait, _Program()
    resident, loads = [], defaultdict[int, list[int]](list)
    for n in range(len(device.sizes)):
        arrivals = [t for t, asked in enumerate(trace) if n in asked]
        if arrivals:
            here, arcs = _flow(program, arrivals, slots, device.longest_wait)
            resident.append((device.sizes[n], here))
            for t, arc in arcs:
                loads[t].append(arc)
    for t in range(slots):
        program.row([(here[t], float(size)) for size, here in resident], 0.0, float(device.budget))
        program.row([(arc, 1.0) for arc in loads[t]], 0.0, 1.0)
    return _solved(program, within_s)


def _flow(program: _Program, arrivals: list[int], slots: int, longest_wait: int) -> tuple[list[int], list[tuple[int, int]]]:
    """One checkpoint's flow. Returns its variables "resident in slot t", and (t, load arc) pairs."""
    here = [program.variable(whole=True) for _ in range(slots)]
    stays, leaves = [program.variable() for _ in range(slots)], [program.variable() for _ in range(slots)]
    loads, into = list[tuple[int, int]](), defaultdict[int, list[tuple[int, float]]](list)
    for t in range(slots):
        program.row([(here[t], 1.0), (stays[t], -1.0), (leaves[t], -1.0)], 0.0, 0.0)
        if t + 1 < slots:
            into[t + 1].append((stays[t], 1.0))
    begin = -1
    for a in arrivals:  # away since an evict after one of the slots begin..a-1, or since before the first slot
        waits: int | None = None
        for t in range(begin + 1, a + longest_wait + 1):  # the slot in which it may be loaded, or go on being away
            load = program.variable(cost=1.0)
            loads.append((t, load))
            into[t].append((load, 1.0))
            terms = [(load, -1.0)] + ([(waits, 1.0)] if waits is not None else [])
            if begin <= t - 1 < a and t >= 1:
                terms.append((leaves[t - 1], 1.0))
            waits = program.variable() if t < a + longest_wait else None
            program.row(terms + ([(waits, -1.0)] if waits is not None else []), *_source(t, begin))
        begin = a
    for t in range(slots):
        program.row([(here[t], -1.0), *into[t]], 0.0, 0.0)
    return here, loads


def _source(t: int, begin: int) -> tuple[float, float]:
    """One unit enters before the first slot, away."""
    entering = -1.0 if t == 0 and begin == -1 else 0.0
    return entering, entering


def _solved(program: _Program, within_s: float) -> Optimum:
    rows, columns, values = (list(x) for x in zip(*program.at, strict=True))
    matrix = coo_array((values, (rows, columns)), shape=(len(program.low), len(program.cost))).tocsr()
    found = milp(np.array(program.cost), constraints=LinearConstraint(matrix, np.array(program.low), np.array(program.high)),
                 integrality=np.array(program.whole), bounds=Bounds(0, 1), options={"time_limit": within_s})
    bound = 0 if found.mip_dual_bound is None else int(np.ceil(found.mip_dual_bound - 1e-6))
    return Optimum(bound=bound, loads=None if found.x is None else round(found.fun))
