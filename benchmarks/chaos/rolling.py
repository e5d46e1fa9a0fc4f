"""A rolling restart: SIGTERM to every process in turn, each awaited before the next."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.chaos.killer import Kill, answers
from benchmarks.chaos.stack import Stack, send, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

#: an engine belongs to its pool, and is restarted with it
ROLLED = ("pool", "coordinator", "broker", "store")


def roll(stack: Stack, roles: Sequence[str] = ROLLED) -> list[Kill]:
    """Restart every process of ``roles``; returns how long each was away. Raises RuntimeError where one did not come back."""
    rolled = []
    for role in roles:
        for pid in stack.pids(role):
            kill = Kill(role, pid, "SIGTERM", time.monotonic(), 0)
            send(pid, signal.SIGTERM)
            if not wait_until(partial(_replaced, stack, role, pid), 120):
                raise RuntimeError(f"{role} (pid {pid}) did not come back within 120 s of its SIGTERM")
            kill.back_s = time.monotonic() - kill.at
            rolled.append(kill)
    return rolled


def _replaced(stack: Stack, role: str, old: int) -> bool:
    same = [p for p in stack.processes() if p["role"] == role]
    pids = {p["pid"] for p in same if p["pid"]}
    if not same or old in pids or len(pids) < len(same):
        return False
    if role == "store":
        return answers(lambda: stack.client.archive.store.get("stack/none"))
    beating = {f["pid"] for f in stack.client.ledger.workers().values() if f.get("ready_at")}
    return role == "broker" or pids <= beating
