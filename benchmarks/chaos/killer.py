"""What is done to the processes: SIGKILL or SIGSTOP at random moments, and how long each took to be made good."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.chaos.stack import Stack, send, wait_until
from symposia_shared.errors import SymposiaError

ROLES = ("pool", "engine", "coordinator", "broker", "store")
#: seconds after which a process that has not come back is said not to have
LONGEST_S = 60.0


@dataclass
class Kill:
    """One kill: when, whom, and the seconds until another process of its role ran, and until the ledger recorded a further reply."""

    role: str
    pid: int
    how: str
    at: float
    recorded: int
    back_s: float | None = None
    reply_s: float | None = None


@dataclass
class Killer:
    """Kills processes of the stack until told to stop; ``gap_s``: mean seconds between two kills, drawn exponentially.

    ``stopped_s``: of a tenth of the blows, seconds a process is stopped (SIGSTOP) in place of being killed; 0: none is.
    """

    stack: Stack
    seed: int
    gap_s: float
    roles: tuple[str, ...] = ROLES
    stopped_s: float = 0.0
    most: int = 1_000_000
    #: pids that are left alone
    spared: set[int] = field(default_factory=set)
    kills: list[Kill] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _recorded: int = 0

    def start(self) -> None:
        """Begin."""
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in (("killer", self._kill), ("monitor", self._monitor))]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Kill no more; what is down is waited for."""
        wait_until(lambda: all(k.back_s is not None for k in self.kills[-8:]), LONGEST_S)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def cease(self) -> None:
        """Kill no more, while what is in flight ends and recoveries are still watched."""
        self.most = 0

    @property
    def enough(self) -> bool:
        """Whether all kills asked for were made."""
        return len(self.kills) >= self.most

    def _kill(self) -> None:
        dice = random.Random(f"killer:{self.seed}")
        while not self.enough and not self._stop.wait(min(dice.expovariate(1 / self.gap_s), 5 * self.gap_s)):
            role, lot, stopping = dice.choice(self.roles), dice.random(), dice.random() < 0.1
            pids = [p for p in self.stack.pids(role) if p not in self.spared]
            if not pids:
                continue
            pid = pids[int(lot * len(pids))]
            if self.stopped_s and stopping:
                self._hold(role, pid)
            elif send(pid, signal.SIGKILL):
                self.kills.append(Kill(role, pid, "SIGKILL", time.monotonic(), self._recorded))

    def _hold(self, role: str, pid: int) -> None:
        if send(pid, signal.SIGSTOP):
            blow = Kill(role, pid, f"SIGSTOP {self.stopped_s:g} s", time.monotonic(), self._recorded)
            self._stop.wait(self.stopped_s)
            send(pid, signal.SIGCONT)
            blow.back_s = time.monotonic() - blow.at
            self.kills.append(blow)

    def _monitor(self) -> None:
        """Ten looks a second at the counters and the processes."""
        while not self._stop.wait(0.1):
            waiting = [k for k in self.kills if (k.back_s is None or k.reply_s is None) and time.monotonic() - k.at < LONGEST_S]
            try:
                self._recorded = self.stack.client.stats()["calls_recorded"]
            except SymposiaError:
                continue
            if waiting:
                beats = {f["pid"] for f in self.stack.client.ledger.workers().values() if f.get("ready_at")}
                processes = self.stack.processes()
                for kill in waiting:
                    self._look(kill, [p["pid"] for p in processes if p["role"] == kill.role and p["pid"]], beats)

    def _look(self, kill: Kill, pids: list[int], beats: set[int]) -> None:
        passed = time.monotonic() - kill.at
        if kill.reply_s is None and self._recorded > kill.recorded:
            kill.reply_s = passed
        if kill.back_s is None and kill.pid not in pids and pids and self._serves(kill.role, pids, beats):
            kill.back_s = passed

    def _serves(self, role: str, pids: list[int], beats: set[int]) -> bool:
        """Whether all processes of a role work again: workers by their own beat, the store by an answer, the broker by the look itself."""
        if role in ("pool", "coordinator"):
            return len(pids) == self._count(role) and set(pids) <= beats
        if role == "store":
            return answers(lambda: self.stack.client.archive.store.get("stack/none"))
        return len(pids) == self._count(role)

    def _count(self, role: str) -> int:
        named = [p["role"] for p in self.stack.processes()]
        return named.count("pool" if role == "engine" else role)


def answers(ask: Callable[[], object]) -> bool:
    """Whether a service answers."""
    try:
        ask()
    except SymposiaError:
        return False
    return True
