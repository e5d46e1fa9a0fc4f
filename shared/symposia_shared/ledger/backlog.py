"""What waits, by queue; and which checkpoints are never to be evicted, on any pool."""

from __future__ import annotations

from collections.abc import Collection

from symposia_shared.ledger import Ledger, away


def waiting(ledger: Ledger, queues: Collection[str]) -> dict[str, int]:
    """How many turns wait in those of ``queues`` that have any. Raises BrokerUnavailable."""
    with away():
        some = [queue for queue in ledger.redis.smembers(ledger.key("queues")) if queue in queues]
        with ledger.redis.pipeline(transaction=False) as pipe:
            for queue in some:
                pipe.zcard(ledger.key(f"ready:{queue}"))
            return {queue: int(count) for queue, count in zip(some, pipe.execute(), strict=True) if count}


def pins(ledger: Ledger) -> frozenset[str]:
    """The checkpoints that are pinned. Raises BrokerUnavailable."""
    with away():
        return frozenset(ledger.redis.smembers(ledger.key("pinned")))


def pin(ledger: Ledger, checkpoint: str, *, pinned: bool) -> bool:
    """Pin a checkpoint, or no longer. False where it was so already. Raises BrokerUnavailable."""
    with away():
        return bool((ledger.redis.sadd if pinned else ledger.redis.srem)(ledger.key("pinned"), checkpoint))
