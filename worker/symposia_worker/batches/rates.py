"""How fast the lines of a batch end."""

from __future__ import annotations

import time

#: seconds over which a rate is taken
WINDOW_S = 5.0
#: lines in flight from which on the pools are taken to be full, so that what is measured is what they can do
FULL = 32


class Rates:
    """Lines a second of late; by model where the pools were full for a whole window."""

    def __init__(self) -> None:
        self.lines_per_s: float | None = None
        self._since = time.monotonic()
        self._lines: dict[str, int] = {}
        self._full = True
        self._measured: dict[str, float] = {}

    def ended(self, model: str) -> None:
        """A line of this model has ended."""
        self._lines[model] = self._lines.get(model, 0) + 1

    def look(self, now: float, *, in_flight: int) -> None:
        """Close a window that is over."""
        self._full = self._full and in_flight >= FULL
        passed = now - self._since
        if passed < WINDOW_S:
            return
        fresh = sum(self._lines.values()) / passed
        self.lines_per_s = fresh if self.lines_per_s is None else (self.lines_per_s + fresh) / 2
        if self._full:
            self._measured = {model: lines / passed for model, lines in self._lines.items()}
        self._since, self._lines, self._full = now, {}, True

    def take_measured(self) -> dict[str, float]:
        """What was measured since this was asked last."""
        found, self._measured = self._measured, {}
        return found
