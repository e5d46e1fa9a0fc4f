"""A real stack for tests: ``symposia up --detach`` in a folder of its own, its processes found by role, killed by pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import warm

from symposia import Client
from symposia.cli.info import running
from symposia_shared.settings import load

SYMPOSIA = [sys.executable, "-m", "symposia"]


def clean_environ(**more: str) -> dict[str, str]:
    """The environment without any deployment's settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SYMPOSIA_")} | more


class Stack:
    """A running stack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = Client(settings=load(folder))
        #: counters from which ``since`` counts
        self.zero: dict[str, int] = {}

    def run(self, *args: str, expect: int | None = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """One command on this stack."""
        ran = warm.run([*args, "--dir", str(self.folder)], clean_environ(), stdin=stdin, timeout_s=120)
        assert expect is None or ran.returncode == expect, f"{args} → {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran

    def json(self, *args: str, expect: int | None = 0) -> Any:
        """One command's facts."""
        return json.loads(self.run(*args, "--json", expect=expect).stdout)

    def pid(self, role: str) -> int:
        """The pid of the (first) process of a role, once it has one."""
        found = wait_for(lambda: next((p["pid"] for p in running(self.folder)["processes"] if p["role"] == role and p["pid"]), None))
        return int(found)

    def kill(self, role: str, sig: signal.Signals = signal.SIGKILL) -> int:
        """Signal a process of the stack; returns the pid it had."""
        pid = self.pid(role)
        os.kill(pid, sig)
        return pid

    def stats(self) -> dict[str, int]:
        """The counters."""
        return self.client.stats()

    def settled_stats(self) -> dict[str, int]:
        """The counters once nothing is in flight."""
        wait_for(lambda: self.stats()["jobs_in_flight"] == 0)
        return self.stats()

    def since(self) -> dict[str, int]:
        """What was counted since ``zero``, once nothing is in flight."""
        return self.since_of(self.zero)

    def since_of(self, zero: dict[str, int]) -> dict[str, int]:
        """What was counted since the counters were ``zero``, once nothing is in flight."""
        return {name: value - zero.get(name, 0) for name, value in self.settled_stats().items()}


def wait_for(look: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What ``look`` returns once it is true."""
    until = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(Exception):
            found = look()
            if found:
                return found
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


@contextlib.contextmanager
def running_stack(folder: Path, *flags: str, **environ: str) -> Iterator[Stack]:
    """A stack from ready to stopped."""
    up = subprocess.run([*SYMPOSIA, "up", "--detach", "--dir", str(folder), *flags], capture_output=True, text=True, env=clean_environ(**environ),
                        timeout=180, check=False)
    assert up.returncode == 0, up.stdout + up.stderr + _logs(folder)
    stack = Stack(folder)
    try:
        yield stack
    finally:
        stack.client.close()
        subprocess.run([*SYMPOSIA, "down", "--dir", str(folder)], capture_output=True, env=clean_environ(), timeout=120, check=False)


def _logs(folder: Path) -> str:
    return "".join(f"\n== {p.name}\n{p.read_text()[-2000:]}" for p in sorted((folder / "logs").glob("*.log")))
