"""A clock that jumps under the ledger."""

from __future__ import annotations

import time
from pathlib import Path

from ledgers import QUEUE, claim_one, one_job
from symposia_shared.ledger import Ledger
from symposia_worker.coordinator import Clocks
from valkey_server import running_valkey


def test_a_jump_of_either_direction_is_seen_once_and_a_slow_answer_is_none() -> None:
    clocks = Clocks()
    looks = [(1000.0, 5.0), (1000.5, 5.5), (1001.4, 6.0), (4601.4, 6.5), (4601.9, 7.0), (4000.0, 7.5), (4000.5, 8.0)]
    assert [clocks.jumped(redis, ours) for redis, ours in looks] == [False, False, False, True, False, True, False]


def test_a_lease_from_before_the_clock_was_set_back_ends_all_the_same(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as url:
        # Given a dead pool's lease that ends in an hour by the clock as it now is
        ledger = Ledger(url, "t:")
        one_job(ledger, "a")
        seat = claim_one(ledger).seat
        ledger.redis.zadd(ledger.key("leases"), {seat.key: (time.time() + 3600) * 1000})
        # When the sweep has seen it, then it ends within ten seconds
        ledger.sweep(expire=True)
        assert ledger.redis.zscore(ledger.key("leases"), seat.key) <= (time.time() + 10) * 1000
        ledger.redis.zadd(ledger.key("leases"), {seat.key: 1})
        ledger.sweep(expire=True)
        assert claim_one(ledger, queue=QUEUE).seat == seat


def test_one_glance_tells_the_server_s_run_its_clock_and_what_is_due(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as url:
        ledger = Ledger(url, "t:")
        redis, soon = ledger.redis, (time.time() + 3600) * 1000
        # Given a schedule that is due, notices of which none is yet, and a batch
        redis.zadd(ledger.key("occurrences"), {"late": 1, "soon": soon})
        redis.zadd(ledger.key("notices"), {"evt_1": soon})
        redis.zadd(ledger.key("batches"), {"batch_1": soon})
        seen = ledger.glance()
        assert seen.due == {"occurrences", "batches"}
        assert seen.run_id == redis.info("server")["run_id"]
        assert abs(seen.now_s - time.time()) < 60
        assert 0 <= seen.uptime_s < 600
        # and when their time has come and the others are gone
        redis.zadd(ledger.key("notices"), {"evt_1": 1})
        redis.zadd(ledger.key("tellings"), {"job": 1})
        redis.delete(ledger.key("occurrences"), ledger.key("batches"))
        assert ledger.glance().due == {"notices", "tellings"}
