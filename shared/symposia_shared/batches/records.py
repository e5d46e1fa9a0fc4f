"""The batches of a deployment as Redis has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from redis.exceptions import WatchError

from symposia_shared.batches.values import ENDED, Batch, Counts, Order, Status
from symposia_shared.errors import UnknownJob
from symposia_shared.ledger import Ledger, away
from symposia_shared.store import Store

#: milliseconds for which a driver holds a batch without a word
HOLD_MS = 6_000
#: batches of a tenant that are kept in Redis; older ones that have ended are read from S3
MOST_KEPT = 10_000


class Batches:
    """The batches. Each step may be repeated. Methods raise BrokerUnavailable, and ``get`` StoreUnavailable."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self.ledger, self.store = ledger, store
        folder = resources.files("symposia_shared.batches") / "scripts"
        self._hold, self._let_go, self._move = (ledger.redis.register_script((folder / f"{name}.lua").read_text()) for name in ("hold", "let_go", "move"))

    # -- from the producer's side

    def add(self, order: Order, *, total: int) -> bool:
        """Record a batch; from now on a coordinator drives it. False where there is one with its id, which is left as it is."""
        fields = {"rec": order.to_json(), "st": "validating", "at:validating": order.created_at, "total": total, "try": 1,
                  "ends": order.created_at + order.window_s}
        with away(), self.ledger.redis.pipeline(transaction=True) as pipe:
            pipe.watch(self.key(order.id))
            if pipe.exists(self.key(order.id)):
                return False
            pipe.multi()
            pipe.hset(self.key(order.id), mapping=fields)
            pipe.zadd(self._of(order.tenant), {order.id: order.created_at})
            pipe.zadd(self.ledger.key("batches"), {order.id: order.created_at})
            try:
                pipe.execute()
            except WatchError:
                return False
        return True

    def get(self, batch_id: str, *, tenant: str | None = None) -> Batch:
        """A batch as it stands. Raises UnknownJob, also where it is another tenant's."""
        with away():
            stored = self.ledger.redis.hgetall(self.key(batch_id))
        found = _batch(stored) if stored else self._archived(batch_id)
        if found is None or (tenant is not None and found.order.tenant != tenant):
            raise UnknownJob(f"there is no batch {batch_id[:80]!r}.", field="batch_id", value=batch_id, remedy="List them: `symposia batch list`.")
        return found

    def of_tenant(self, tenant: str, *, most: int, after: str | None = None) -> tuple[list[Batch], bool]:
        """The newest batches first, from behind ``after`` on; and whether there are more."""
        redis, key = self.ledger.redis, self._of(tenant)
        with away():
            start = 0
            if after is not None:
                rank = redis.zrevrank(key, after)
                if rank is None:
                    raise UnknownJob(f"there is no batch {after[:80]!r}.", field="after", value=after, remedy="Leave 'after' out.")
                start = int(rank) + 1
            ids = redis.zrevrange(key, start, start + most)
            with redis.pipeline(transaction=False) as pipe:
                for batch_id in ids[:most]:
                    pipe.hgetall(self.key(batch_id))
                rows = pipe.execute()
        return [_batch(row) for row in rows if row], len(ids) > most

    def cancel(self, batch_id: str) -> bool:
        """Ask for a batch's end. False where it ends already."""
        return self.move(batch_id, ("validating", "in_progress"), "cancelling", end="cancelled")

    def resume(self, batch: Batch, *, expires_at: int, keep: Sequence[int]) -> bool:
        """Begin again with what an ended batch has left; ``keep``: the spans of which nothing is left."""
        with away():
            names = [n for n in self.ledger.redis.hkeys(self.key(batch.id)) if n.startswith("c:") and int(n[2:]) not in keep]
            fields: dict[str, object] = {"end": "", "try": batch.attempt + 1, "ends": expires_at, **dict.fromkeys(names, "")}
        return self.move(batch.id, ("cancelled", "expired"), "in_progress", **fields)

    # -- from the driver's side

    def active(self) -> list[str]:
        """Those that have not ended, oldest first."""
        with away():
            found: list[str] = self.ledger.redis.zrange(self.ledger.key("batches"), 0, -1)
        return found

    def inputs(self) -> set[str]:
        """The files that batches read which have not ended."""
        with away(), self.ledger.redis.pipeline(transaction=False) as pipe:
            for batch_id in self.active():
                pipe.hget(self.key(batch_id), "rec")
            return {Order.from_json(text).input_file_id for text in pipe.execute() if text}

    def active_of(self, tenant: str | None = None) -> list[Batch]:
        """Those of a tenant, or of all, as they stand."""
        with away(), self.ledger.redis.pipeline(transaction=False) as pipe:
            for batch_id in self.active():
                pipe.hgetall(self.key(batch_id))
            found = [_batch(row) for row in pipe.execute() if row]
        return [b for b in found if tenant in (None, b.order.tenant)]

    def hold(self, batch_id: str, driver: str) -> str:
        """Take or keep a batch; returns its status, ``''`` where another driver has it, ``gone``."""
        with away():
            answer: str = self._hold(keys=[self.key(batch_id)], args=[driver, HOLD_MS])
        return answer

    def let_go(self, batch_id: str, driver: str) -> None:
        """Have another driver take it at once, where this one holds it."""
        with away():
            self._let_go(keys=[self.key(batch_id)], args=[driver])

    def drop(self, batch_id: str) -> None:
        """Forget that an id that is gone was active."""
        with away():
            self.ledger.redis.zrem(self.ledger.key("batches"), batch_id)

    def move(self, batch_id: str, come_from: Sequence[Status], to: Status, **fields: object) -> bool:
        """Move it on, once; a field given as '' is removed."""
        flat = [x for name, value in fields.items() for x in (name, str(value))]
        with away():
            keys = [self.key(batch_id), self.ledger.key("batches")]
            return bool(self._move(keys=keys, args=[batch_id, " ".join(come_from), to, int(to in ENDED), *flat]))

    def begun(self, batch_id: str) -> int:
        """The highest span of which a line may have been submitted; -1: none."""
        with away():
            return int(self.ledger.redis.hget(self.key(batch_id), "hi") or -1)

    def begin(self, batch_id: str, span: int) -> None:
        """Say that lines of this span are about to be submitted."""
        with away():
            self.ledger.redis.hset(self.key(batch_id), "hi", span)

    def marked(self, batch_id: str) -> dict[int, Counts]:
        """The spans whose parts are in S3, with their counts."""
        with away():
            stored = self.ledger.redis.hgetall(self.key(batch_id))
        return _marked(stored)

    def mark(self, batch_id: str, span: int, counts: Counts, *, live: Counts) -> None:
        """A span's parts are in S3; ``live``: the counts of those that stay open. Once: what is marked stays."""
        with away(), self.ledger.redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(self.key(batch_id), f"c:{span}", counts.to_json())
            pipe.hset(self.key(batch_id), "live", live.to_json())
            pipe.execute()

    def tell(self, batch_id: str, live: Counts, *, rate: float | None) -> None:
        """How far the open spans are."""
        with away():
            self.ledger.redis.hset(self.key(batch_id), mapping={"live": live.to_json(), **({} if rate is None else {"rate": f"{rate:.3f}"})})

    def end(self, batch_id: str, come_from: Sequence[Status], to: Status, **fields: object) -> bool:
        """Move a batch to its end. S3 has it as it will be before, so that no kill leaves an ended batch that S3 does not have."""
        with away():
            stored: dict[str, str] = self.ledger.redis.hgetall(self.key(batch_id))
            now = int(self.ledger.redis.time()[0])
        if stored.get("st") not in come_from:
            return False
        self._archive(_batch(_moved(stored, to, now, fields)))
        if not self.move(batch_id, come_from, to, **fields):
            return False
        self.ended(self.get(batch_id))
        return True

    def ended(self, batch: Batch) -> None:
        """Keep an ended batch in S3, and no more of its tenant's in Redis than are kept."""
        self._archive(batch)
        redis, key = self.ledger.redis, self._of(batch.order.tenant)
        with away():
            over = int(redis.zcard(key)) - MOST_KEPT
            for old in redis.zrange(key, 0, over - 1) if over > 0 else ():
                if redis.hget(self.key(old), "st") in ENDED:
                    redis.zrem(key, old)
                    redis.unlink(self.key(old))

    # -- how fast

    def throughput(self) -> dict[str, float]:
        """Model → lines a second, as batches that kept their place full have measured it."""
        with away():
            return {m: float(v.split(" ")[0]) for m, v in self.ledger.redis.hgetall(self.ledger.key("throughput")).items()}

    def measured(self, rates: Mapping[str, float], *, now_s: float) -> None:
        """What was measured; of an earlier figure a half stays."""
        before = self.throughput()
        rows = {model: f"{(rate + before.get(model, rate)) / 2:.4f} {now_s:.0f}" for model, rate in rates.items()}
        if rows:
            with away():
                self.ledger.redis.hset(self.ledger.key("throughput"), mapping=rows)

    def key(self, batch_id: str) -> str:
        """The key of its hash."""
        return self.ledger.key(f"batch:{batch_id}")

    def _of(self, tenant: str) -> str:
        return self.ledger.key(f"batches:{tenant}")

    def _archive(self, batch: Batch) -> None:
        self.store.put(f"batches/{batch.id}/batch.json", batch.to_json().encode())

    def _archived(self, batch_id: str) -> Batch | None:
        body = self.store.get(f"batches/{batch_id}/batch.json") if batch_id.startswith("batch_") and batch_id.isascii() and "/" not in batch_id else None
        return None if body is None else Batch.from_json(body)


