"""Finds the batches nobody drives and drives them, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Set

from symposia_shared.batches.files import Files
from symposia_shared.batches.records import Batches
from symposia_shared.erasing import Places
from symposia_shared.errors import SymposiaError, Unavailable
from symposia_shared.retention import DAY_S, has_a_life
from symposia_shared.settings import RetentionSettings
from symposia_worker.batches.drive import Drive, Seams
from symposia_worker.sleeping import Sleep

log = logging.getLogger(__name__)


def _old_files(places: Places, lives: RetentionSettings) -> int:
    """Delete the files that have outlived ``files_days``, but those that a batch still reads."""
    if lives.files_days is None:
        return 0
    store = places.archive.store
    return Files(places.ledger, store).delete_older(time.time() - lives.files_days * DAY_S, keep=Batches(places.ledger, store).inputs())


has_a_life("files", _old_files)

#: seconds between two looks for batches where nobody says that there are any, and for files whose time has come
LOOK_S, EXPIRE_S = 2.0, 60.0
#: batches driven at once by one coordinator; others wait in the order they came
MOST_DRIVEN = 32


class Driver:
    """Drives batches while it is started."""

    def __init__(self, seams: Seams, *, name: str) -> None:
        self.seams = seams
        # a coordinator that was killed and is started again is another one: what it had known is gone
        self.owner = f"{name}:{uuid.uuid4().hex[:8]}"
        self._sleep = Sleep()
        self._drives: dict[str, threading.Thread] = {}
        self._thread = threading.Thread(target=self._loop, name="batches", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; another coordinator may take the batches at once."""
        self._sleep.end()
        for thread in (self._thread, *self._drives.values()):
            if thread.is_alive():
                thread.join(timeout=10.0)
        try:
            for batch_id in self._drives:
                self.seams.batches.let_go(batch_id, self.owner)
        except Unavailable as error:
            log.warning("batches are let go by the clock: %s", error)

    def heed(self, due: Set[str]) -> None:
        """Look now if there are batches."""
        if "batches" in due:
            self._sleep.wake()

    def _loop(self) -> None:
        expired_at = time.monotonic()
        while self._sleep.rested(LOOK_S):
            try:
                self._look()
                if time.monotonic() - expired_at > EXPIRE_S:
                    expired_at = time.monotonic()
                    self.seams.files.delete_expired(keep=self.seams.batches.inputs())
            except SymposiaError as error:
                log.warning("batches: %s", error)
            except Exception:
                log.exception("batches")

    def _look(self) -> None:
        self._drives = {i: t for i, t in self._drives.items() if t.is_alive()}
        for batch_id in self.seams.batches.active():
            if len(self._drives) >= MOST_DRIVEN:
                return
            if batch_id not in self._drives and self.seams.batches.hold(batch_id, self.owner) != "":
                thread = threading.Thread(target=Drive(batch_id, self.seams, self.owner, self._sleep.over).run, name=f"drive {batch_id}", daemon=True)
                self._drives[batch_id] = thread
                thread.start()
