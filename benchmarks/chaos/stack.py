"""A stack for the chaos suite: started in a folder of its own, its processes found by role."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from symposia import Client
from symposia.cli.info import running
from symposia_shared.errors import SymposiaError
from symposia_shared.settings import load

SYMPOSIA = (sys.executable, "-m", "symposia")


class Stack:
    """A running stack."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.folder, self.client = folder, client

    def processes(self) -> list[dict[str, Any]]:
        """Role, pid and device of each process, as the supervisor last wrote them; [] while it writes."""
        with contextlib.suppress(SymposiaError):
            found: list[dict[str, Any]] = running(self.folder)["processes"]
            return found
        return []

    def pids(self, role: str) -> list[int]:
        """The pids of a role's processes that run now."""
        return [p["pid"] for p in self.processes() if p["role"] == role and p["pid"]]

    def logs(self) -> str:
        """The last words of each log."""
        return "".join(f"\n== {p.name}\n{p.read_text(errors='replace')[-2000:]}" for p in sorted((self.folder / "logs").glob("*.log")))


def environ(more: Mapping[str, str]) -> dict[str, str]:
    """The environment without any deployment's settings, but for ``more``."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SYMPOSIA_")} | dict(more)


@contextlib.contextmanager
def running_stack(folder: Path, *, devices: str, broker_url: str | None = None, flower: bool = False) -> Iterator[Stack]:
    """A stack of the scripted checkpoints, from ready to stopped. ``broker_url``: a broker of the caller's in place of the embedded one."""
    more = {} if broker_url is None else {"SYMPOSIA_BROKER_URL": broker_url}
    command = [*SYMPOSIA, "up", "--detach", "--test-models", *([] if flower else ["--no-flower"]), f"--devices={devices}", "--dir", str(folder)]
    up = subprocess.run(command, capture_output=True, text=True, env=environ(more), timeout=300, check=False)
    settings = load(folder)
    if broker_url is not None:
        settings = settings.model_copy(update={"broker_url": type(settings).model_validate({"broker_url": broker_url}).broker_url})
    stack = Stack(folder, Client(settings=settings))
    try:
        if up.returncode:
            raise RuntimeError(f"the stack did not start:\n{up.stdout}{up.stderr}{stack.logs()}")
        yield stack
    finally:
        stack.client.close()
        subprocess.run([*SYMPOSIA, "down", "--dir", str(folder)], capture_output=True, env=environ(more), timeout=300, check=False)


def send(pid: int, number: signal.Signals) -> bool:
    """Signal a process; False where it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(look: Callable[[], bool], within_s: float, *, stop: threading.Event | None = None) -> bool:
    """Whether ``look`` came true in time, without ``stop`` being set. An answer that cannot be had is none."""
    until = time.monotonic() + within_s
    while time.monotonic() < until and not (stop and stop.is_set()):
        with contextlib.suppress(SymposiaError):
            if look():
                return True
        time.sleep(0.1)
    return False
