"""The part all contenders share: read runs, let requests arrive when they are due, tell answers. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from benchmarks.engines.wire import Answer, Ready, Request, line, request_of

Tell = Callable[[Answer], None]
BEGAN = time.time()


class Arrivals:
    """A run's requests, each visible from its time on."""

    def __init__(self, requests: list[Request], began: float) -> None:
        self._left, self._began = sorted(requests, key=lambda r: r.at_s), began

    def __iter__(self) -> Iterator[Request]:
        """Each request at its time; sleeps between them."""
        while self._left:
            self.wait()
            yield from self.due()

    def due(self, most: int | None = None) -> list[Request]:
        """Those that have arrived since, at most ``most`` of them."""
        elapsed = time.time() - self._began
        count = sum(r.at_s <= elapsed for r in self._left)
        count = count if most is None else min(count, most)
        due, self._left = self._left[:count], self._left[count:]
        return due

    def wait(self) -> None:
        """Until another one has arrived; at once where none is to come."""
        while self._left and (rest := self._began + self._left[0].at_s - time.time()) > 0:
            time.sleep(rest)

    @property
    def to_come(self) -> bool:
        """Whether any has not been taken."""
        return bool(self._left)


class Contender(Protocol):
    """What a contender's program provides."""

    def facts(self) -> dict[str, str]:
        """Versions and settings."""
        ...

    def run(self, arrivals: Arrivals, tell: Tell) -> None:
        """Answer every request; returns when all are answered."""
        ...


def serve(make: Callable[[], Contender], *, pids: Callable[[], tuple[int, ...]] = tuple) -> None:
    """Load by ``make``, then run what comes on standard input until it ends."""
    # what libraries print must not reach the wire
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def write(text: str) -> None:
        with lock:
            out.write(text + "\n")
            out.flush()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("it was not ready in time"))  # so that what it has started is stopped
    contender = make()
    write(line("ready", Ready(load_s=round(time.time() - BEGAN, 2), facts=contender.facts(), pids=pids())))
    for asked in sys.stdin:
        requests = [request_of(raw) for raw in json.loads(asked)["requests"]]
        began = time.time()
        write(line("began", at=began))
        contender.run(Arrivals(requests, began), lambda answer: write(line("answer", answer)))
        write(line("over", at=time.time()))
    close = getattr(contender, "close", None)
    if close is not None:
        close()
    out.flush()
    os._exit(0)  # some libraries' threads do not end by themselves
