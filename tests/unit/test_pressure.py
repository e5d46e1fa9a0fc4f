"""Back-pressure and fair shares, on a real Valkey: what is refused, what a queued job takes, who is served first."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from ledgers import QUEUE, claim_one, new_job, one_job, placed
from shelf import Shelf
from symposia import Busy, Client, Inference
from symposia_shared.archive import Archive
from symposia_shared.ledger import Claim, Ledger, Seat
from symposia_shared.settings import LimitSettings, Settings
from symposia_worker.tickets import Tickets
from valkey_server import emptied

MIB = 2**20


@pytest.fixture
def ledger(server: Ledger) -> Iterator[Ledger]:
    yield emptied(server)
    server.redis.config_set("maxmemory", 0)


@pytest.fixture
def client(url: str, ledger: Ledger, tmp_path: Path) -> Iterator[Client]:
    made = Client(settings=Settings(broker_url=SecretStr(url), message_key=SecretStr("k" * 24), prefix="t:", dir=tmp_path))
    made.__dict__["archive"] = Archive(Shelf())  # type: ignore[arg-type]
    placed(ledger)
    yield made
    made.close()


# -- limits ----------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_records_nothing_of_what_it_refused(ledger: Ledger) -> None:
    placed(ledger, m="q", n="r")
    limits = LimitSettings(queue=3)
    answers = ledger.submit([new_job(str(i)) for i in range(5)] + [new_job("other", model="n")], limits=limits)
    assert answers[:3] == ["ok q"] * 3
    assert {a.split(" ")[0] for a in answers[3:]} == {"busy"}  # the one behind too, or a caller who stops at the first would not know of it
    assert ledger.stats()["jobs_in_flight"] == 3
    # Another queue has room of its own, and once a turn is claimed so has this one
    assert ledger.submit([new_job("other", model="n")], limits=limits) == ["ok r"]
    claim_one(ledger)
    assert ledger.submit([new_job("4")], limits=limits) == ["ok q"]


def test_the_number_of_jobs_in_flight_is_bounded(ledger: Ledger) -> None:
    one_job(ledger, "a")
    claim_one(ledger)
    assert ledger.submit([new_job("b")], limits=LimitSettings(jobs=1))[0].startswith("busy 5 jobs 1 ")


def test_when_to_come_again_follows_from_the_measured_rate(ledger: Ledger) -> None:
    # Given a queue of 100, a limit of 100, and ten turns a second claimed from it
    placed(ledger)
    ledger.submit([new_job(str(i)) for i in range(100)])
    ledger.redis.hset(ledger.key("drain"), QUEUE, f"{int(ledger.now_s() * 1000)} 0 10.000")
    word, seconds, what, count, queue = ledger.submit([new_job("x")], limits=LimitSettings(queue=100))[0].split(" ")
    # Then a tenth of the limit is free in a second
    assert (word, seconds, what, count, queue) == ("busy", "1", "queue", "100", QUEUE)
    ledger.redis.hset(ledger.key("drain"), QUEUE, f"{int(ledger.now_s() * 1000)} 0 0.500")
    assert ledger.submit([new_job("x")], limits=LimitSettings(queue=100))[0].startswith("busy 20 ")


def test_the_rate_is_measured_by_what_is_claimed(ledger: Ledger) -> None:
    placed(ledger)
    ledger.submit([new_job(str(i)) for i in range(20)])
    ledger.redis.hset(ledger.key("drain"), QUEUE, f"{int(ledger.now_s() * 1000) - 6000} 52 0")
    ledger.claim(most=8, pools=1, queues=[QUEUE])
    _, had, rate = ledger.redis.hget(ledger.key("drain"), QUEUE).split(" ")
    assert had == "0"
    assert 9.0 < float(rate) <= 10.0


def test_a_full_queue_is_a_typed_error_with_a_time_to_come_again(client: Client) -> None:
    client.settings = client.settings.model_copy(update={"limits": LimitSettings(queue=2)})
    with pytest.raises(Busy, match="2 turns wait on q") as refused:
        client.submit_many([Inference(model="m", prompt="?")] * 3)
    assert refused.value.retry_after_s == 5.0
    assert refused.value.exit_code == 3
    assert client.stats()["jobs_in_flight"] == 2


# -- memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 400, 4_000, 100_000])
def test_a_queued_job_takes_less_than_two_kilobytes_whatever_its_prompt(client: Client, size: int) -> None:
    redis = client.ledger.redis
    client.submit(Inference(model="m", prompt="warm"))
    before = int(redis.info("memory")["used_memory"])
    for _ in range(500):
        client.submit(Inference(model="m", prompt="x" * size))
    assert (int(redis.info("memory")["used_memory"]) - before) / 500 < 2_000


def test_admission_stops_below_maxmemory_while_what_is_queued_runs(client: Client) -> None:
    redis = client.ledger.redis
    client.submit(Inference(model="m", prompt="before"))
    redis.config_set("maxmemory", int(int(redis.info("memory")["used_memory"]) / 0.79))
    with pytest.raises(Busy, match="share of its maxmemory"):
        client.submit_many([Inference(model="m", prompt="x" * 400)] * 2000)
    taken = client.stats()["jobs_in_flight"]
    assert 1 <= taken < 2000
    (claim,) = client.ledger.claim(most=1, pools=1, queues=[QUEUE]).claims
    assert client.ledger.record([(claim, "{}", True, True)])[0].closed == "all"


def test_at_maxmemory_a_submit_leaves_nothing_half_written_and_work_still_ends(client: Client) -> None:
    # Given a Redis that is full to the brim, by whatever else is in it
    ledger, redis = client.ledger, client.ledger.redis
    client.submit(Inference(model="m", prompt="before"))
    client.settings = client.settings.model_copy(update={"limits": LimitSettings(memory=1.0)})
    redis.set("t:ballast", secrets.token_hex(2 * MIB))
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) - MIB)
    keys = set(redis.scan_iter("*"))
    # When a job is submitted, then it is refused as busy and nothing of it is there
    for limits in (client.settings.limits, LimitSettings(memory=1.0)):
        with pytest.raises(Busy):
            client.submit_records([client.record_of("new", Inference(model="m", prompt="x"))])
        assert ledger.redis.exists(ledger.key("job:new")) == 0, limits
    assert set(redis.scan_iter("*")) == keys
    # And what was there is claimed, renewed, recorded and forgotten all the same
    (claim,) = ledger.claim(most=8, pools=1, queues=[QUEUE]).claims
    assert ledger.renew([(claim.seat, claim.fence)]) == []
    assert ledger.record([(claim, "{}", True, True)])[0].closed == "all"
    ledger.sweep(expire=True)
    assert ledger.forget(claim.seat.job_id, state="done", kind="inference")
    assert client.stats()["jobs_in_flight"] == 0


def test_redis_own_refusal_is_busy_too(client: Client) -> None:
    redis = client.ledger.redis
    redis.set("t:ballast", secrets.token_hex(2 * MIB))
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) - MIB)
    with pytest.raises(Busy, match="maxmemory"):
        client.ledger.place("another", {"m": {"queue": "q"}})


# -- fair shares -----------------------------------------------------------------------------------------------------------


def collaboration(ledger: Ledger, job_id: str, turns: int, *, queue: str = QUEUE, **more: object) -> None:
    """A job with an open round of so many turns on one queue."""
    ledger.submit([new_job(job_id, kind="ensemble", **more)])
    assert ledger.open(job_id, 0, deadline_ms=10**15, quorum=0, settle_from=0, chord=False, digest="", turns=[(queue, "{}", False)] * turns) == "won"


def order(ledger: Ledger, *, at_once: int = 1, queues: tuple[str, ...] = (QUEUE,)) -> list[Claim]:
    """All turns in the order they are claimed."""
    claimed: list[Claim] = []
    while found := ledger.claim(most=at_once, pools=1, queues=queues).claims:
        claimed += found
    return claimed


def jobs(claims: list[Claim]) -> list[str]:
    return [c.seat.job_id for c in claims]


def test_a_single_prompt_is_not_behind_the_thousand_turns_of_a_job_that_came_first(ledger: Ledger) -> None:
    placed(ledger)
    collaboration(ledger, "busy", 1000)
    ledger.submit([new_job("single")])
    assert jobs(order(ledger, at_once=8)).index("single") <= 1


def test_even_where_each_of_the_thousand_rings_for_itself(ledger: Ledger) -> None:
    # Given doorbells that each name a turn of the busy job, as they stand in the Celery queue
    placed(ledger)
    collaboration(ledger, "busy", 1000)
    ledger.submit([new_job("single")])
    rung = [ledger.claim(most=1, pools=1, queues=[QUEUE], named=Seat("busy", 0, i)) for i in range(500, 503)]
    assert [c.claims[0].seat.job_id for c in rung].count("single") == 1
    assert rung[0].named == "queued"


def test_two_busy_jobs_take_turns(ledger: Ledger) -> None:
    placed(ledger)
    collaboration(ledger, "a", 20)
    collaboration(ledger, "b", 20)
    claimed = jobs(order(ledger))
    for k in range(2, 40, 2):
        assert abs(claimed[:k].count("a") - claimed[:k].count("b")) <= 1


def test_the_jobs_of_one_tag_share_one_place_in_the_line(ledger: Ledger) -> None:
    placed(ledger)
    ledger.submit([new_job(f"batch-{i}", tags=("nightly",)) for i in range(50)])
    ledger.submit([new_job(f"other-{i}", tags=("web",)) for i in range(5)])
    first = jobs(order(ledger))[:10]
    assert sum(1 for j in first if j.startswith("other")) == 5
    assert ledger.redis.exists(ledger.key(f"line:{QUEUE}")) == 0


def test_classes_come_in_their_order_and_age_outweighs_them(ledger: Ledger) -> None:
    placed(ledger)
    for job_id, priority in (("batch", "batch"), ("normal", ""), ("interactive", "interactive")):
        ledger.submit([new_job(job_id, priority=priority)])
    # Given a batch that was queued eleven minutes ago
    ledger.submit([new_job("old", priority="batch")])
    ledger.redis.zincrby(ledger.key(f"ready:{QUEUE}"), -660_000, "old|0|0")
    assert jobs(order(ledger)) == ["old", "interactive", "normal", "batch"]


def test_one_busy_checkpoint_does_not_keep_another_of_its_pool_waiting(ledger: Ledger) -> None:
    placed(ledger, m="q", n="r")
    ledger.submit([new_job(f"busy-{i}") for i in range(100)])
    ledger.submit([new_job(f"quiet-{i}", model="n") for i in range(3)])
    for at_once in (1, 4):
        claimed = jobs(order(ledger, at_once=at_once, queues=("q", "r")))[:6]
        assert sum(1 for j in claimed if j.startswith("quiet")) == 3
        ledger.submit([new_job(f"busy-{at_once}-{i}") for i in range(20)])
        ledger.submit([new_job(f"quiet-{at_once}-{i}", model="n") for i in range(3)])


def test_a_turn_whose_pool_died_is_not_put_behind_its_job_again(ledger: Ledger) -> None:
    placed(ledger)
    collaboration(ledger, "a", 30)
    lost = order(ledger)[:20][-1]
    ledger.hand_back([(lost.seat, lost.fence)], killed=True)
    collaboration(ledger, "b", 30)
    assert lost.seat in [c.seat for c in order(ledger)[:2]]


@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["", "x", "y"])), min_size=1, max_size=8), st.integers(1, 8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_turn_is_claimed_once_and_no_party_waits_for_another_longer_than_its_own_line(server: Ledger, given_jobs: list[tuple[int, str]],
                                                                                            at_once: int) -> None:
    ledger = emptied(server)
    placed(ledger)
    for n, (turns, tag) in enumerate(given_jobs):
        collaboration(ledger, str(n), turns, tags=(tag,) if tag else ())
    claimed = order(ledger, at_once=at_once)
    # Each turn once, and nothing is left behind
    assert Counter(c.seat for c in claimed) == Counter(Seat(str(n), 0, i) for n, (turns, _) in enumerate(given_jobs) for i in range(turns))
    assert ledger.redis.exists(ledger.key(f"ready:{QUEUE}"), ledger.key(f"line:{QUEUE}"), ledger.key("queues")) == 0
    # The k-th turn of a party comes before the (k + 2)-th of any other
    party = [given_jobs[int(c.seat.job_id)][1] or c.seat.job_id for c in claimed]
    totals = Counter(party)
    seen: Counter[str] = Counter()
    for who in party:
        seen[who] += 1
        for other in totals:
            assert seen[who] <= min(seen[other] + 2, totals[who]) or seen[other] == totals[other]


def test_a_pool_takes_no_more_of_batches_than_is_said_however_long_they_have_waited(ledger: Ledger) -> None:
    placed(ledger)
    ledger.submit([new_job(f"batch-{n}", priority="batch") for n in range(20)])
    for n in range(20):  # they were queued an hour ago, so that age has brought them before everything else
        ledger.redis.zincrby(ledger.key(f"ready:{QUEUE}"), -3_600_000, f"batch-{n}|0|0")
    ledger.submit([new_job("asked", priority="interactive")])
    taken = [c.seat.job_id for c in ledger.claim(most=4, pools=1, queues=[QUEUE], batch=3).claims]
    assert len(taken) == 4
    assert "asked" in taken, "the fourth is no batch's"
    assert ledger.claim(most=4, pools=1, queues=[QUEUE], batch=0).claims == ()
    assert ledger.claim(most=1, pools=1, queues=[QUEUE], batch=0, named=Seat("batch-9", 0, 0)).named == "queued"
    assert len(ledger.claim(most=100, pools=1, queues=[QUEUE]).claims) == 17, "what was passed over is still there"


def test_a_pool_leaves_one_slot_in_sixteen_for_what_is_of_no_batch() -> None:
    tickets = Tickets(32)
    assert tickets.reserve(8) == 8
    assert tickets.for_batches(8) == 8
    assert tickets.reserve(100) == 24
    assert tickets.for_batches(24) == 22
    small = Tickets(4)
    assert small.for_batches(small.reserve(4)) == 4


def test_what_somebody_waits_for_comes_before_the_batch_of_the_same_tenant(ledger: Ledger) -> None:
    placed(ledger)
    ledger.submit([new_job(f"batch-{n}", priority="batch", tags=("tenant:t", "batch:b")) for n in range(200)])
    ledger.submit([new_job("asked", priority="interactive", tags=("tenant:t",))])
    assert [c.seat.job_id for c in ledger.claim(most=1, pools=1, queues=[QUEUE]).claims] == ["asked"]
    while ledger.claim(most=50, pools=1, queues=[QUEUE]).claims:
        pass
    assert not ledger.redis.exists(ledger.key(f"line:{QUEUE}"))
