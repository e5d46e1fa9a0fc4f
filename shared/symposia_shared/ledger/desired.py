"""The desired placement, kept in Redis: what each pool is to serve. Pools read it as they run and as they come back.

    desired  hash  version, and by pool the checkpoints it is to hold (JSON), each with its precision and planned bytes

A pool that is not named in it serves what it was started with. Each write has the next version, so that a pool which was away
knows by one number whether anything has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from symposia_shared.ledger import Ledger, away
from symposia_shared.values import Value

_VERSION = "#version"


class Assigned(Value):
    """A checkpoint a pool is to hold. ``bytes``: what it is planned to fill, 0 where that is not known."""

    checkpoint: str
    #: None: what the pool serves it in by itself
    precision: str | None = None
    bytes: int = 0


class Desired:
    """The desired placement of a deployment. Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.key = ledger.key("desired")

    @property
    def version(self) -> int:
        """Of the last write; 0: none was made."""
        with away():
            return int(self.ledger.redis.hget(self.key, _VERSION) or 0)

    def of(self, pool: str) -> tuple[int, tuple[Assigned, ...] | None]:
        """The version, and what ``pool`` is to hold; None: it is not named."""
        with away():
            version, rows = self.ledger.redis.hmget(self.key, [_VERSION, pool])
        return int(version or 0), None if rows is None else _assigned(rows)

    def all(self) -> tuple[int, dict[str, tuple[Assigned, ...]]]:
        """The version, and what each pool named is to hold."""
        with away():
            stored: dict[str, str] = self.ledger.redis.hgetall(self.key)
        version = int(stored.pop(_VERSION, 0))
        return version, {pool: _assigned(rows) for pool, rows in sorted(stored.items())}

    def write(self, pools: Mapping[str, Sequence[Assigned]]) -> int:
        """Replace the whole of it, in one step. Returns its version; with no pool named, each serves what it was started with."""
        rows = {pool: json.dumps([json.loads(a.to_json()) for a in assigned]) for pool, assigned in pools.items()}

        def change(pipe: Any) -> int:
            version = int(pipe.hget(self.key, _VERSION) or 0) + 1
            pipe.multi()
            pipe.delete(self.key)
            pipe.hset(self.key, mapping={_VERSION: version, **rows})
            return version

        with away():
            return int(self.ledger.redis.transaction(change, self.key, value_from_callable=True))

    def refusals(self, pool: str) -> dict[str, str]:
        """Checkpoint → why ``pool`` could not take it up."""
        with away():
            rows: dict[str, str] = self.ledger.redis.hgetall(self.ledger.key("refusals"))
        return {name.partition(" ")[2]: why for name, why in sorted(rows.items()) if name.partition(" ")[0] == pool}


def _assigned(rows: str) -> tuple[Assigned, ...]:
    return tuple(Assigned.parse(row) for row in json.loads(rows))
