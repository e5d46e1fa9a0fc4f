"""``python -m benchmarks.batches``: one leg on a stack of its own; prints facts as JSON, exits 1 where a promise was broken."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.batches import legs
from benchmarks.chaos.report import machine


def main() -> int:
    """Run the leg that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches", description=__doc__)
    leg = parser.add_subparsers(dest="leg", required=True)
    accept = leg.add_parser("accept", help="a large file accepted and validated: seconds, and memory at most")
    accept.add_argument("--lines", type=int, default=50_000)
    accept.add_argument("--bytes", type=int, default=200_000_000)
    many = leg.add_parser("lines", help="lines on test/echo, one in a hundred broken; give several counts to compare them")
    many.add_argument("--lines", type=int, nargs="+", default=[5_000, 50_000])
    kills = leg.add_parser("kills", help="mixed collaborations through kills of pool, coordinator, API and Redis")
    kills.add_argument("--lines", type=int, default=1_000)
    kills.add_argument("--kills", type=int, default=20)
    kills.add_argument("--gap", type=float, default=4.0, help="mean seconds between two kills")
    kills.add_argument("--seed", type=int, default=1)
    real = leg.add_parser("real", help="a file of batch lines on a real model, killed and gone on with")
    real.add_argument("file", type=Path)
    real.add_argument("--model", default="smollm2-135m")
    real.add_argument("--kills", type=int, default=2)
    real.add_argument("--seed", type=int, default=1)
    real.add_argument("--max-tokens", type=int, help="lower each line's limit to this")
    asked = parser.parse_args()
    broken = False
    for number, run in enumerate(_runs(asked)):
        folder = Path(tempfile.mkdtemp(prefix=f"batches-{number}-"))
        try:
            facts = run(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({"leg": asked.leg, "machine": machine(), **facts}), flush=True)
        broken = broken or bool(facts.get("violations"))
    return 1 if broken else 0


def _runs(asked: argparse.Namespace):  # type: ignore[no-untyped-def]
    if asked.leg == "accept":
        return [lambda f: legs.accept(f, lines=asked.lines, size=asked.bytes)]
    if asked.leg == "lines":
        return [lambda f, n=n: legs.many(f, lines=n) for n in asked.lines]
    if asked.leg == "kills":
        return [lambda f: legs.kills(f, lines=asked.lines, most=asked.kills, gap_s=asked.gap, seed=asked.seed)]
    return [lambda f: legs.real(f, asked.file, model=asked.model, most=asked.kills, seed=asked.seed, max_tokens=asked.max_tokens)]


if __name__ == "__main__":
    sys.exit(main())
