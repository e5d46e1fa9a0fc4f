"""Bringing SeaweedFS' writes to the disk: it never does so itself, and a power cut would cost minutes instead of a second."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path


class DiskSync(threading.Thread):
    """Calls ``syncfs`` on a folder once a second; says so when the disk refuses, and when it takes writes again."""

    def __init__(self, folder: Path, say: Callable[[str], None], *, every_s: float = 1.0) -> None:
        super().__init__(name="disk-sync", daemon=True)
        self.folder, self.say, self.every_s = folder, say, every_s
        self._over = threading.Event()
        self._refused = False

    def run(self) -> None:
        while not self._over.wait(self.every_s):
            self._once()

    def stop(self) -> None:
        """End, after one last sync."""
        self._over.set()
        self.join()
        self._once()

    def _once(self) -> None:
        try:
            sync_disk(self.folder)
        except OSError as error:
            if not self._refused:
                self.say(f"the disk under {self.folder} does not take the store's writes ({error}); a power cut now would lose them")
            self._refused = True
        else:
            if self._refused:
                self.say(f"the disk under {self.folder} takes the store's writes again")
            self._refused = False


def sync_disk(folder: Path) -> None:
    """Write the file system of ``folder`` to its disk; all of them where the system knows no ``syncfs``. Raises OSError."""
    if sys.platform != "linux":
        os.sync()
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), f"syncfs of {folder}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
