"""Hundreds of checkpoints registered with one pool whose device holds a part of them: ``python -m benchmarks.registered``.

A whole stack of its own: broker, store, coordinator, and one pool with every checkpoint. First each checkpoint is asked once, all at once;
then jobs arrive with popularity 1/rank. A job's wait is the time from its submit to the claim its answer came from. Printed: loads, waits,
the checkpoints that were not served (there should be none), and the engine process's memory beside the bytes of what is resident.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.chaos.stack import environ
from benchmarks.engines import machine
from benchmarks.engines.figures import percentile
from benchmarks.engines.report import table
from benchmarks.many import made
from symposia import Client, Inference
from symposia_shared.catalogue import Facts
from symposia_shared.prompts import Sampling
from symposia_shared.results import Result
from symposia_shared.settings import load
from symposia_shared.store import Store
from symposia_worker.models.store import ModelStore

POOL = "many"
#: a megabyte and a half of weights
SIZE = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 6}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one phase came to. ``waits`` and ``latencies``: seconds by job."""

    waits: tuple[float, ...]
    latencies: tuple[float, ...]
    loads: int
    seconds: float
    unserved: tuple[str, ...]


def stored(folder: Path, models: ModelStore, count: int, *, distinct: int, size: dict[str, int]) -> dict[str, int]:
    """``count`` checkpoints in the store, of ``distinct`` contents: id → bytes of its weights."""
    contents, found = list(made(folder, distinct, size=size).values()), {}
    for n in range(count):
        content = contents[n % distinct]
        facts = Facts(architecture="any", model_type="any", parameters=1, context=256, vocab=320, capabilities=("generate",), licence="none",
                      source="benchmark", dtype="float32")
        name = f"many-{n:03}"
        models.push(content, name, facts=facts)
        found[name] = sum(f.stat().st_size for f in content.glob("*.safetensors"))
    return found


