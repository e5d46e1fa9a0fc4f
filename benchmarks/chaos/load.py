"""The producer: so many jobs in flight at once, each submitted until it is acknowledged and waited for until it has ended."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.chaos.jobs import Asked
from benchmarks.chaos.stack import Stack
from symposia import Handle, Result
from symposia_shared.errors import BadInput, Busy, NotYet, SymposiaError, Unavailable

T = TypeVar("T")


@dataclass
class Ended:
    """What the producer saw of one job."""

    asked: Asked
    #: whether its submission was acknowledged: a handle came back
    taken: bool = False
    state: str = ""
    #: sha256 of the result's bytes as read when the job had ended
    digest: str = ""
    result: Result | None = None
    wrong: str = ""
    took_s: float = 0.0


@dataclass
class Load:
    """A run's producer. ``more(n)`` tells whether an n-th job is to be asked."""

    stack: Stack
    draw: Callable[[int], Asked]
    more: Callable[[int], bool]
    in_flight: int
    #: seconds a job may take to end, kills and all
    patience_s: float = 600.0
    ended: list[Ended] = field(default_factory=list)
    #: told each job once it has ended, or was given up
    on_end: Callable[[Ended], None] = lambda _: None
    halt: threading.Event = field(default_factory=threading.Event)
    _next: int = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> list[Ended]:
        """Submit and wait until there is no more; returns what was seen of each job."""
        with ThreadPoolExecutor(self.in_flight, thread_name_prefix="producer") as threads:
            for done in [threads.submit(self._one_by_one) for _ in range(self.in_flight)]:
                done.result()
        return self.ended

    def _one_by_one(self) -> None:
        while not self.halt.is_set():
            with self._mutex:
                number = self._next
                if not self.more(number):
                    return
                self._next += 1
                seen = Ended(self.draw(number))
                self.ended.append(seen)
            began = time.monotonic()
            try:
                self._through(seen)
            except (SymposiaError, OSError, AssertionError) as error:
                seen.wrong = f"{type(error).__name__}: {error}"
            seen.took_s = time.monotonic() - began
            self.on_end(seen)

    def _through(self, seen: Ended) -> None:
        until = time.monotonic() + self.patience_s
        handle = self._submitted(seen.asked, until)
        seen.taken = True
        if seen.asked.cancel_after_s is not None:
            time.sleep(seen.asked.cancel_after_s)
            _insisted(lambda: self.stack.client.cancel(handle.job_id), until)
        found = _insisted(lambda: handle.wait(max(1.0, until - time.monotonic())), until)
        body = _insisted(lambda: self.stack.client.archive.store.get(f"jobs/{handle.job_id}/result.json"), until)
        seen.state, seen.result, seen.digest = found.state, found, hashlib.sha256(body or b"").hexdigest()

    def _submitted(self, asked: Asked, until: float) -> Handle:
        """Its handle. A submission that was cut off is repeated under the job's id; "submitted before" then means that it was recorded."""
        client = self.stack.client

        def submit() -> Handle:
            try:
                return client.submit(asked.job, job_id=asked.job_id, delay_s=asked.delay_s)
            except BadInput as error:
                if error.field != "job_id":
                    raise
                return client.handle(asked.job_id)

        return _insisted(submit, until)


def _insisted(act: Callable[[], T], until: float) -> T:
    """What ``act`` returns, tried again while a service is away, as an application would."""
    while True:
        try:
            return act()
        except NotYet:
            raise
        except Unavailable as error:
            if time.monotonic() > until:
                raise
            time.sleep(min(1.0, error.retry_after_s) if isinstance(error, Busy) and error.retry_after_s else 0.2)