def _moved(h: Mapping[str, str], to: Status, now_s: int, fields: Mapping[str, object]) -> dict[str, str]:
    """What ``move.lua`` makes of a hash where ``to`` is an end."""
    found = {**h, "st": to, f"at:{to}": str(now_s), **{name: str(value) for name, value in fields.items()}}
    return {name: value for name, value in found.items() if name != "live" and not (name in fields and value == "")}


def _marked(h: Mapping[str, str]) -> dict[int, Counts]:
    return {int(name[2:]): Counts.from_json(text) for name, text in h.items() if name.startswith("c:")}


def _batch(h: Mapping[str, str]) -> Batch:
    counts = Counts.from_json(h["live"]) if "live" in h else Counts()
    if "sum" in h:
        counts = counts.plus(Counts.from_json(h["sum"]))
    for found in _marked(h).values():
        counts = counts.plus(found)
    order = Order.from_json(h["rec"])
    at = {name[3:]: int(value) for name, value in h.items() if name.startswith("at:")}
    faults: list[dict[str, Any]] = json.loads(h.get("why", "[]"))
    status: Any = h["st"]
    end: Any = h.get("end", "")
    return Batch(order=order, status=status, at=at, total=int(h.get("total", 0)), counts=counts, attempt=int(h.get("try", 1)), end=end,
                 expires_at=int(h["ends"]), output_file_id=h.get("out"), error_file_id=h.get("err"), faults=tuple(faults),
                 rate=float(h["rate"]) if "rate" in h and status not in ENDED else None)
