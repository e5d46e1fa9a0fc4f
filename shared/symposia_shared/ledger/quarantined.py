"""Devices that are not trusted with turns for a while: kept in Redis, so that a pool that is started again knows, and a command can release it."""

from __future__ import annotations

import json

from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger, away
from symposia_shared.values import Value


class Quarantined(Value):
    """Why a pool's device is in quarantine. Times in epoch's seconds, by Redis' clock."""

    device: str
    reason: str
    since: float
    until: float


class Quarantines:
    """Those of a deployment. Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def impose(self, pool: str, device: str, reason: str, *, for_s: float) -> Quarantined:
        """Put a pool's device into quarantine for so long."""
        now = self.ledger.now_s()
        found = Quarantined(device=device, reason=reason[:500], since=now, until=now + for_s)
        with away():
            self.ledger.redis.hset(self.ledger.key("quarantined"), pool, found.to_json())
        return found

    def of(self, pool: str) -> Quarantined | None:
        """That of a pool, None where there is none, or its time is over."""
        with away():
            stored = self.ledger.redis.hget(self.ledger.key("quarantined"), pool)
        found = _read(stored)
        return None if found is None or self.ledger.now_s() >= found.until else found

    def all(self) -> dict[str, Quarantined]:
        """Pool → its quarantine, those included whose time is over and whose pool has not been seen to work since."""
        with away():
            stored = self.ledger.redis.hgetall(self.ledger.key("quarantined"))
        read = {pool: _read(text) for pool, text in stored.items()}
        return {pool: found for pool, found in read.items() if found is not None}

    def release(self, pool: str) -> bool:
        """End a quarantine now. False where there was none."""
        with away():
            return bool(self.ledger.redis.hdel(self.ledger.key("quarantined"), pool))


def _read(stored: str | None) -> Quarantined | None:
    """What is stored; what cannot be read holds nobody back."""
    try:
        return None if stored is None else Quarantined.parse(json.loads(stored))
    except (ValueError, BadInput):
        return None
