"""Does memory come back? One tiny checkpoint is loaded, asked and unloaded again and again in one engine process: ``python -m benchmarks.cycles``.

Printed: the engine process's resident set after every tenth of the cycles, after the first of which the drift counts (the first loads fill
caches of the libraries), threads and open files, and how long a cycle took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the maker of tiny checkpoints is the tests'

from benchmarks.engines import machine  # noqa: E402
from benchmarks.engines.report import table  # noqa: E402
from forms import exported  # noqa: E402
from symposia_shared.prompts import Sampling, user  # noqa: E402
from symposia_shared.turns import Abstention, Completion, Turn  # noqa: E402
from symposia_worker.engines.client import EngineProcess  # noqa: E402
from tiny import tiny_checkpoint  # noqa: E402

#: loads before the resident set is first read
WARM = 50


@dataclass(frozen=True, slots=True)
class Reading:
    """The engine process after so many cycles. ``rss`` and ``anonymous``: bytes."""

    cycles: int
    rss: int
    anonymous: int
    threads: int
    files: int


def read(process: psutil.Process, cycles: int) -> Reading:
    """What it holds now."""
    memory = process.memory_full_info()
    return Reading(cycles, memory.rss, memory.uss, process.num_threads(), process.num_fds())


def cycle(engine: EngineProcess, checkpoint: str, folder: Path, *, engine_name: str) -> None:
    """Load, ask for two tokens, unload. Raises RuntimeError where it did not answer."""
    engine.load(checkpoint, str(folder), engine=engine_name)
    over, replies = threading.Event(), list[Completion | Abstention]()

    def done(reply: Completion | Abstention) -> None:
        replies.append(reply)
        over.set()

    turn = Turn(member="m", model=checkpoint, messages=user("the quick brown fox"), sampling=Sampling(max_tokens=2))
    engine.generate(f"{checkpoint} {time.monotonic_ns()}", turn, None, done)
    if not over.wait(60) or isinstance(replies[0], Abstention):
        raise RuntimeError(f"{checkpoint} did not answer: {replies}")
    engine.unload(checkpoint)


def measure(folder: Path, *, cycles: int, engine_name: str, say: Callable[[str], None]) -> list[Reading]:
    """``cycles`` cycles; the readings after the warm ones, and after each tenth."""
    engine = EngineProcess("cpu", 1 << 30, threads=1, start_within_s=300.0)
    process = psutil.Process(engine.start())
    try:
        readings, begun = [], time.monotonic()
        for n in range(-WARM, cycles + 1):
            if n >= 0 and n % max(1, cycles // 10) == 0:
                readings.append(read(process, n))
                say(f"{n} cycles, {time.monotonic() - begun:.0f} s: {readings[-1].rss / 1e6:.1f} MB, anonymous {readings[-1].anonymous / 1e6:.1f} MB")
            cycle(engine, "tiny", folder, engine_name=engine_name)
        return readings
    finally:
        engine.stop()


def made(folder: Path, engine_name: str) -> Path:
    """The tiny checkpoint, in the form the engine takes."""
    if engine_name == "openvino":
        return exported(folder, "llama") / "exact"
    return tiny_checkpoint(folder / "plain", "llama")


def report(readings: list[Reading], engine_name: str, seconds: float) -> str:
    """The table."""
    rows = [[f"{r.cycles:,}", f"{r.rss / 1e6:.1f}", f"{r.anonymous / 1e6:.1f}", str(r.threads), str(r.files)] for r in readings]
    first, last = readings[0], readings[-1]
    slope = statistics.linear_regression([r.cycles for r in readings], [r.rss / 1e6 for r in readings]).slope if len(readings) > 1 else 0.0
    return (table([f"{engine_name}: cycles", "resident set, MB", "its own, MB", "threads", "open files"], rows)
            + f"\n\nDrift over {last.cycles:,} cycles: {(last.rss - first.rss) / 1e6:+.1f} MB (slope {slope * 1000:+.2f} MB per 1,000); "
              f"{seconds / max(1, last.cycles + WARM) * 1e3:.0f} ms a cycle.")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--engine", choices=("torch", "openvino"), default="torch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = made(Path(scratch), given.engine)
        begun = time.monotonic()
        readings = measure(folder, cycles=given.cycles, engine_name=given.engine, say=lambda line: print(line, file=sys.stderr, flush=True))
        seconds = time.monotonic() - begun
    print("; ".join(f"{k}: {v}" for k, v in machine.described().items()) + f"; {os.cpu_count()} cores, one used\n\n"
          + report(readings, given.engine, seconds))


if __name__ == "__main__":
    main()
