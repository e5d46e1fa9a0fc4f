"""A thread's sleep between two looks, which ends early where somebody knows that there is something to see."""

from __future__ import annotations

import threading


class Sleep:
    """One thread sleeps, any may wake it or end it for good."""

    def __init__(self) -> None:
        #: set once the thread is to end
        self.over = threading.Event()
        self._woken = threading.Event()

    def wake(self) -> None:
        """End the sleep; where nobody sleeps, the next one."""
        self._woken.set()

    def end(self) -> None:
        """Sleep no more."""
        self.over.set()
        self._woken.set()

    def rested(self, seconds: float) -> bool:
        """Sleep at most so long; False where the thread is to end."""
        self._woken.wait(seconds)
        self._woken.clear()
        return not self.over.is_set()
