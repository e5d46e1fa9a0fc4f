"""What becomes of spooled replies between two processes of a pool: their leases are held while the next one loads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from ledgers import QUEUE, claim_one, one_job
from symposia_shared.ledger import Ledger
from symposia_shared.turns import Completion
from symposia_worker.keeping import hold_leases
from symposia_worker.spool import Spool, Spooled
from valkey_server import running_valkey


def test_the_leases_of_spooled_replies_are_held_and_one_that_went_to_another_is_let_go(tmp_path: Path) -> None:
    with running_valkey(tmp_path / "v") as url:
        ledger = Ledger(url, "t:")
        spool = Spool(tmp_path / "s", 10_000)
        # Given two spooled replies whose leases have been lost meanwhile, one of them to another pool
        claims = []
        for job in ("kept", "given"):
            one_job(ledger, job)
            claims.append(claim_one(ledger))
            spool.put(Spooled.of(claims[-1], time.time(), Completion(text="computed").to_json()))
        for claim in claims:
            ledger.redis.zadd(ledger.key("leases"), {claim.seat.key: 1})
        ledger.sweep(expire=True)
        (other,) = ledger.claim(most=1, pools=2, queues=[QUEUE]).claims
        lost, kept = (claims[0], claims[1]) if other.seat == claims[0].seat else (claims[1], claims[0])
        # When the pool's next process loads
        loaded = threading.Event()
        thread = threading.Thread(target=hold_leases, args=(ledger, Spool(tmp_path / "s", 10_000).restore(), loaded))
        thread.start()
        until = time.monotonic() + 20
        while ledger.redis.zscore(ledger.key("leases"), kept.seat.key) is None:
            assert time.monotonic() < until, "the lease was not taken back"
            time.sleep(0.01)
        loaded.set()
        thread.join()
        # Then the first is its own again and is recorded, and the second is the other's
        assert ledger.claim(most=8, pools=1, queues=[QUEUE]).claims == ()
        answers = ledger.record([(kept, "{}", True, False), (lost, "{}", True, False), (other, "{}", True, False)])
        assert [a.status for a in answers] == ["ok", "stale", "ok"]
