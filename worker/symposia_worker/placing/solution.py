"""Where each checkpoint is to live, and how good that is known to be."""

from __future__ import annotations

from pydantic import Field

from symposia_shared.values import Value
from symposia_worker.placing.problem import Precision


class Placed(Value):
    """One copy of a checkpoint on one pool."""

    checkpoint: str
    pool: str
    bytes: int
    precision: Precision
    #: of the checkpoint's traffic, if work is shared as planned
    share: float = Field(ge=0, le=1 + 1e-6)
    #: what that makes of the device's time
    load: float = Field(ge=0)


class Plan(Value):
    """A placement. Both objectives are told with the bound the solver proved: none can be better than that."""

    placed: tuple[Placed, ...]
    #: checkpoints that are on no device
    left_out: tuple[str, ...] = ()
    #: share of all tokens asked for that a resident checkpoint answers, and the most that any placement could reach
    served: float
    served_bound: float
    #: load of the busiest device, and the least that any placement of these checkpoints could reach
    peak: float
    peak_bound: float
    #: ``solver`` or ``greedy``
    by: str
    seconds: float

    @property
    def served_gap(self) -> float:
        """How far ``served`` may be from the best, as a share of it."""
        return max(0.0, 1 - self.served / self.served_bound) if self.served_bound > 0 else 0.0

    @property
    def peak_gap(self) -> float:
        """How far ``peak`` may be from the best, as a share of the bound."""
        return max(0.0, self.peak / self.peak_bound - 1) if self.peak_bound > 0 else 0.0

    def on(self, pool: str) -> tuple[Placed, ...]:
        """What lives on a pool, the busiest first."""
        return tuple(sorted((p for p in self.placed if p.pool == pool), key=lambda p: (-p.load, p.checkpoint)))

    def of(self, checkpoint: str) -> tuple[Placed, ...]:
        """Where a checkpoint lives."""
        return tuple(p for p in self.placed if p.checkpoint == checkpoint)

    def load(self, pool: str) -> float:
        """A pool's load."""
        return sum(p.load for p in self.placed if p.pool == pool)
