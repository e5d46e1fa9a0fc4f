"""A part of the stack: what to run; and the process that runs it now."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from symposia_worker.stack import tether
from symposia_worker.stack.state import Condition, Process, Role

#: a log larger than this at a start is put aside as ``NAME.log.1``
LOG_BYTES = 8 * 1024 * 1024
#: bytes of free disk under which a silent death is laid to it
LEAST_DISK = 1024 * 1024
#: seconds to wait before the n-th start in a row of a part that keeps dying; the last holds for all further ones
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 5.0)
#: seconds such a wait lasts at most where the process was ready and was killed from outside: it is not one that cannot start
KILLED_S = 1.0
#: seconds a process must live for its death to count as a first one again
STEADY_S = 30.0
#: what Celery, Flower and SeaweedFS would take from a user's environment although the stack says otherwise
#: and an endpoint's key, which only the pool on it is given
FOREIGN = re.compile(r"CELERY_|FLOWER_|WEED_|S3_BUCKET$|SYMPOSIA_OPENAI_API_KEY$")


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack, to be. ``ready(pid)`` tells whether it answers; ``grace_s`` is what its SIGTERM is given."""

    role: Role
    name: str
    command: tuple[str, ...]
    folder: Path
    log: Path
    ready: Callable[[int], bool]
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    device: str | None = None
    grace_s: float = 10.0
    #: a file whose lock the process holds for its life: two servers on one data folder would mix their writes
    lock: Path | None = None


class Child:
    """A part and its process, if it has one now. ``start`` must be called from the supervisor's main thread (see tether)."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.condition: Condition = "waiting"
        self.restarts = 0
        self.deaths = 0
        self.reason = ""
        self.start_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._began: float | None = None
        self._started_at = 0.0
        self._log_from = 0

    @property
    def pid(self) -> int | None:
        """The process' id, None while there is none."""
        return self._process.pid if self._process else None

    @property
    def row(self) -> Process:
        """This child as ``stack.json`` has it."""
        p = self.part
        return Process(role=p.role, name=p.name, pid=self.pid, device=p.device, state=self.condition, restarts=self.restarts,
                       began=self._began, reason=self.reason)

    def start(self, now: float, *, again: bool = False) -> None:
        """Start the process, tied to this one. Raises OSError where the system refuses one, or its log cannot be opened."""
        p = self.part
        self.restarts += again
        rotate(p.log)
        lock = ["--lock", str(p.lock)] if p.lock else []
        command = [sys.executable, "-I", "-S", tether.__file__, "--parent", str(os.getpid()), *lock, *p.command]
        with open(os.open(p.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._log_from = log.tell() or p.log.stat().st_size
            self._process = subprocess.Popen(command, env=dict(p.environ), cwd=p.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             start_new_session=True)
        self._started_at, self._began, self.condition = now, began(self._process.pid), "starting"

    def reap(self, now: float) -> int | None:
        """The exit status if the process has ended since; the next start is then due at ``start_at``."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        self.deaths = 1 if now - self._started_at > STEADY_S else self.deaths + 1
        killed = -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        wait_s = BACK_OFF_S[min(self.deaths, len(BACK_OFF_S)) - 1]
        self.start_at = now + (min(wait_s, KILLED_S) if killed and self.condition == "ready" else wait_s)
        # what was killed from outside did not know, and has not said why
        words = "" if killed else self.words() or _disk(self.part.log)
        self.reason = f"{_ended(status)}: {words}" if words else _ended(status)
        self._process, self._began, self.condition = None, None, "waiting"
        return status

    def postpone(self, now: float, reason: str) -> None:
        """Wait before the next try: this one could not even be made."""
        self.deaths += 1
        self.start_at, self.reason = now + BACK_OFF_S[min(self.deaths, len(BACK_OFF_S)) - 1], reason

    def words(self) -> str:
        """The last words in the log of the process that runs now."""
        return last_words(self.part.log, self._log_from)

    def look(self) -> bool:
        """Ask a starting process whether it answers. True at the moment it first does."""
        if self._process is None or self.condition != "starting" or not self.part.ready(self._process.pid):
            return False
        self.condition = "ready"
        return True

    def signal(self, number: signal.Signals) -> None:
        """Signal the process, if there is one."""
        if self._process is not None:
            self._process.send_signal(number)

    def gone(self) -> bool:
        """Whether there is no process, for a stop."""
        if self._process is not None and self._process.poll() is not None:
            self._process, self._began, self.condition = None, None, "ended"
        return self._process is None


def began(pid: int) -> float | None:
    """When a process began, None where there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of our own programs: the caller's, without what would redirect them, and ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    return {**kept, "PYTHONUNBUFFERED": "1", **extra}


def rotate(log: Path, most: int = LOG_BYTES) -> None:
    """Put a large log aside, over the one put aside before."""
    if log.exists() and log.stat().st_size > most:
        log.replace(log.with_name(log.name + ".1"))


def last_words(log: Path, start: int = 0, *, most: int = 400, lines: int = 3) -> str:
    """What a process wrote last since ``start``, in one line: of a traceback its last line, else the last ``lines``."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 16_384))
            written = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    words = written[-1:] if any(line.startswith("Traceback ") for line in written[-60:]) else written[-lines:]
    return " | ".join(words)[-most:]


def _disk(log: Path) -> str:
    """A full disk takes the last words, too."""
    return f"the disk under {log.parent} is full" if shutil.disk_usage(log.parent).free < LEAST_DISK else ""


def _ended(status: int) -> str:
    if status >= 0:
        return f"exit {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
