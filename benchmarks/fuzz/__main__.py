"""``python -m benchmarks.fuzz``: every target for its share of the time; 1 where one broke."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from benchmarks.fuzz.run import found, run
from benchmarks.fuzz.targets import targets


def main() -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="where each begins; the next batch of examples goes on from the next number")
    parser.add_argument("--only", default="", help="targets whose name has this in it")
    asked = parser.parse_args()
    chosen = [t for t in targets() if asked.only in t.name]
    broken = 0
    for target in chosen:
        counted, error = run(target, seconds=asked.minutes * 60 / len(chosen), seed=asked.seed)
        print(f"{target.name:<24} {counted.examples:>8} examples, {counted.accepted:>7} accepted{'' if error is None else '  BROKEN'}", flush=True)
        if error is not None:
            broken += 1
            print("".join(traceback.format_exception(error)[-6:]) + found(error), flush=True)
    print(f"{broken} of {len(chosen)} targets broke; {time.strftime('%Y-%m-%d')}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
