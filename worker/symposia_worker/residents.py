"""Which checkpoints of a pool are resident, which of them may be asked, and how many turns of each run."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(slots=True)
class Resident:
    """A checkpoint on the device. Times are ``time.monotonic``'s."""

    bytes: int
    load_s: float
    asked_at: float
    running: int = 0
    #: whether turns of it may begin
    open: bool = True
    #: how long its turns take, a mean that forgets
    turn_s: float = 1.0


class Residents:
    """The residents of one pool. A turn enters and leaves; what runs is never unloaded. All methods are safe between threads."""

    def __init__(self) -> None:
        self._held: dict[str, Resident] = {}
        self._lock = threading.Lock()
        #: turns begun, by checkpoint, since the last ``begun``
        self._begun: dict[str, int] = {}

    def add(self, checkpoint: str, *, bytes: int, load_s: float) -> None:
        """It is resident now, and may be asked."""
        with self._lock:
            self._held[checkpoint] = Resident(bytes, load_s, time.monotonic())

    def enter(self, checkpoint: str) -> bool:
        """A turn begins, if it may."""
        with self._lock:
            held = self._held.get(checkpoint)
            if held is None or not held.open:
                return False
            held.running += 1
            held.asked_at = time.monotonic()
            self._begun[checkpoint] = self._begun.get(checkpoint, 0) + 1
            return True

    def leave(self, checkpoint: str, *, seconds: float) -> None:
        """A turn has ended after so many seconds."""
        with self._lock:
            held = self._held.get(checkpoint)
            if held is not None:
                held.running -= 1
                held.turn_s += 0.2 * (seconds - held.turn_s)

    def keep_open_all_but(self, closed: Collection[str]) -> None:
        """Turns of ``closed`` may no longer begin, those of all others may."""
        with self._lock:
            for name, held in self._held.items():
                held.open = name not in closed

    def take_out(self, checkpoint: str) -> bool:
        """It is to be unloaded: no longer resident for anybody. False where a turn of it runs, or it is not here."""
        with self._lock:
            held = self._held.get(checkpoint)
            if held is None or held.running:
                return False
            del self._held[checkpoint]
            return True

    def drop(self, checkpoint: str) -> None:
        """It is no longer resident, whatever runs."""
        with self._lock:
            self._held.pop(checkpoint, None)

    def measured(self, bytes_by_checkpoint: dict[str, int]) -> None:
        """What the engine says they take now; they are never thought to take less than they did."""
        with self._lock:
            for name, size in bytes_by_checkpoint.items():
                if name in self._held:
                    self._held[name].bytes = max(self._held[name].bytes, size)

    def begun(self) -> dict[str, int]:
        """Turns that began since the last call, by checkpoint."""
        with self._lock:
            begun, self._begun = self._begun, {}
            return begun

    def __contains__(self, checkpoint: object) -> bool:
        return checkpoint in self._held

    @property
    def all(self) -> dict[str, Resident]:
        """A snapshot."""
        with self._lock:
            return dict(self._held)

    @property
    def open(self) -> list[str]:
        """Those that may be asked."""
        with self._lock:
            return [name for name, held in self._held.items() if held.open]

    @property
    def some_closed(self) -> bool:
        """Whether turns of some may not begin."""
        with self._lock:
            return not all(held.open for held in self._held.values())