@contextlib.contextmanager
def pool(folder: Path, client: Client, names: Sequence[str], *, budget_bytes: int, threads: int, residency: dict[str, str]) -> Iterator[int]:
    """The pool with every checkpoint; yields seconds until it was ready."""
    began = time.monotonic()
    command = [sys.executable, "-m", "symposia_worker.commands.pool", "--name", POOL, "--memory", str(budget_bytes), "--threads", str(threads),
               "--engine", "torch", "--dir", str(folder), *(f"--model={name}" for name in names)]
    with (folder / "logs" / "many.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ(residency), stdout=log, stderr=log)
    try:
        while not client.ledger.workers().get(POOL, {}).get("ready_at"):
            if process.poll() is not None:
                raise SystemExit((folder / "logs" / "many.log").read_text()[-3000:])
            time.sleep(0.1)
        yield round(time.monotonic() - began)
    finally:
        process.terminate()
        process.wait(60)


def ask(client: Client, models: Sequence[str], *, tokens: int, over_s: float, within_s: float) -> Asked:
    """Ask these checkpoints one after the other, spread over so many seconds (0: all at once), and wait for all answers."""
    loads, began, handles = client.stats()["loads"], time.monotonic(), []
    for n, model in enumerate(models):
        due = began + over_s * n / len(models)
        if due > time.monotonic():
            time.sleep(due - time.monotonic())
        handles.append((model, client.submit(Inference(model=model, prompt=f"{n}: the quick brown fox", sampling=Sampling(max_tokens=tokens)))))
    waits, latencies, unserved = [], [], []
    until = time.monotonic() + within_s
    while client.stats()["jobs_in_flight"] and time.monotonic() < until:
        time.sleep(0.2)
    seconds = time.monotonic() - began
    for model, handle in handles:
        result = client.archive.result(handle.job_id)
        timing = _claimed(result)
        if result is None or timing is None:
            unserved.append(model)
            continue
        waits.append(timing - result.submitted_at)
        latencies.append(result.ended_at - result.submitted_at)
    return Asked(tuple(waits), tuple(latencies), client.stats()["loads"] - loads, seconds, tuple(unserved))


def _claimed(result: Result | None) -> float | None:
    """When the turn of a done job was claimed."""
    return result.rounds[0].turns[0].reply.timing.claimed_at if result is not None and result.state == "done" else None


def measure(folder: Path, given: argparse.Namespace) -> str:
    """All phases."""
    subprocess.run([sys.executable, "-m", "symposia", "up", "--detach", "--no-flower", "--no-api", "--dir", str(folder)], check=True,
                   stdout=subprocess.DEVNULL, env=environ({}))
    client = Client(settings=load(folder))
    try:
        size = {**SIZE, "hidden_size": given.width, "intermediate_size": 4 * given.width}
        weights = stored(folder / "made", ModelStore(Store(client.settings.s3)), given.registered, distinct=given.distinct, size=size)
        print(f"{given.registered} checkpoints are stored", file=sys.stderr, flush=True)
        one = max(weights.values())
        # the budget is for what a resident takes, its cache of 256 tokens included, and a tenth is kept for caches to grow in
        budget = int(given.resident * one * given.beside / 0.9)
        residency = {"SYMPOSIA_RESIDENCY__LONGEST_WAIT_S": str(given.longest_wait), "SYMPOSIA_RESIDENCY__PATIENCE_S": str(given.patience)}
        with pool(folder, client, list(weights), budget_bytes=budget, threads=given.threads, residency=residency) as ready_s:
            print(f"the pool is ready after {ready_s} s", file=sys.stderr, flush=True)
            first = ask(client, [next(iter(weights))], tokens=given.tokens, over_s=0, within_s=300)
            engine = psutil.Process(int(client.ledger.workers()[POOL]["engine_pid"]))
            before = engine.memory_info().rss
            once = ask(client, list(weights), tokens=given.tokens, over_s=0, within_s=given.within)
            print(f"each was asked once: {once.seconds:.0f} s", file=sys.stderr, flush=True)
            ranks = random.Random(0)
            popular = ranks.choices(list(weights), [1 / (n + 1) for n in range(len(weights))], k=given.jobs)
            some = ask(client, popular, tokens=given.tokens, over_s=given.over, within_s=given.within)
            beat = client.ledger.workers()[POOL]
            resident = list(beat.get("resident", ()))
            rss = engine.memory_info().rss
        held = sum(weights[name] for name in resident)
        rows = [["registered; resident at the end", f"{len(weights)}; {len(resident)}"], ["pool ready after", f"{ready_s} s"],
                ["weights of one; of the residents", f"{one / 1e6:.1f} MB; {held / 1e6:,.0f} MB"],
                ["engine process: growth since its first checkpoint", f"{(rss - before) / 1e6:,.0f} MB, {(rss - before) / held:.2f} × the residents' weights"],
                ["first answer, torch imported for it", f"{max(first.latencies, default=float('nan')):.1f} s"],
                *_phase("each once, all at once", once), *_phase(f"{given.jobs} jobs by 1/rank over {given.over:.0f} s", some)]
        return table(["one pool", ""], rows)
    finally:
        client.close()
        subprocess.run([sys.executable, "-m", "symposia", "down", "--dir", str(folder)], check=False, stdout=subprocess.DEVNULL, env=environ({}))


def _phase(name: str, asked: Asked) -> list[list[str]]:
    p50, p95, most = (percentile(asked.waits, share) for share in (0.5, 0.95, 1.0))
    return [[f"{name}: served; not served", f"{len(asked.waits)}; {len(asked.unserved)} {' '.join(asked.unserved[:3])}".rstrip()],
            [f"{name}: loads", f"{asked.loads} in {asked.seconds:.0f} s"],
            [f"{name}: wait p50 / p95 / max", f"{p50:.1f} / {p95:.1f} / {most:.1f} s"]]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registered", type=int, default=512)
    parser.add_argument("--resident", type=int, default=128, help="how many the budget holds")
    parser.add_argument("--beside", type=float, default=1.05, help="what a resident takes, × its weights")
    parser.add_argument("--distinct", type=int, default=32, help="different weights among them")
    parser.add_argument("--width", type=int, default=SIZE["hidden_size"], help="of the checkpoints' states: their weights grow by its square")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--over", type=float, default=120.0, help="seconds over which they arrive")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--longest-wait", type=float, default=60.0)
    parser.add_argument("--patience", type=float, default=5.0)
    parser.add_argument("--within", type=float, default=900.0, help="seconds after which a phase is given up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch) / "stack", given)
    print("; ".join(f"{k}: {v}" for k, v in machine.described().items())
          + f"; longest wait {given.longest_wait:.0f} s, patience {given.patience:.0f} s\n\n{found}")


if __name__ == "__main__":
    main()
