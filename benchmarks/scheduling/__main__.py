"""The residency policy beside published ones and the optimum, on seeded traces: ``python -m benchmarks.scheduling``.

Loads are summed over the seeds. The optimum is a solver's; where it does not close within ``--within`` seconds its proven bound is taken,
which is no more, so that a ratio can only look worse than it is. Belady sees the future and the optimum does, too; the others do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.engines.figures import percentile
from benchmarks.engines.report import table
from benchmarks.scheduling.optimum import Optimum, optimum
from benchmarks.scheduling.rivals import FIFO, LFU, LRU, Belady, Told
from benchmarks.scheduling.simulator import Device, Policy, run
from benchmarks.scheduling.traces import TRACES, Rates, Trace
from symposia_shared.residency import SwapAware


def policies(device: Device, patience: float) -> dict[str, Callable[[Rates], Policy]]:
    """Each made anew for each trace, whose rates none but one is told. A wait of W slots ends with the load in the last of them."""
    longest = device.longest_wait + device.load
    return {
        "first-in-first-out": lambda _: FIFO(), "FIFO, lookahead 8": lambda _: FIFO(8), "LRU": lambda _: LRU(), "LFU": lambda _: LFU(),
        "Belady": lambda _: Belady(), f"ours, patience {patience:.0f}": lambda _: SwapAware(longest_wait_s=longest, patience_s=patience, tick_s=1.0),
        "ours": lambda _: SwapAware(longest_wait_s=longest, tick_s=1.0),
        "ours, told the present rates": lambda rates: Told(SwapAware(longest_wait_s=longest, tick_s=1.0), rates),
    }


def best(kept: Path | None, key: str, trace: Trace, device: Device, within_s: float) -> Optimum:
    """The optimum, or what an earlier run found of it."""
    known = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    if key not in known:
        found = optimum(trace, device, within_s=within_s)
        known[key] = [found.bound, found.loads]
        print(f"{key}: at least {found.bound} loads" + (", and no more" if found.closed else "; not closed"), file=sys.stderr, flush=True)
        if kept is not None:
            kept.write_text(json.dumps(known))
    return Optimum(*known[key])


def measure(device: Device, *, kinds: Sequence[str], slots: int, rate: float, seeds: int, within_s: float, patience: float, kept: Path | None) -> str:
    """The table."""
    makers = policies(device, patience)
    loads, waits = {name: [""] * len(kinds) for name in makers}, {name: [0.0] for name in makers}
    bounds = []
    for column, name in enumerate(kinds):
        asked = [(seed, len(device.sizes), slots, rate) for seed in range(1 if name == "round-robin" else seeds)]
        traces, rates = [TRACES[name].trace(*one) for one in asked], [TRACES[name].rates(*one) for one in asked]
        settings = f"{name} {len(device.sizes)} {device.budget} {device.longest_wait} {slots} {rate}"
        found = [best(kept, f"{settings} {seed}", trace, device, within_s) for seed, trace in enumerate(traces)]
        bound = sum(o.bound for o in found)
        bounds.append(f"{bound}" + ("" if all(o.closed for o in found) else f" ({sum(not o.closed for o in found)} not closed)"))
        for policy, maker in makers.items():
            outcomes = [run(maker(told), trace, device) for told, trace in zip(rates, traces, strict=True)]
            total = sum(o.loads for o in outcomes)
            loads[policy][column] = f"{total} ({total / bound:.2f} ×)"
            waits[policy] += [float(w) for o in outcomes for w in o.waits]
    rows = [[name, *loads[name], f"{percentile(waits[name], 0.95):.0f}", f"{max(waits[name]):.0f}"] for name in makers]
    head = ["loads (× the optimum)", *kinds, "wait p95", "wait max"]
    return table(head, [*rows, ["the optimum", *bounds, "", str(device.longest_wait)]])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", action="append", choices=list(TRACES), help="may be given again; default: all")
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--budget", type=int, default=4, help="checkpoints a device holds")
    parser.add_argument("--longest-wait", type=int, default=30, help="slots")
    parser.add_argument("--slots", type=int, default=300)
    parser.add_argument("--rate", type=float, default=4.0, help="turns a slot")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=5.0, help="of the policy's second row, in slots")
    parser.add_argument("--within", type=float, default=120.0, help="seconds the solver has for a trace")
    parser.add_argument("--optima", type=Path, help="a file in which the solver's answers are kept between runs")
    given = parser.parse_args()
    device = Device(sizes=(1,) * given.checkpoints, budget=given.budget, longest_wait=given.longest_wait)
    print(f"{given.checkpoints} checkpoints, a device for {given.budget}, {given.slots} slots of {given.rate:.0f} turns, {given.seeds} seeds (of "
          f"round-robin one), waits in slots\n")
    kinds = given.trace or list(TRACES)
    print(measure(device, kinds=kinds, slots=given.slots, rate=given.rate, seeds=given.seeds, within_s=given.within, patience=given.patience,
                  kept=given.optima))


if __name__ == "__main__":
    main()
