"""The stack's folder: where its files lie, and that one supervisor at a time holds it."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from symposia_shared.errors import StackUnavailable
from symposia_shared.settings import CREDENTIALS

#: seconds a start waits for a reader (``symposia info``) that holds the lock for an instant
READERS_S = 1.0
PROBE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Folder:
    """The layout. Everything in it is for its owner alone (mode 700)."""

    path: Path

    @staticmethod
    def of(dir: Path | None) -> Folder:
        """The folder of ``--dir``, of SYMPOSIA_DIR, or the default. No other setting is read: one that is wrong does not hide it."""
        return Folder(Path(dir or os.environ.get("SYMPOSIA_DIR") or Path.home() / ".symposia").expanduser().absolute())

    @property
    def lock(self) -> Path:
        """Held by the supervisor for its life; its text is the holder's pid."""
        return self.path / "lock"

    @property
    def state(self) -> Path:
        """``stack.json``: what runs now."""
        return self.path / "stack.json"

    @property
    def credentials(self) -> Path:
        """``credentials.json``: how to reach it, secrets included."""
        return self.path / CREDENTIALS

    @property
    def ports(self) -> Path:
        """``ports.json``: the loopback ports, chosen once."""
        return self.path / "ports.json"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.path / "logs"

    @property
    def broker(self) -> Path:
        """Valkey's data and configuration."""
        return self.path / "broker"

    @property
    def store(self) -> Path:
        """SeaweedFS' data and configuration."""
        return self.path / "store"

    def prepare(self) -> None:
        """Make the folder and its parts. Raises StackUnavailable where that is not possible."""
        probe = self.path / f".probe-{os.getpid()}"
        try:
            for part in (self.path, self.logs, self.broker, self.store, self.store / "data", self.path / "flower"):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            # enough for the files of a start: a full disk is better told now than by each part in its own way
            probe.write_bytes(bytes(PROBE_BYTES))
        except OSError as error:
            raise self.unwritable(error) from None
        finally:
            with suppress(OSError):
                probe.unlink()

    def unwritable(self, error: OSError) -> StackUnavailable:
        """``error``, met in this folder, with its remedy."""
        return StackUnavailable(f"The stack's folder {self.path} cannot be written ({error.strerror or error}). "
                                "Free space or change its rights, or choose another with --dir or SYMPOSIA_DIR.")

    def stack_id(self) -> str:
        """This stack's own name, made once: it tells two deployments under one Redis prefix apart."""
        path = self.path / "stack-id"
        if not path.exists():
            write_private(path, uuid.uuid4().hex + "\n")
        return path.read_text().strip()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the folder's only supervisor. Raises StackUnavailable naming the pid that is."""
        fd = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _locked(fd):
                raise StackUnavailable(f"A stack runs in {self.path} already (pid {self.holder() or 'unknown'}). "
                                       "Use it, stop it with `symposia down`, or choose another folder with --dir.")
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"pid": os.getpid()}).encode(), 0)
            yield
        finally:
            os.close(fd)

    def held(self) -> bool:
        """Whether a supervisor runs here, by its lock: a pid file may be stale, a lock cannot."""
        try:
            fd = os.open(self.lock, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def holder(self) -> int | None:
        """The pid written by the last supervisor; to be trusted only while ``held``."""
        try:
            return int(json.loads(self.lock.read_text())["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def write_private(path: Path, text: str) -> None:
    """Replace ``path`` at once, mode 600: a reader sees the old text or the new one, a crash leaves one of them."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _locked(fd: int) -> bool:
    deadline = time.monotonic() + READERS_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
