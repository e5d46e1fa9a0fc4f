"""Locks between the processes of one machine: they end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def open_lock(path: Path) -> int:
    """A file descriptor of the lock file at ``path``, which is made where it is missing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone at ``path``, after waiting for whoever else is there: other threads too, for each opens the file for itself."""
    lock = open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def waiting_lock(path: Path, want: Path | None = None) -> Iterator[None]:
    """As ``locked``; whoever is there meanwhile can see by ``want`` that somebody waits."""
    lock = open_lock(path)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits = hold_shared(want) if want is not None else None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            finally:
                if waits is not None:
                    os.close(waits)
        yield
    finally:
        os.close(lock)


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Whether nobody else is at ``path``; if so, alone there meanwhile."""
    lock = open_lock(path)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def hold_shared(path: Path) -> int:
    """A shared hold on ``path`` until the descriptor returned is closed."""
    lock = open_lock(path)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock
