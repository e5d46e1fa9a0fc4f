"""Erases what has outlived its stated life, beside the coordinator's watch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Set

from symposia_shared.archive import Archive
from symposia_shared.erasing import Places
from symposia_shared.errors import Unavailable
from symposia_shared.ledger import Ledger
from symposia_shared.retention import begin, has_a_life, sweep
from symposia_shared.reuse import Replies
from symposia_shared.settings import Settings

log = logging.getLogger(__name__)

#: seconds between looks whether a sweep is due, at most
LOOK_S = 30.0


class Sweeper:
    """One thread; of several coordinators' one sweeps at a time."""

    def __init__(self, ledger: Ledger, archive: Archive, settings: Settings) -> None:
        self.places, self.lives = Places(ledger, archive), settings.retention
        replies = Replies(archive.store, life_s=settings.limits.reuse_s)
        has_a_life("kept replies", lambda *_: len(replies.prune()))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="retention", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a sweep that runs is left where it is, and may be."""
        self._stop.set()

    def heed(self, due: Set[str]) -> None:
        """Nothing of this is urgent."""

    def _loop(self) -> None:
        while not self._stop.wait(min(LOOK_S, self.lives.every_s)):
            try:
                if begin(self.places, self.lives):
                    done = {name: n for name, n in sweep(self.places, self.lives).items() if n}
                    if done:
                        log.info("retention: %s", ", ".join(f"{n} {name}" for name, n in done.items()))
            except Unavailable as error:
                log.warning("retention waits: %s", error)
            except Exception:
                log.exception("retention")
