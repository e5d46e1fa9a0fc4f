"""Which checkpoints have passed their self-test in this process: one that comes back is the same network over the same files.

A self-test is some thirty forward passes, three quarters of what it takes to load a small checkpoint. It asks whether batched decoding fits an
architecture under these libraries on this device; whether the weights are those that were stored is asked by their digests, when they are fetched.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

#: checkpoints that are remembered
_MOST = 4096


class Passed:
    """What their tests returned, by folder, precision and the state of their files (size, time of change, inode)."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], int] = OrderedDict()

    def once(self, folder: Path, dtype: str, test: Callable[[], int]) -> int:
        """What ``test`` returned when it passed over these files; it runs where it has not. What it raises is not remembered."""
        key = (str(folder), dtype, *_state(folder))
        if key not in self._known:
            found = test()
            self._known[key] = found
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def _state(folder: Path) -> list[tuple[str, int, int, int]]:
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return [(name, seen.st_size, seen.st_mtime_ns, seen.st_ino) for name, seen in found]
