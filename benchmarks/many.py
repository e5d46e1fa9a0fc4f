"""Many small checkpoints resident in one engine process, and all asked at once: ``python -m benchmarks.many``.

Each is of its own random weights. Printed: how long loading took, memory beside the bytes of weights, tokens a second beside one
checkpoint that is asked the same number of times, and how evenly they were served.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the maker of tiny checkpoints is the tests'

from benchmarks.engines import machine  # noqa: E402
from benchmarks.engines.checkpoint import endless  # noqa: E402
from benchmarks.engines.figures import jain, percentile  # noqa: E402
from benchmarks.engines.report import table  # noqa: E402
from symposia_shared.prompts import Sampling, user  # noqa: E402
from symposia_shared.turns import Abstention, Completion, Turn  # noqa: E402
from symposia_worker.engines.client import EngineProcess  # noqa: E402
from tiny import tiny_checkpoint  # noqa: E402

#: of the checkpoints, in turn
_ARCHITECTURES = ("llama", "qwen2", "phi", "stablelm")
#: so that weights outweigh what any model costs in Python objects
_SIZE = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 6}


@dataclass(frozen=True, slots=True)
class Served:
    """One checkpoint's turn."""

    checkpoint: str
    first_s: float
    last_s: float
    tokens: int


def made(folder: Path, count: int, *, size: dict[str, int] = _SIZE) -> dict[str, Path]:
    """``count`` checkpoints by name, each of its own seed."""
    found = {}
    for n in range(count):
        architecture = _ARCHITECTURES[n % len(_ARCHITECTURES)]
        heads = {} if architecture == "phi" else {"num_key_value_heads": size["num_attention_heads"] // 2}
        name = f"tiny-{n:03}"
        # without an end token: each answer has as many tokens as are asked for
        found[name] = endless(tiny_checkpoint(folder / "made" / name, architecture, seed=n, **size, **heads), folder / name)
    return found


def asked(engine: EngineProcess, checkpoints: Sequence[str], *, tokens: int, within_s: float) -> tuple[list[Served], list[str]]:
    """Ask each entry of ``checkpoints`` once, all at once; what each was served, and what went wrong."""
    began = time.time()
    over = threading.Semaphore(0)
    served: list[Served] = []
    faults: list[str] = []

    def done(name: str, reply: Completion | Abstention) -> None:
        if isinstance(reply, Completion) and reply.timing.first_token_at and reply.timing.last_token_at:
            served.append(Served(name, reply.timing.first_token_at - began, reply.timing.last_token_at - began, reply.usage.completion_tokens))
        else:
            faults.append(f"{name}: {reply.message if isinstance(reply, Abstention) else 'it gave no times'}")
        over.release()

    for n, name in enumerate(checkpoints):
        turn = Turn(member=str(n), model=name, messages=user(f"Checkpoint {n}: the quick brown fox"), sampling=Sampling(max_tokens=tokens))
        engine.generate(f"{name} {n} {began}", turn, None, lambda reply, name=name: done(name, reply))
    for _ in checkpoints:
        if not over.acquire(timeout=within_s):
            faults.append(f"{len(checkpoints) - len(served) - len(faults)} turns did not end within {within_s:.0f} s")
            break
    return served, faults


def measure(folder: Path, *, count: int, tokens: int, rounds: int, threads: int, size: dict[str, int] = _SIZE) -> str:
    """Load, ask, and what was found as a table."""
    checkpoints = made(folder, count, size=size)
    weights = sum(f.stat().st_size for path in checkpoints.values() for f in path.glob("*.safetensors"))
    engine = EngineProcess("cpu", max(1 << 30, 4 * weights), threads=threads, start_within_s=300.0)
    pid = engine.start()
    try:
        first = next(iter(checkpoints.items()))
        engine.load(first[0], str(first[1]))  # imports torch and transformers, which all share
        process = psutil.Process(pid)
        before = process.memory_info().rss
        at = time.monotonic()
        loads = [engine.load(name, str(path)) for name, path in list(checkpoints.items())[1:]]
        load_s = time.monotonic() - at
        after = process.memory_info().rss
        names = list(checkpoints)
        asked(engine, names, tokens=2, within_s=600)
        runs = [(asked(engine, names, tokens=tokens, within_s=1200), asked(engine, names[:1] * count, tokens=tokens, within_s=1200)) for _ in range(rounds)]
        rows = [["checkpoints resident", f"{count} ({', '.join(_ARCHITECTURES)})"], ["bytes of weights", f"{weights / 1e6:,.0f} MB"],
                ["loading the others, self-test included", f"{load_s:.1f} s, {load_s / max(1, len(loads)) * 1e3:.0f} ms each"],
                ["growth of the process's resident set by loading them", f"{(after - before) / 1e6:,.0f} MB"],
                ["resident set after serving all", f"{process.memory_info().rss / 1e6:,.0f} MB"], *served_rows(runs, count)]
        return table(["many checkpoints in one engine process", ""], rows)
    finally:
        engine.stop()


def served_rows(runs: Sequence[tuple[tuple[list[Served], list[str]], tuple[list[Served], list[str]]]], count: int) -> list[list[str]]:
    """Of the median round by rate."""
    (all_, faults), (one, _) = sorted(runs, key=lambda r: rate(r[0][0]))[len(runs) // 2]
    firsts, lasts = [s.first_s for s in all_], [s.last_s for s in all_]
    return [
        ["served, each asked once", f"{len({s.checkpoint for s in all_})} of {count}"],
        ["tokens/s, all checkpoints", f"{rate(all_):.1f}"],
        ["tokens/s, one checkpoint asked as often", f"{rate(one):.1f}"],
        ["first token, p50 / p95 / last", f"{percentile(firsts, 0.5):.2f} / {percentile(firsts, 0.95):.2f} / {max(firsts, default=0):.2f} s"],
        ["finished, first to last", f"{min(lasts, default=0):.2f} to {max(lasts, default=0):.2f} s"],
        ["Jain's index of tokens/s by checkpoint", f"{jain([s.tokens / s.last_s for s in all_]):.3f}"],
        *([["faults", f"{len(faults)}: {faults[0]}"]] if faults else []),
    ]


def rate(served: Sequence[Served]) -> float:
    """Tokens a second from asking to the last answer."""
    return sum(s.tokens for s in served) / max((s.last_s for s in served), default=float("inf"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), count=given.count, tokens=given.tokens, rounds=given.rounds, threads=given.threads)
    print("; ".join(f"{k}: {v}" for k, v in machine.described().items()) + f"; {given.rounds} rounds, the median one\n\n{found}")


if __name__ == "__main__":
    main()
