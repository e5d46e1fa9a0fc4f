"""How often a checkpoint is asked: arrivals, forgotten exponentially."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Demand:
    """The arrivals seen of one checkpoint, at two memories: what it does now, and what it usually does.

    The lower of the two rates counts: a checkpoint that has fallen silent is told from one that is merely slow, and one that was asked
    once from one that is asked all the time.
    """

    at_s: float = 0.0
    #: arrivals, each worth less by the factor e after ``memory_s``, and after LONGER times that
    short: float = 0.0
    long: float = 0.0
    #: when it was first looked at: a memory is no longer than the time there was to see
    since_s: float | None = None

    LONGER: ClassVar[float] = 8.0

    def seen(self, at_s: float, arrivals: int, *, memory_s: float) -> Demand:
        """This and ``arrivals`` more at ``at_s``, which is not before the last."""
        short, long = self._faded(at_s, memory_s)
        return Demand(at_s, short + arrivals, long + arrivals, at_s if self.since_s is None else self.since_s)

    def rate(self, at_s: float, *, memory_s: float) -> float:
        """Arrivals a second now."""
        if self.since_s is None:
            return 0.0
        short, long = self._faded(at_s, memory_s)
        age = max(at_s - self.since_s, 0.0) + memory_s / 2
        return min(short / _span(age, memory_s), long / _span(age, self.LONGER * memory_s))

    def _faded(self, at_s: float, memory_s: float) -> tuple[float, float]:
        gone = max(at_s - self.at_s, 0.0) / memory_s
        return self.short * math.exp(-gone), self.long * math.exp(-gone / self.LONGER)


def _span(age_s: float, memory_s: float) -> float:
    """Over how many seconds arrivals were gathered, each second worth what is left of it."""
    return memory_s * (1.0 - math.exp(-age_s / memory_s))
