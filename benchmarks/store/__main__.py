"""``python -m benchmarks.store``: speed, kills, damages and lists, on a SeaweedFS and a disk of this machine.

Everything runs in one process beside the server, in rotated order; the load average is printed, for on a busy machine only the
ratios mean anything.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the S3 and the maker of small checkpoints are the tests'

from benchmarks.engines.report import table  # noqa: E402
from benchmarks.store import damage, kills, listing, speed  # noqa: E402
from checkpoints import contents, facts, make_checkpoint  # noqa: E402
from s3 import running_s3  # noqa: E402
from symposia_shared.settings import S3Settings  # noqa: E402
from symposia_shared.store import Store  # noqa: E402
from symposia_worker.models.store import ModelStore  # noqa: E402

LEGS = ("speed", "kills", "damage", "list")


def main() -> int:
    """0; 1 where a damaged checkpoint was given out, or a killed download was not right."""
    options = _options()
    print(f"load average {', '.join(f'{x:.1f}' for x in os.getloadavg())}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(dir=options.dir) as place, running_s3(Path(place) / "s3") as s3:
        models = ModelStore(Store(s3))
        legs = {"speed": _speed, "kills": _kills, "damage": _damage, "list": _list}
        wrong = [legs[leg](s3, models, Path(place) / leg, options) for leg in options.legs]
    print(f"load average {', '.join(f'{x:.1f}' for x in os.getloadavg())}", flush=True)
    return int(any(wrong))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("legs", nargs="*", choices=[*LEGS, []], help="default: all")
    parser.add_argument("--mb", type=int, default=512, help="of the checkpoint that is fetched")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--damages", type=int, default=1020)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default=None, help="a folder on the disk that is measured")
    options = parser.parse_args()
    options.legs = options.legs or list(LEGS)
    return options


def _speed(_: S3Settings, models: ModelStore, place: Path, options: argparse.Namespace) -> bool:
    made = make_checkpoint(place / "made", elements=10)
    (made / "model-00002-of-00002.safetensors").unlink()
    large = made / "model-00001-of-00002.safetensors"
    large.write_bytes(make_checkpoint(place / "large", elements=options.mb * 10**6).joinpath(large.name).read_bytes())
    manifest = models.push(made, "lab/speed", facts=facts())
    runs = speed.run_all(models, manifest, large, place / "runs", rounds=options.rounds)
    print(f"\n## Speed: {manifest.size / 1e6:,.0f} MB, {options.rounds} rounds\n")
    print(table(["", "MB/s", "CPU s for a GB", "its time / ours", "from round to round"], speed.rows(runs, manifest.size)), flush=True)
    models.remove("lab/speed")
    return False


def _kills(s3: S3Settings, models: ModelStore, place: Path, options: argparse.Namespace) -> bool:
    manifest = models.push(make_checkpoint(place / "made", elements=options.mb * 10**6 // 2), "lab/killed", facts=facts())
    told = kills.run(s3, manifest, place, kills=options.kills, seed=options.seed)
    again = told.received - told.size
    print(f"\n## {told.kills} kills\n\n{told.size / 1e6:,.1f} MB; S3 sent {told.received / 1e6:,.1f} MB, so {again / 1e6:,.1f} MB again "
          f"({again / told.size:.1%}), {again / 1e6 / max(1, told.kills):,.1f} MB a kill. Kills at {', '.join(f'{a:.0%}' for a in told.at)}. "
          f"{'Every file is right.' if told.intact else 'NOT RIGHT.'}", flush=True)
    models.remove("lab/killed")
    return not told.intact or told.kills < options.kills


def _damage(_: S3Settings, models: ModelStore, place: Path, options: argparse.Namespace) -> bool:
    made = make_checkpoint(place / "one", seed=1)
    manifest = models.push(made, "lab/one", facts=facts())
    other = models.push(make_checkpoint(place / "two", seed=2), "lab/two", facts=facts())
    began = time.perf_counter()
    trials = damage.Trials(models, manifest, other, contents(made), place / "cache", seed=options.seed)
    told = trials.run(options.damages)
    total = damage.summed(told)
    print(f"\n## {total['trials']:,} damages, {time.perf_counter() - began:,.0f} s\n")
    rows = [[kind, str(t.trials), str(t.refused), str(t.mended), str(t.loaded), str(t.other)] for kind, t in told.items()]
    rows.append(["all", *(str(total[name]) for name in ("trials", "refused", "mended", "loaded", "other"))])
    print(table(["damage", "trials", "refused", "right all the same", "**loaded**", "other errors"], rows), flush=True)
    return total["loaded"] + total["other"] > 0


def _list(s3: S3Settings, models: ModelStore, place: Path, options: argparse.Namespace) -> bool:
    manifest = models.push(make_checkpoint(place / "made"), "lab/like", facts=facts())
    rows = []
    for count in (1, 500, 5_000):
        listing.fill(models, manifest, count)
        rows.append(listing.listed(s3, place, count, rounds=options.rounds))
    print("\n## symposia models list\n")
    print(table(["checkpoints", "s, median", "s, longest", "CPU s"], rows), flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
