"""What is run: a large file accepted, many lines answered, collaborations and a real file through kills."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.batches.inputs import collaborations, echoes
from benchmarks.batches.over_http import Api, written
from benchmarks.chaos import journal
from benchmarks.chaos.audit import _of_ledger
from benchmarks.chaos.killer import Killer
from benchmarks.chaos.legs import DEVICES, whole_journal
from benchmarks.chaos.stack import SYMPOSIA, Stack, environ, running_stack, wait_until

Facts = dict[str, Any]


def accept(folder: Path, *, lines: int, size: int) -> Facts:
    """A file uploaded, and its batch made, to the moment at which it is in progress; what the API and the coordinator held at most."""
    with running_stack(folder, devices="cpu:0") as stack:
        api, path = Api(stack), written(folder / "input.jsonl", echoes(lines, size=size // lines, broken_every=0))
        stack.client.ledger.redis.hset(stack.client.ledger.key("paused"), "queue:turns.test", "paused")
        small = api.upload(written(folder / "small.jsonl", echoes(1)))
        assert small["bytes"]
        with _peaks(stack, "api", "coordinator") as peaks:
            before, cpu = dict(peaks), _cpu(stack)
            began = time.monotonic()
            file = api.upload(path)
            uploaded = time.monotonic() - began
            batch = api.create(file["id"])
            while (batch := api.get(batch["id"]))["status"] == "validating":
                time.sleep(0.02)
            took = time.monotonic() - began
            used = {role: round(seconds - cpu[role], 2) for role, seconds in _cpu(stack).items()}
        facts = {"cpu_s": used, "load": os.getloadavg()[0], "lines": batch["request_counts"]["total"], "bytes": file["bytes"],
                 "status": batch["status"], "upload_s": round(uploaded, 2),
                 "seconds": round(took, 2), "rss_mib_before": _mib(before), "rss_mib_at_most": _mib(peaks)}
        stack.client.batches.cancel(batch["id"])
        api.ended(batch["id"], within_s=300)
        return facts


def many(folder: Path, *, lines: int) -> Facts:
    """Lines on ``test/echo``, one in a hundred broken."""
    with running_stack(folder, devices="cpu:0") as stack:
        api, redis = Api(stack), stack.client.ledger.redis
        file = api.upload(written(folder / "input.jsonl", echoes(lines)))
        memory: list[int] = [int(redis.info("memory")["used_memory"])]
        began = time.monotonic()
        batch = api.create(file["id"])
        ended = api.ended(batch["id"], within_s=6 * 3600, told=lambda _: memory.append(int(redis.info("memory")["used_memory"])))
        took = time.monotonic() - began
        answers, errors = api.rows(ended["output_file_id"]), api.rows(ended["error_file_id"])
        ids = [a["custom_id"] for a in answers]
        assert ids == [f"request-{n}" for n in range(1, lines + 1) if n % 100], "an answer is missing, doubled or out of order"
        assert [e["error"]["line"] for e in errors] == list(range(100, lines + 1, 100))
        after = int(redis.info("memory")["used_memory"])
        return {"lines": lines, "status": ended["status"], "answers": len(answers), "errors": len(errors),
                "reasons": Counter(e["error"]["code"] for e in errors), "cpu_ms_per_line": {r: round(1000 * s / lines, 2) for r, s in _cpu(stack).items()},
                "seconds": round(took, 1), "ms_per_line": round(1000 * took / lines, 2), "redis_before": memory[0], "redis_most": max(memory),
                "redis_after": after, "redis_most_bytes_per_line": round((max(memory) - memory[0]) / lines, 1),
                "redis_left_bytes_per_line": round((after - memory[0]) / lines, 1), "stats": _counted(stack)}


def kills(folder: Path, *, lines: int, most: int, gap_s: float, seed: int) -> Facts:
    """Mixed collaborations on ``test/echo``, while pool, coordinator, API and Redis are killed at random."""
    with running_stack(folder, devices=DEVICES) as stack:
        whole_journal(stack)
        api = Api(stack)
        file = api.upload(written(folder / "input.jsonl", collaborations(lines)))
        killer = Killer(stack, seed, gap_s, ("pool", "coordinator", "api", "broker"), most=most)
        began = time.monotonic()
        batch = api.create(file["id"])
        killer.start()
        ended = api.ended(batch["id"], within_s=3600)
        took = time.monotonic() - began
        killer.cease()
        killer.stop()
        return _audited(stack, api, ended, killer, took, lines, folder / "broker")


def real(folder: Path, path: Path, *, model: str, most: int, seed: int, max_tokens: int | None) -> Facts:
    """A file through the API on a real model that answers its ``auto`` lines, killed at random and gone on with."""
    more = {"SYMPOSIA_CACHE": os.environ.get("SYMPOSIA_CACHE", str(Path(__file__).parents[2] / ".cache"))}
    with running_stack(folder, devices="cpu:0") as stack:
        for words in (("models", "pull", model), ("models", "serve", model)):
            subprocess.run([*SYMPOSIA, *words, "--dir", str(folder)], check=True, timeout=1800, env=environ(more), stdout=sys.stderr)
        assert wait_until(lambda: model in stack.client.ledger.placed(), 300)
        whole_journal(stack)
        api = Api(stack)
        raw = path.read_bytes()
        if max_tokens is not None:
            raw = b"".join(_capped(row, max_tokens) for row in raw.splitlines())
        file = api.upload(written(folder / "input.jsonl", [raw]))
        lines = sum(1 for row in raw.splitlines() if row.strip())
        killer = Killer(stack, seed, 60.0, ("pool", "coordinator", "api"), most=most)
        began = time.monotonic()
        batch = api.create(file["id"], symposia={"auto_model": model})
        assert wait_until(lambda: api.get(batch["id"])["request_counts"]["completed"] > lines // 10, 1800)
        killer.start()
        ended = api.ended(batch["id"], within_s=3 * 3600)
        took = time.monotonic() - began
        killer.cease()
        killer.stop()
        return _audited(stack, api, ended, killer, took, lines, folder / "broker") | {"usage": ended["usage"]}


def _capped(row: bytes, most: int) -> bytes:
    import json

    value = json.loads(row)
    value["body"]["max_tokens"] = min(most, value["body"].get("max_tokens", most))
    return json.dumps(value).encode() + b"\n"


def _audited(stack: Stack, api: Api, ended: Facts, killer: Killer, took: float, lines: int, broker: Path) -> Facts:
    """What a batch through kills came to, and what of its promises was broken."""
    answers, errors = api.rows(ended["output_file_id"]), api.rows(ended["error_file_id"])
    seen = Counter(a["custom_id"] for a in answers + errors)
    settled = wait_until(lambda: stack.client.stats()["jobs_in_flight"] == 0, 60)
    counted, told = _counted(stack), journal.read(broker, stack.client.settings.prefix)
    broken = [] if settled else ["jobs are in flight a minute after the batch's end"]
    broken += [f"{i} ended {n} times" for i, n in seen.items() if n != 1] + ([f"{len(seen)} of {lines} lines ended"] if len(seen) != lines else [])
    broken += [f"journal: {word}" for word in told.again] + [f"journal: {job} ended {n} times" for job, n in told.ends.items() if n > 1]
    broken += list(_of_ledger(stack))
    if counted["calls_repeated"] > counted["in_flight_at_kills"]:
        broken.append("more calls were repeated than were in flight at kills")
    if counted["commit_conflicts"]:
        broken.append(f"{counted['commit_conflicts']} results met another that stood already")
    return {"status": ended["status"], "lines": lines, "answers": len(answers), "errors": dict(Counter(e["error"]["code"] for e in errors)),
            "seconds": round(took, 1), "kills": dict(Counter(k.role for k in killer.kills)), "stats": counted, "journal_whole": told.whole,
            "journal_claims": told.claims, "journal_recorded": told.recorded, "violations": broken}


def _counted(stack: Stack) -> dict[str, int]:
    names = ("jobs_submitted", "jobs_done", "jobs_failed", "jobs_cancelled", "calls_started", "calls_recorded", "calls_repeated", "in_flight_at_kills",
             "commit_conflicts")
    found = stack.client.stats()
    return {name: found[name] for name in names}


@contextmanager
def _peaks(stack: Stack, *roles: str) -> Iterator[dict[str, int]]:
    """The most resident bytes of the processes of these roles, while it is open."""
    most = {role: sum(psutil.Process(p).memory_info().rss for p in stack.pids(role)) for role in roles}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for role in roles:
                most[role] = max(most[role], sum(psutil.Process(p).memory_info().rss for p in stack.pids(role)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def _cpu(stack: Stack) -> dict[str, float]:
    """Processor seconds of each role."""
    found: dict[str, float] = {}
    for process in stack.processes():
        if process["pid"]:
            times = psutil.Process(process["pid"]).cpu_times()
            found[process["role"]] = found.get(process["role"], 0.0) + times.user + times.system
    return found


def _mib(sizes: dict[str, int]) -> dict[str, int]:
    return {role: size // 2**20 for role, size in sizes.items()}
