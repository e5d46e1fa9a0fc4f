"""``python -m benchmarks.chaos``: run the legs, print what was found, exit 1 where a promise was broken."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.chaos import legs
from benchmarks.chaos.killer import ROLES
from benchmarks.chaos.power import compiler
from benchmarks.chaos.real import real
from benchmarks.chaos.report import Leg, machine, shown
from benchmarks.chaos.soak import soak


def flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="draws jobs, victims and moments")
    parser.add_argument("--jobs", type=int, default=5000, help="jobs of the leg of kills, at least")
    parser.add_argument("--kills", type=int, default=200, help="kill -9s of that leg, at least; 0: leave it out")
    parser.add_argument("--gap", type=float, default=1.5, help="mean seconds between two kills")
    parser.add_argument("--roles", default=",".join(ROLES), help="whom to kill")
    parser.add_argument("--stopped", type=float, default=0.0, help="seconds for which a tenth of the victims is stopped (SIGSTOP) in place of killed")
    parser.add_argument("--real-jobs", type=int, default=100, help="jobs of a real small model, at least; 0: leave that leg out")
    parser.add_argument("--real-kills", type=int, default=20, help="kill -9s of that leg, at least")
    parser.add_argument("--real-gap", type=float, default=12.0, help="mean seconds between two of them; a pool takes seconds to load its model")
    parser.add_argument("--power-cuts", type=int, default=20, help="simulated power cuts of the broker; 0: leave them out")
    parser.add_argument("--power-jobs", type=int, default=400, help="jobs of that leg, at least")
    parser.add_argument("--appendfsync", choices=("always", "everysec", "no"), default="always", help="of the broker that loses its power")
    parser.add_argument("--rolls", type=int, default=1, help="rolling restarts under load; 0: leave them out")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="this leg alone: a steady load and gentle faults for so long")
    parser.add_argument("--rate", type=float, default=1.2, help="jobs a second of the soak")
    parser.add_argument("--soak-gap", type=float, default=30.0, help="mean seconds between two faults of the soak")
    parser.add_argument("--in-flight", type=int, default=48, help="jobs in flight at once")
    parser.add_argument("--longest", type=float, default=1e9, help="seconds after which a leg submits no more, whatever it has reached")
    parser.add_argument("--json", type=Path, help="write the facts there")
    parser.add_argument("--keep", type=Path, help="a folder for the stacks, which is kept; default: a temporary one")
    return parser.parse_args()


def main() -> int:
    """Run all legs; 1 where any found a violation."""
    asked = flags()
    print(machine(), flush=True)
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = _legs(asked, folder)
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine(), "command": sys.argv[1:], "legs": [leg.facts for leg in found]}, indent=1))
    return 1 if any(leg.broken for leg in found) else 0


def _legs(asked: argparse.Namespace, folder: Path) -> list[Leg]:
    if asked.soak:
        return [_said(soak(folder / "soak", seed=asked.seed, minutes=asked.soak, rate=asked.rate, gap_s=asked.soak_gap,
                           stopped_s=asked.stopped or 3.0, in_flight=asked.in_flight))]
    found = []
    if asked.kills:
        found.append(_said(legs.kills(folder / "kills", seed=asked.seed, jobs=asked.jobs, most=asked.kills, gap_s=asked.gap, in_flight=asked.in_flight,
                                      roles=tuple(asked.roles.split(",")), stopped_s=asked.stopped, longest_s=asked.longest)))
    if asked.real_jobs:
        found.append(_said(real(folder / "real", seed=asked.seed, jobs=asked.real_jobs, most=asked.real_kills, gap_s=asked.real_gap,
                                in_flight=min(asked.in_flight, 16), more=legs.more, longest_s=asked.longest)))
    if asked.power_cuts and compiler() is None:
        print("power cuts: left out, there is no C compiler to make the shim with (install gcc)", flush=True)
    elif asked.power_cuts:
        found.append(_said(legs.power_cuts(folder / "power", seed=asked.seed, jobs=asked.power_jobs, most=asked.power_cuts, gap_s=2 * asked.gap,
                                           in_flight=asked.in_flight, appendfsync=asked.appendfsync, longest_s=asked.longest)))
    if asked.rolls:
        found.append(_said(legs.rolling(folder / "rolling", seed=asked.seed, times=asked.rolls, in_flight=asked.in_flight)))
    return found


def _said(leg: Leg) -> Leg:
    print(shown(leg), flush=True)
    return leg


if __name__ == "__main__":
    sys.exit(main())
