"""Placements of random problems: how far from the best they are known to be, with the solver and without its search.

    python -m benchmarks.placing --seeds 10

The bound is the solver's: no placement answers more tokens, none of the same checkpoints has a less busy busiest device.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence

from benchmarks.chaos.report import machine
from benchmarks.engines.report import table
from symposia_worker.placing.problem import Demand, Problem, Site
from symposia_worker.placing.solution import Plan
from symposia_worker.placing.solving import solved

#: checkpoints on pools
SIZES = ((12, 3), (24, 4), (60, 6), (512, 4))
#: what all devices hold together, of what all checkpoints take
ROOMS = (0.6, 1.1, 2.0)


def drawn(seed: int, checkpoints: int, pools: int, room: float) -> Problem:
    """Sizes of the catalogue's range, traffic by a Pareto law of exponent 1.1, devices that differ by a factor of two to three."""
    dice = random.Random(f"{seed}:{checkpoints}:{pools}:{room}")
    demands = tuple(Demand(checkpoint=f"c{k}", params_b=dice.choice([0.1, 0.3, 0.5, 1, 1.5, 3, 7]),
                           traffic=10 * dice.paretovariate(1.1) if dice.random() < 0.9 else 0.0) for k in range(checkpoints))
    total = sum(d.params_b * 4.6e9 for d in demands)
    return Problem(demands=demands, sites=tuple(
        Site(pool=f"p{k}", device=f"cpu:{k}", memory_bytes=int(total * room / pools * dice.uniform(0.7, 1.3)), speed=dice.uniform(50, 150))
        for k in range(pools)))


def row(label: str, plans: Sequence[Plan], greedy: Sequence[Plan]) -> list[str]:
    """Gaps in per cent, median and largest; seconds."""
    def told(gaps: Sequence[float]) -> str:
        return f"{100 * statistics.median(gaps):.1f} / {100 * max(gaps):.1f}"

    return [label, told([p.served_gap for p in plans]), told([p.peak_gap for p in plans]), told([p.served_gap for p in greedy]),
            told([p.peak_gap for p in greedy]), f"{statistics.median(p.seconds for p in plans):.1f} / {max(p.seconds for p in plans):.1f}"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--largest", type=int, default=SIZES[-1][0], help="checkpoints of the largest problems")
    given = parser.parse_args()
    rows = []
    for checkpoints, pools in (size for size in SIZES if size[0] <= given.largest):
        for room in ROOMS:
            problems = [drawn(seed, checkpoints, pools, room) for seed in range(given.seeds)]
            rows.append(row(f"{checkpoints} on {pools}, room {room}", [solved(p, time_limit_s=given.time_limit) for p in problems],
                            [solved(p, search=False) for p in problems]))
    print(f"{machine()}; {given.seeds} problems a row, {given.time_limit:.0f} s at most; median / largest\n")
    print(table(["checkpoints", "served, % off", "peak, % off", "greedy: served, % off", "greedy: peak, % off", "seconds"], rows))


if __name__ == "__main__":
    main()
