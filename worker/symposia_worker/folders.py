"""The folders of the model cache that a pool's residents are read from."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path

from symposia_worker.models.cache import ModelCache, shared_cache


class FoldersInUse:
    """Each stays on disk while a resident uses it: an adapter's base may be resident by itself, too. Safe between threads."""

    def __init__(self, cache: Path) -> None:
        self._at = cache
        self._cache: ModelCache | None = None
        #: by resident, what it uses by its id in the model store
        self._used: dict[str, frozenset[str]] = {}
        self._mutex = threading.Lock()

    @property
    def cache(self) -> ModelCache:
        """One for all: what an object has fetched only the same one releases. Raises BadInput where its budget is none."""
        with self._mutex:
            if self._cache is None:
                self._cache = shared_cache(self._at)
            return self._cache

    def put(self, resident: str, used: Collection[str]) -> frozenset[str]:
        """Note what a resident uses from now on, before it is fetched, and release what nobody uses any more. Returns what it used before."""
        with self._mutex:  # released under the lock: who notes a folder next fetches it after this
            before = self._used.pop(resident, frozenset())
            if used:
                self._used[resident] = frozenset(used)
            for stored in before - frozenset[str]().union(*self._used.values()):
                if self._cache is not None:
                    self._cache.release(stored)
            return before
