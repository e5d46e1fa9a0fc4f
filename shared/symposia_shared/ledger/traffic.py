"""What has been asked of each checkpoint lately, in tokens, added up by the pools' heartbeats.

    traffic:N  hash  checkpoint → tokens read and written in the N-th stretch of ten minutes; forgotten after a day
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from symposia_shared.ledger import Ledger, away

#: seconds of a stretch, and for how long it is kept
STRETCH_S, KEPT_S = 600, 86_400


class Traffic:
    """The traffic of a deployment. Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def add(self, tokens: Mapping[str, int]) -> None:
        """Add what a pool has read and written since it last told."""
        if not tokens:
            return
        key = self.ledger.key(f"traffic:{int(self.ledger.now_s()) // STRETCH_S}")
        with away(), self.ledger.redis.pipeline(transaction=False) as pipe:
            for checkpoint, count in tokens.items():
                pipe.hincrby(key, checkpoint, count)
            pipe.expire(key, KEPT_S)
            pipe.execute()

    def rates(self, *, over_s: float = 3600.0) -> dict[str, float]:
        """Checkpoint → tokens a second over the last ``over_s`` seconds, of which the oldest stretch counts whole."""
        now = self.ledger.now_s()
        first = int(max(now - over_s, 0)) // STRETCH_S
        stretches = range(first, int(now) // STRETCH_S + 1)
        with away(), self.ledger.redis.pipeline(transaction=False) as pipe:
            for number in stretches:
                pipe.hgetall(self.ledger.key(f"traffic:{number}"))
            rows = pipe.execute()
        total: Counter[str] = Counter()
        for row in rows:
            total.update({checkpoint: int(count) for checkpoint, count in row.items()})
        return {checkpoint: count / (now - first * STRETCH_S) for checkpoint, count in sorted(total.items())}
