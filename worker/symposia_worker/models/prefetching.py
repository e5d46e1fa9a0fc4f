"""``python -m symposia_worker.models.prefetching``: fetch what is wished for into the model cache, behind everything else on the machine.

One process per cache does it, at the lowest priority the system has. It waits while a live load downloads, hands a checkpoint
that somebody waits for over where it is, and lets a wish of a higher priority go first. A pool starts it when there is
something to fetch; killed, it goes on at the range it was at.
"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from symposia_shared.errors import Damaged, StoreUnavailable, SymposiaError, Unavailable, UnknownModel
from symposia_shared.settings import Settings
from symposia_worker.models.cache import ModelCache, shared_cache
from symposia_worker.models.locks import hold_shared, try_locked
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.room import bytes_named
from symposia_worker.models.store import ModelStore, Progress, silent
from symposia_worker.models.wishes import Wish
from symposia_worker.stack import tether

log = logging.getLogger(__name__)

#: seconds between two looks for something to fetch, and the longest wait after a process that failed
_LOOK_S, _LONGEST_S = 2.0, 60.0
#: seconds between two looks whether a live load has ended
_PAUSE_S = 0.1
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}


class SteppedAside(Exception):
    """Something else comes first; what was fetched is kept."""


class Prefetcher:
    """Fetches the wishes of a cache, one after another.

    ``prefetch_bytes``: what may lie there unused, beside the cache's own budget; ``keep_free``: bytes of the disk it leaves.
    """

    def __init__(self, cache: ModelCache, models: ModelStore, *, prefetch_bytes: int | None = None, keep_free: int = 0,
                 progress: Progress = silent, store_pause_s: float = 5.0) -> None:
        self.cache, self.models, self.wishes = cache, models, cache.wishes
        self.prefetch_bytes, self.keep_free = prefetch_bytes, keep_free
        self._progress, self._store_pause_s = progress, store_pause_s

    def run(self) -> bool:
        """Fetch until nothing is queued. False: another process does so for this cache."""
        with try_locked(self.wishes.worker_lock) as alone:
            while alone and (wish := self.wishes.next()) is not None:
                self._one(wish)
            return alone

    def _one(self, wish: Wish) -> None:
        try:
            manifest = self.models.require(wish.id)
            self._within_budget(wish, manifest)
            asked = self.cache.asked(manifest, priority=wish.priority, budget=self.cache.budget_bytes, keep_free=self.keep_free)
            self.cache.prefetch(self.models, wish.id, asked, progress=self._watching(wish, manifest))
            self.wishes.arrived(wish.id, manifest.size)
        except SteppedAside as aside:
            log.info("%s: %s", wish.id, aside)
        except StoreUnavailable as error:
            log.warning("%s is tried again: %s", wish.id, error)
            time.sleep(self._store_pause_s)
        except (Unavailable, Damaged, UnknownModel) as error:
            log.warning("%s is not fetched: %s", wish.id, error)
            self.wishes.refuse(wish.id, str(error))

    def _watching(self, wish: Wish, manifest: Manifest) -> Progress:
        """Progress that steps aside where something comes first."""
        def watch(what: str, done: int, total: int) -> None:
            self._progress(f"{what} of {wish.id}", done, total)
            while True:
                if self.cache.is_wanted(manifest):
                    raise SteppedAside(f"a live load takes over at {done:,} of {total:,} bytes")
                first = self.wishes.next()
                if first is None or first.id != wish.id:
                    raise SteppedAside(f"{first.id if first else 'nothing'} comes first; {done:,} of {total:,} bytes are kept")
                if not self.cache.live:
                    return
                time.sleep(_PAUSE_S)
        return watch

    def _within_budget(self, wish: Wish, manifest: Manifest) -> None:
        """Let go what is wished for less, until this one fits what may lie there unused. Raises Unavailable with the numbers."""
        if self.prefetch_bytes is None:
            return
        here = [w for w in self.wishes.all() if w.state == "here" and w.id != wish.id]
        over = sum(w.bytes for w in here) + manifest.size - self.prefetch_bytes
        less = [w for w in reversed(here) if w.priority < wish.priority]
        if over > sum(w.bytes for w in less):
            raise Unavailable(f"{wish.id} needs {manifest.size:,} bytes; {self.prefetch_bytes:,} may be prefetched, {sum(w.bytes for w in here):,} are, of "
                              f"which {sum(w.bytes for w in less):,} are wanted less. Raise SYMPOSIA_PREFETCH_BYTES, or end a wish: "
                              "symposia models prefetch --cancel ID")
        for one in less:
            if over <= 0:
                return
            for cached in [c for c in self.cache.contents() if c.id == one.id]:
                self.cache.room.evict(cached)
            self.wishes.gone(one.id, wish.id)
            over -= one.bytes


def prefetcher(cache: Path, models: ModelStore, *, progress: Progress = silent) -> Prefetcher:
    """The prefetcher of a cache folder, with the budgets the environment names (SYMPOSIA_PREFETCH_BYTES, SYMPOSIA_KEEP_FREE_BYTES)."""
    return Prefetcher(shared_cache(cache), models, prefetch_bytes=bytes_named("SYMPOSIA_PREFETCH_BYTES"),
                      keep_free=bytes_named("SYMPOSIA_KEEP_FREE_BYTES") or 0, progress=progress)


class Watch:
    """A thread that starts the process whenever something is queued for ``cache``, as long as this process lives."""

    def __init__(self, cache: Path, settings: Settings) -> None:
        self._cache, self._settings = cache, settings
        self._wishes = ModelCache(cache / "models").wishes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="prefetch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """No longer start a process; one that runs ends with this one."""
        self._over.set()

    def _look(self) -> None:
        wait = _LOOK_S
        try:
            hold = hold_shared(self._wishes.watch_lock)
        except OSError as error:
            log.warning("nothing is prefetched: %s", error)
            return
        while not self._over.wait(wait):
            try:
                ended = self._run() if self._wishes.next() is not None else 0
            except OSError as error:
                log.warning("prefetch: %s", error)
                ended = 1
            wait = _LOOK_S if ended == 0 else min(_LONGEST_S, 2 * wait)
        os.close(hold)

    def _run(self) -> int:
        with try_locked(self._wishes.worker_lock) as idle:
            if not idle:
                return 0
        command = [sys.executable, "-I", "-S", tether.__file__, "--parent", str(os.getpid()), sys.executable, "-m", __name__, str(self._cache)]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, **self._settings.environ()})
        while not self._over.wait(0.5):
            if (ended := child.poll()) is not None:
                return ended
        child.terminate()
        return child.wait()


def _behind_everything() -> None:
    """The lowest priority there is, on the processor and on the disk."""
    with suppress(OSError):
        os.nice(19)
    number = _IOPRIO_SET.get(os.uname().machine)
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, 1, 0, 3 << 13)  # this process, the class "idle"


def main(argv: list[str]) -> int:
    """0: nothing is queued any more, or another process fetches it."""
    from symposia_shared.settings import load
    from symposia_shared.store import Store

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _behind_everything()
    try:
        prefetcher(Path(argv[0]), ModelStore(Store(load().s3))).run()
    except SymposiaError as error:
        log.error("prefetch: %s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
