"""A sleep that a signal ends: ``time.sleep`` goes on after one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import TracebackType


class Alarm:
    """Python writes each signal's number into a pipe, and the sleeper listens at its other end. In the main thread only."""

    def __enter__(self) -> Alarm:
        self._heard, self._rung = os.pipe()
        for end in (self._heard, self._rung):
            os.set_blocking(end, False)
        self._before = signal.set_wakeup_fd(self._rung, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._rung)
        os.close(self._heard)

    def wait(self, seconds: float) -> None:
        """Sleep until a signal with a handler comes, or has come since the last sleep."""
        if select.select([self._heard], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._heard, 4096)
