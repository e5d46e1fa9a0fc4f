"""The soak: a steady load for a long time, faults at a gentle rate, and what every part holds at the end compared with the beginning."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.chaos import audit
from benchmarks.chaos.gauges import SHORTEST_S, Gauges, Trend
from benchmarks.chaos.jobs import asked
from benchmarks.chaos.killer import ROLES, Killer
from benchmarks.chaos.load import Ended, Load
from benchmarks.chaos.report import Leg
from benchmarks.chaos.stack import Stack, running_stack
from symposia import Inference
from symposia_worker.stack import state
from symposia_worker.stack.folder import Folder

DEVICES = "cpu:0,cpu:1"


#: what stands in the place of a job that was judged
FORGOTTEN = Inference(prompt="?", model="test/echo")
#: jobs of the burst before the first look: more at once than any pool of threads or connections has places
BURST = 160


def _filled(stack: Stack) -> None:
    """Fill what grows to a fixed size when it is first needed: threads, connections, caches. Else the filling looks like growth."""
    jobs = [asked(0, n, healthy=True).job for n in range(BURST // 2)]
    slow = [Inference(prompt=str(n), model="test/slow:2000") for n in range(BURST)]
    handles = stack.client.submit_many([*slow, *jobs])
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda h: h.wait(600), handles))


class Pace:
    """``rate`` jobs a second for so many seconds. Asked under the load's lock, so that a wait in it paces all producers."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.gap_s, self.until = 1.0 / rate, time.monotonic() + seconds
        self._next = time.monotonic()

    def more(self, _number: int) -> bool:
        """Whether a further job is to be asked, once it is its time."""
        now = time.monotonic()
        self._next = max(self._next + self.gap_s, now - 5 * self.gap_s)  # what faults held up is not made good in one burst
        time.sleep(max(0.0, min(self._next, self.until) - now))
        return time.monotonic() < self.until


def soak(folder: Path, *, seed: int, minutes: float, rate: float, gap_s: float, stopped_s: float, in_flight: int) -> Leg:
    """The leg. One pool with its engine is never hit, and the coordinator not in the second half, so that some parts live long enough to grow."""
    with running_stack(folder, devices=DEVICES, flower=True) as stack:
        began = time.monotonic()
        _filled(stack)
        gauges, judge = Gauges(stack, every_s=min(10.0, minutes * 60 / 40), shortest_s=min(SHORTEST_S, minutes * 24)), _Judge()
        killer = Killer(stack, seed, gap_s, ROLES, stopped_s, spared=set(_spared(stack)))
        pace = Pace(rate, minutes * 60)
        load = Load(stack, partial(asked, seed), pace.more, in_flight, on_end=judge.take)
        half = threading.Timer(minutes * 30, lambda: killer.spared.update(stack.pids("coordinator")))
        half.daemon = True
        half.start()
        visitor = _Visitor(stack)
        visitor.start()
        gauges.look()
        gauges.start()
        killer.start()
        load.run()
        killer.stop()
        half.cancel()
        gauges.look()
        gauges.stop()
        visitor.stop()
        trends = gauges.trends()
        (folder / "gauges.json").write_text(json.dumps([[*k, [(round(t - began, 1), round(v, 3)) for t, v in p]] for k, p in gauges.seen.items()]))
        broken = judge.broken + audit.audit(stack, load.ended, judged=True, before=BURST + BURST // 2)
        broken += [f"{t.part}: {t.measure} grows: {t.row}" for t in trends if t.flat is False]
        return Leg(f"soak of {minutes:g} min", seed, load.ended, killer.kills, stack.client.stats(), broken, time.monotonic() - began,
                   [*_table(trends), _per_job(trends, len(load.ended), minutes),
                    f"HTTP API and Flower: {visitor.answered} answers, {visitor.failed} failed"])


class _Judge:
    """Each job is judged when it ends and its result dropped, so that the producer of an hour's jobs does not keep them all."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def take(self, seen: Ended) -> None:
        self.broken += [f"{seen.asked.job_id} ({seen.asked.job.name}): {word}" for word in audit.of_one(seen)]
        seen.result = None
        seen.asked = dataclasses.replace(seen.asked, job=FORGOTTEN, vectors=None, answer=None)


class _Visitor:
    """Somebody who asks the HTTP API and Flower every few seconds, so that these too have work; what is away is asked again."""

    def __init__(self, stack: Stack, every_s: float = 3.0) -> None:
        found = state.read(Folder(stack.folder))
        stored = json.loads((stack.folder / "credentials.json").read_text())
        login = base64.b64encode(f"{stored['flower']['user']}:{stored['flower']['password']}".encode()).decode()
        self._pages = [] if found is None else [(f"{found.api}/models", f"Bearer {stored['api_key']}"), (f"{found.flower}/api/workers", f"Basic {login}")]
        self._every_s, self._stop = every_s, threading.Event()
        self.answered = self.failed = 0
        self._thread = threading.Thread(target=self._run, name="visitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            for url, key in self._pages:
                try:
                    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": key}), timeout=10) as answer:  # noqa: S310 - loopback
                        answer.read()
                    self.answered += 1
                except OSError:
                    self.failed += 1


def _spared(stack: Stack) -> list[int]:
    """The first pool's pid and its engine's."""
    rows = stack.processes()
    first = next(p for p in rows if p["role"] == "pool")
    return [p["pid"] for p in rows if p["pid"] and p["device"] == first["device"] and p["role"] in ("pool", "engine")]


def _table(trends: list[Trend]) -> list[str]:
    return ["| part | measure | minutes | first | last | most | slope an hour | |", "|---|---|---|---|---|---|---|---|", *(t.row for t in trends)]


def _per_job(trends: list[Trend], jobs: int, minutes: float) -> str:
    per_hour = jobs / minutes * 60
    disk = [f"{t.part.removeprefix('disk: ')} {t.slope_per_hour * 1024 / per_hour:.1f} KB" for t in trends if t.part.startswith("disk")]
    return f"disk a job: {', '.join(disk)}; Redis keeps the last 10,000 ended jobs and dead letters"
