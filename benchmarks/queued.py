"""No-op jobs through the whole queue beside a raw Celery task on the same broker and pool settings.

    make bench

Both are measured in turn in one run, several times, on a stack of their own; what is printed are medians and ratios. A raw
Celery task keeps no record, commits no result and loses messages when a worker is killed: the ratio is the price of the promise.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from celery import Celery

from symposia import Client, Inference
from symposia_shared.settings import load

THREADS = 32


def raw_app(url: str, *, backend: bool) -> Celery:
    """Celery as most would set it up on Redis, with late acknowledgement, under its own prefix."""
    app = Celery("raw", broker=url, backend=url if backend else None, set_as_current=False)
    prefix = {"global_keyprefix": "rawbench:"}
    app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix, task_acks_late=True, worker_prefetch_multiplier=1,
                    task_default_queue="raw", broker_connection_retry_on_startup=True)

    @app.task(name="raw.echo")
    def echo(text: str) -> str:
        return text

    return app


def run_raw(url: str, jobs: int) -> float:
    """Seconds for ``jobs`` echo tasks, results read by the sender."""
    app = raw_app(url, backend=True)
    begun = time.perf_counter()
    sent = [app.send_task("raw.echo", (f"job {i}",)) for i in range(jobs)]
    for result in sent:
        result.get(timeout=300)
    return time.perf_counter() - begun


def run_ours(client: Client, jobs: int) -> float:
    """Seconds for ``jobs`` echo jobs submitted in bulk until the ledger has forgotten the last: each result is in S3."""
    begun = time.perf_counter()
    client.submit_many([Inference(model="test/echo", prompt=f"job {i}") for i in range(jobs)])
    while client.stats()["jobs_in_flight"]:
        time.sleep(0.02)
    return time.perf_counter() - begun


def run_ours_singly(client: Client, jobs: int) -> float:
    """The same, each job submitted by a call of its own."""
    begun = time.perf_counter()
    for i in range(jobs):
        client.submit(Inference(model="test/echo", prompt=f"job {i}"))
    while client.stats()["jobs_in_flight"]:
        time.sleep(0.02)
    return time.perf_counter() - begun


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of these processes and their children so far."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for p in (process, *process.children(recursive=True)):
            times = p.cpu_times()
            total += times.user + times.system
    return total


def settled_memory(client: Client) -> int:
    """Bytes Redis uses once nothing changes any more: what is unlinked is freed in the background."""
    seen: list[int] = []
    while len(seen) < 4 or max(seen[-4:]) - min(seen[-4:]) > 4_096:
        time.sleep(0.5)
        seen.append(int(client.ledger.redis.info("memory")["used_memory"]))
    return seen[-1]


def bytes_per_job(client: Client, jobs: int = 1_000) -> dict[int, float]:
    """Redis bytes per queued job, by prompt size; no pool serves the queue meanwhile."""
    found = {}
    redis, ledger = client.ledger.redis, client.ledger
    ledger.place("bench", {"bench": {"queue": "turns.bench"}})
    for size in (40, 400, 4_000, 100_000):
        count = jobs if size < 4_000 else 200
        redis.delete(ledger.key("turns.bench"))
        before = settled_memory(client)
        handles = [client.submit(Inference(model="bench", prompt="x" * size)) for _ in range(count)]
        found[size] = (settled_memory(client) - before) / count
        for handle in handles:
            handle.cancel()
        while client.stats()["jobs_in_flight"]:
            time.sleep(0.05)
    ledger.run("place", "bench", "", "")
    return found


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=1_000)
    options.add_argument("--rounds", type=int, default=3, help="0: only what a queued job takes in Redis")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "stack"
        up = ["up", "--detach", "--test-models", "--no-flower", "--concurrency", str(THREADS), "--dir", str(folder)]
        subprocess.run([sys.executable, "-m", "symposia", *up], check=True, stdout=subprocess.DEVNULL)
        try:
            measure(folder, asked.jobs, asked.rounds)
        finally:
            subprocess.run([sys.executable, "-m", "symposia", "down", "--dir", str(folder)], check=True, stdout=subprocess.DEVNULL)


def measure(folder: Path, jobs: int, rounds: int) -> None:
    """The table of one run."""
    client = Client(settings=load(folder))
    url = client.settings.broker
    worker = subprocess.Popen([sys.executable, "-m", "celery", "-A", "benchmarks.raw_worker", "worker", "-P", "threads", "-c", str(THREADS), "-Q", "raw",
                               "-l", "ERROR", "--without-gossip", "--without-mingle", "-n", f"raw-{uuid.uuid4().hex[:6]}"],
                              env=os.environ | {"RAW_URL": url}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pools = [int(w["pid"]) for w in client.ledger.workers().values() if w["role"] == "pool"]
    try:
        run_raw(url, 50)
        run_ours(client, 50)
        runs: dict[str, list[tuple[float, float]]] = {"raw Celery": [], "Symposia, bulk": [], "Symposia, one by one": []}
        kinds: list[tuple[str, Callable[[], float], list[int]]] = [
            ("raw Celery", lambda: run_raw(url, jobs), [worker.pid]), ("Symposia, bulk", lambda: run_ours(client, jobs), pools),
            ("Symposia, one by one", lambda: run_ours_singly(client, jobs), pools),
        ]
        for _ in range(rounds):
            for name, run, pids in kinds:
                before = cpu_s(pids)
                seconds = run()
                runs[name].append((jobs / seconds, (cpu_s(pids) - before) / jobs * 1e3))
        report(runs, bytes_per_job(client), jobs, rounds)
    finally:
        worker.terminate()
        worker.wait()
        client.close()


def report(runs: dict[str, list[tuple[float, float]]], memory: dict[int, float], jobs: int, rounds: int) -> None:
    """Print the medians as docs/BENCHMARKS.md has them."""
    print(f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
          f"{rounds} rounds of {jobs} jobs, interleaved, medians; pools of {THREADS} threads\n")
    if rounds:
        base = statistics.median(rate for rate, _ in runs["raw Celery"])
        print("| path | jobs/s | × raw Celery | worker CPU ms/job |\n|---|---|---|---|")
    for name, found in runs.items() if rounds else ():
        rate, cpu = statistics.median(r for r, _ in found), statistics.median(c for _, c in found)
        print(f"| {name} | {rate:.0f} | {rate / base:.2f} | {cpu:.1f} |")
    print("\n| prompt, bytes | Redis bytes per queued job |\n|---|---|")
    for size, used in memory.items():
        print(f"| {size:,} | {used:,.0f} |")


if __name__ == "__main__":
    main()
