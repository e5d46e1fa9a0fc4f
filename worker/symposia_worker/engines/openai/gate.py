"""The way to a server: so many requests at once, all of them held while it asks to wait or refuses the key."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from symposia_worker.engines.openai.faults import Hopeless

#: seconds between two tries, doubling from the first to the last
FIRST_S, LONGEST_S = 0.25, 30.0
#: seconds a device that refused the key is left alone
REFUSED_S = 30.0


class Gate:
    """Lives in one event loop."""

    def __init__(self, most: int) -> None:
        self._slots = asyncio.Semaphore(most)
        self._open_at = 0.0
        self._throttled = 0
        self.running = 0
        self.refused_until = 0.0
        self.refused_why = ""

    @asynccontextmanager
    async def passed(self, *, within_s: float) -> AsyncIterator[None]:
        """A slot, once the server takes requests. Raises Hopeless where that is further off than ``within_s``."""
        async with self._slots:
            while (wait := self._open_at - time.monotonic()) > 0:
                if wait > within_s:
                    raise Hopeless("throttled", f"the server asks to wait {wait:.0f} s, longer than this turn may")
                await asyncio.sleep(wait * random.uniform(1.0, 1.05))  # noqa: S311 - jitter, so that not all come at once
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1

    def pause(self, after_s: float | None) -> float:
        """Hold every request, ``after_s`` seconds or ever longer where the server does not say; returns for how long."""
        wait = backoff(self._throttled + 2) if after_s is None else after_s
        self._throttled += 1
        self._open_at = max(self._open_at, time.monotonic() + wait)
        return wait

    def passes(self) -> None:
        """A request was taken: the next pause begins small again."""
        self._throttled = 0

    def refuse(self, why: str) -> None:
        """The key was refused."""
        self.refused_until, self.refused_why = time.monotonic() + REFUSED_S, why

    @property
    def refused(self) -> str:
        """Why requests are refused now, "" where they are not."""
        return self.refused_why if time.monotonic() < self.refused_until else ""


def backoff(attempt: int) -> float:
    """Seconds before try ``attempt`` + 1, jittered, so that many do not come at once."""
    return float(min(LONGEST_S, FIRST_S * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0))  # noqa: S311
