"""A contender's process as the benchmark sees it: started, asked, watched, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engines.machine import busy_s
from benchmarks.engines.wire import Answer, Ready, Request, answer_of, run_line

ROOT = Path(__file__).resolve().parents[2]
_LOOK_EVERY_S = 0.2


class Failed(Exception):
    """A contender could not be started or ended in the middle; its text says why, as far as its log tells."""


@dataclass(frozen=True, slots=True)
class Order:
    """How a contender is started. ``name`` is what tables call it."""

    name: str
    module: str
    arguments: tuple[str, ...]
    #: what has to be known beside its figures
    note: str = ""
    python: str = sys.executable
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watched:
    """One run as it was seen from outside."""

    answers: tuple[Answer, ...]
    began: float
    cpu_s: float
    rss_bytes: int
    others_cores: float


class Contender:
    """Use as a context manager: it is ready inside."""

    def __init__(self, order: Order, *, threads: int, log: Path, start_within_s: float = 1200.0) -> None:
        self.order, self.log, self.start_within_s = order, log, start_within_s
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = log.open("ab")
        self._process = subprocess.Popen(
            [order.python, "-m", order.module, *order.arguments, "--threads", str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log_file, text=True, cwd=ROOT, env=environ(threads) | order.environ)
        self.ready: Ready | None = None

    def __enter__(self) -> Contender:
        timer = threading.Timer(self.start_within_s, self._process.terminate)
        timer.start()
        try:
            said = self._read()
        except BaseException:
            self._end()
            raise
        finally:
            timer.cancel()
        self.ready = Ready(load_s=said["load_s"], facts=said["facts"], pids=tuple(said["pids"]))
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, requests: Sequence[Request], *, within_s: float) -> Watched:
        """Ask all of them and watch. Raises Failed where the process ends, or takes longer than ``within_s``."""
        timer = threading.Timer(within_s, self._process.kill)
        timer.start()
        watch = _Watch(self.processes)
        busy, cpu, at = busy_s(), watch.cpu_s(), time.monotonic()
        try:
            self._write(run_line(requests))
            began, answers = 0.0, []
            with watch:
                while (said := self._read())["say"] != "over":
                    if said["say"] == "began":
                        began = float(said["at"])
                    else:
                        answers.append(answer_of({k: v for k, v in said.items() if k != "say"}))
        finally:
            timer.cancel()
        own, seconds = watch.cpu_s() - cpu, time.monotonic() - at
        return Watched(tuple(answers), began, own, watch.rss_bytes, max(0.0, (busy_s() - busy - own) / seconds))

    def processes(self) -> list[psutil.Process]:
        """Its process, what it says works for it, and their children."""
        roots = [self._process.pid, *(self.ready.pids if self.ready else ())]
        found: dict[int, psutil.Process] = {}
        for pid in roots:
            try:
                root = psutil.Process(pid)
                for p in (root, *root.children(recursive=True)):
                    found[p.pid] = p
            except psutil.NoSuchProcess:
                continue
        return list(found.values())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self.order.name} ended (exit {self._process.wait()}): {last_line(self.log)}")
        said: dict[str, Any] = json.loads(line)
        return said

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            raise Failed(f"{self.order.name} has ended: {last_line(self.log)}") from None

    def _end(self) -> None:
        """Let it end by itself (a stack has to be stopped), and make sure."""
        assert self._process.stdin is not None
        left = self.processes()
        try:
            self._process.stdin.close()
            self._process.wait(60)
        except (OSError, subprocess.TimeoutExpired):
            pass
        for p in left:
            try:
                p.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        self._log_file.close()


class _Watch:
    """Looks at a set of processes every now and then."""

    def __init__(self, processes: Any) -> None:
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._spent: dict[int, float] = {}
        self.rss_bytes = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_s(self) -> float:
        """CPU seconds so far, of processes that have ended up to when they were last seen."""
        for p in self._processes():
            try:
                times = p.cpu_times()
                self._spent[p.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return sum(self._spent.values())

    def _look(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            rss = 0
            for p in self._processes():
                try:
                    rss += p.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.rss_bytes = max(self.rss_bytes, rss)


def environ(threads: int) -> dict[str, str]:
    """The same environment for all: so many threads, waiting passively (spinning ones cost a factor of ten on a busy machine)."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def last_line(log: Path) -> str:
    """The last line a log holds."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:300] if lines else "its log is empty"
