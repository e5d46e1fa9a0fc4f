"""When a silent engine process is taken to hang. It is silent while a step lasts, and on a busy machine a step may last minutes."""

from __future__ import annotations

import os
from pathlib import Path

#: a step may last so many times as long as the longest of the last ones
LONGER = 20.0
#: a process that computes may be silent for so many times as long as one that does nothing
PATIENCE = 10.0
#: of a core: less than this is no computing. On a machine with twenty busy processes a core one at nice 10 still gets that.
IDLE_SHARE = 0.005
_TICKS = os.sysconf("SC_CLK_TCK")


def silence_allowed_s(hang_after_s: float, *, longest_step_s: float, computes: bool) -> float:
    """Seconds a process with turns in flight may say nothing.

    ``hang_after_s``, or LONGER times the longest recent step where that is more; one that ``computes`` (a prompt's first step is longer than
    all before it) is given PATIENCE times ``hang_after_s`` at least. So one that waits for what never comes is found soon, one in an endless
    loop in the end, and one that is slow is left alone.
    """
    return max(hang_after_s * (PATIENCE if computes else 1.0), LONGER * longest_step_s)


class Effort:
    """What a process has computed, looked at again and again."""

    def __init__(self) -> None:
        self._looks: list[tuple[float, float]] = []

    def look(self, now: float, cpu_s: float | None) -> None:
        """Note the processor seconds used so far; None where they cannot be told, which then counts as computing."""
        self._looks.append((now, now if cpu_s is None else cpu_s))

    def computes(self, *, within_s: float) -> bool:
        """Whether it used its share of a core during the last ``within_s``, or since the first look where that is later."""
        if len(self._looks) < 2:
            return True
        last = self._looks[-1]
        while len(self._looks) > 2 and self._looks[1][0] <= last[0] - within_s:
            del self._looks[0]
        first = self._looks[0]
        return last[1] - first[1] >= IDLE_SHARE * (last[0] - first[0])


def cpu_seconds(pid: int) -> float | None:
    """Processor seconds of a process and its threads; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, ValueError, IndexError):
        return None
