"""What tenants may ask for, and what their idempotency keys stand for, as the ledger has it. Every function raises BrokerUnavailable."""

from __future__ import annotations

from symposia_shared.ledger import Ledger, away
from symposia_shared.ledger.gate import EVERYONE, Limits, Once
from symposia_shared.ledger.tenants import checked_tenant


class Allowances:
    """The limits of a deployment's tenants. A change holds for every process from the next request on."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def of(self, tenant: str) -> Limits:
        """What holds for a tenant: its own limits, else everyone's, else none."""
        with away():
            own, every = self.ledger.redis.hmget(self.ledger.key("limits"), [tenant, EVERYONE])
        return Limits.from_json(own or every or "{}")

    def set(self, tenant: str, limits: Limits) -> None:
        """Give a tenant limits of its own, or with ``*`` all that have none."""
        with away():
            self.ledger.redis.hset(self.ledger.key("limits"), tenant if tenant == EVERYONE else checked_tenant(tenant), limits.to_json())

    def clear(self, tenant: str) -> bool:
        """Forget a tenant's own limits. False where it had none."""
        with away():
            return bool(self.ledger.redis.hdel(self.ledger.key("limits"), tenant))

    def all(self) -> dict[str, Limits]:
        """Who has limits of its own."""
        with away():
            found = self.ledger.redis.hgetall(self.ledger.key("limits"))
        return {tenant: Limits.from_json(found[tenant]) for tenant in sorted(found)}

    def in_flight(self, tenant: str) -> int:
        """A tenant's jobs in flight that count against its limits."""
        with away():
            return int(self.ledger.redis.scard(self.ledger.key(f"metered:{tenant}")))


def found_once(ledger: Ledger, once: Once) -> Once | None:
    """What a key stands for already, None where it is new. Raises KeyReused."""
    with away():
        stored = ledger.redis.get(ledger.key(f"once:{once.name}"))
    return None if stored is None else once.check(Once.from_json(stored))
