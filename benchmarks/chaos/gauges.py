"""What every part of a stack holds, sampled over time: memory, handles, threads; Redis' memory, keys and clients; bytes on disk."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.chaos.stack import Stack
from symposia_shared.errors import SymposiaError
from symposia_shared.ledger import away
from symposia_worker.stack import state
from symposia_worker.stack.folder import Folder

#: what may be gained between the first and the last look without being called growth, whatever the size: megabytes, counts
SLACK = {"memory MB": 12.0, "handles": 12.0, "threads": 4.0, "Redis MB": 1.5, "Redis keys": 40.0, "Redis clients": 24.0}
#: the share of the median that may be gained besides
SLACK_SHARE = 0.05
#: parts that fill up to a fixed size for longer than a run lasts: Flower keeps the last 20,000 tasks (5 KB each)
FILLING = (("flower", "memory MB"),)
#: what Celery leaves for five minutes of a chord that is over: as many as there were rounds in that time
CHORD_DONE = "celery-taskset-meta-*.c"
#: the ledger's lists with a fixed greatest length (10,000 ended jobs, 10,000 letters, 1,000 messages): they fill, then stay
BOUNDED = ("ended", "endings", "dead", "letters", "quarantine")
#: of each life the first part is left out: modules are imported, pools are filled, arenas are grown
WARM_SHARE, WARM_S = 0.25, 120.0
#: lives shorter than this tell nothing of growth
SHORTEST_S = 480.0
MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Trend:
    """How one measure of one part went. ``growth``: what the slope adds up to over the time looked at."""

    part: str
    measure: str
    minutes: float
    first: float
    last: float
    most: float
    slope_per_hour: float
    growth: float
    #: None where nothing is promised: disk grows with the results
    flat: bool | None

    @property
    def row(self) -> str:
        """The trend as a row of a table."""
        word = "–" if self.flat is None else "flat" if self.flat else "GROWS"
        return (f"| {self.part} | {self.measure} | {self.minutes:.0f} | {self.first:.1f} | {self.last:.1f} | {self.most:.1f} | "
                f"{self.slope_per_hour:+.2f} | {word} |")


@dataclass
class Gauges:
    """Looks at a stack every ``every_s`` seconds until it is told to stop."""

    stack: Stack
    every_s: float = 10.0
    shortest_s: float = SHORTEST_S
    #: (part, measure) → (seconds, value)
    seen: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="gauges", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """One look at everything."""
        now = time.monotonic()
        self._process(now, "producer (this load)", os.getpid())
        found = state.read(Folder(self.stack.folder))
        if found is not None:
            self._process(now, "supervisor", found.pid)
            for p in found.processes:
                if p.pid is not None and p.state == "ready":
                    self._process(now, f"{p.name} ({p.pid})", p.pid)
        with contextlib.suppress(SymposiaError):
            self._redis(now)
        for name in ("broker", "store", "logs"):
            self._add(now, f"disk: {name}", "MB", _bytes_under(self.stack.folder / name) / MB)

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.look()

    def _process(self, now: float, part: str, pid: int) -> None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            with process.oneshot():
                self._add(now, part, "memory MB", process.memory_info().rss / MB)
                self._add(now, part, "handles", process.num_fds())
                self._add(now, part, "threads", process.num_threads())

    def _redis(self, now: float) -> None:
        redis, key = self.stack.client.ledger.redis, self.stack.client.ledger.key
        with away():
            facts = redis.info()
            in_flight = redis.zcard(key("jobs"))
            markers = sum(1 for _ in redis.scan_iter(key(CHORD_DONE), count=1000))
            bounded = sum(redis.memory_usage(key(name), samples=100) or 0 for name in BOUNDED)
        self._add(now, "Redis", "Redis MB", (facts["used_memory"] - bounded) / MB)
        self._add(now, "Redis", "bounded lists MB", bounded / MB)
        self._add(now, "Redis", "Redis keys", sum(db["keys"] for name, db in facts.items() if name.startswith("db")) - in_flight - markers)
        self._add(now, "Redis", "Redis clients", facts["connected_clients"])

    def _add(self, now: float, part: str, measure: str, value: float) -> None:
        self.seen.setdefault((part, measure), []).append((now, float(value)))

    def trends(self) -> list[Trend]:
        """How each measure went, of each part that lived long enough; of parts that were replaced, the longest lives."""
        found = []
        for (part, measure), points in self.seen.items():
            kept = warmed(points, shortest_s=self.shortest_s)
            if kept:
                found.append(trend(part, measure, kept))
        return sorted(found, key=lambda t: (t.part, t.measure))


def warmed(points: list[tuple[float, float]], *, shortest_s: float = SHORTEST_S) -> list[tuple[float, float]]:
    """The points of a life after it had warmed up; [] where it was too short to tell anything."""
    if len(points) < 4 or points[-1][0] - points[0][0] < shortest_s:
        return []
    life = points[-1][0] - points[0][0]
    since = points[0][0] + max(WARM_SHARE * life, min(WARM_S, life / 2))
    return [p for p in points if p[0] >= since]


def trend(part: str, measure: str, points: list[tuple[float, float]]) -> Trend:
    """The median slope of all pairs of points (Theil–Sen), so that no single peak or dip decides it."""
    span_s = points[-1][0] - points[0][0]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1:] if b[0] > a[0]]
    slope = statistics.median(slopes) if slopes else 0.0
    values = [v for _, v in points]
    growth = slope * span_s
    slack = SLACK.get(measure)
    filling = any(part.startswith(name) and measure == what for name, what in FILLING)
    flat = None if slack is None or filling else growth <= max(slack, SLACK_SHARE * statistics.median(values))
    return Trend(part, measure, span_s / 60, values[0], values[-1], max(values), slope * 3600, growth, flat)


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_blocks * 512
    return total
