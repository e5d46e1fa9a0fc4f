"""Idempotency keys, tenants' limits and their use, on a real Valkey, by two clients that stand for two processes."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ledgers import QUEUE, claim_one, new_job, placed
from shelf import Shelf
from symposia import Busy, Client, Inference
from symposia.once import submit_behind
from symposia_shared.archive import Archive
from symposia_shared.errors import BadInput, KeyReused, Limited
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.allowances import Allowances
from symposia_shared.ledger.gate import Gate, Limits, Once, once_of
from symposia_shared.ledger.usage import Used, usage, used_by
from symposia_shared.prompts import Sampling
from symposia_shared.results import Result, RoundRecord, TurnRecord
from symposia_shared.settings import LimitSettings, Settings
from symposia_shared.turns import Completion, Kept, Usage
from valkey_server import emptied


@pytest.fixture
def ledger(server: Ledger) -> Ledger:
    emptied(server)
    placed(server)
    return server


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def clients(url: str, ledger: Ledger, shelf: Shelf, tmp_path: Path) -> Iterator[list[Client]]:
    made = [Client(settings=Settings(broker_url=SecretStr(url), message_key=SecretStr("k" * 24), prefix="t:", dir=tmp_path)) for _ in range(2)]
    for client in made:
        client.__dict__["archive"] = Archive(shelf)  # type: ignore[arg-type]
    yield made
    for client in made:
        client.close()


def question(text: str = "?", **fields: Any) -> Inference:
    return Inference(model="m", prompt=text, **fields)


# -- idempotency keys --------------------------------------------------------------------------------------------------------


def test_the_same_key_and_job_is_the_same_job_in_every_process_and_after_its_end(clients: list[Client], ledger: Ledger) -> None:
    first = clients[0].submit(question(), idempotency_key="k")
    assert clients[1].submit(question(), idempotency_key="k").job_id == first.job_id
    assert ledger.stats()["jobs_submitted"] == 1
    ledger.forget(first.job_id, state="done", kind="inference")
    assert clients[1].submit(question(), idempotency_key="k").job_id == first.job_id
    assert clients[0].submit(question(), idempotency_key="other").job_id != first.job_id


def test_a_job_that_draws_without_a_seed_is_the_same_job_all_the_same(clients: list[Client]) -> None:
    job = question(sampling=Sampling(temperature=1.0))
    assert clients[0].submit(job, idempotency_key="k").job_id == clients[1].submit(job, idempotency_key="k").job_id


def test_a_key_with_another_body_is_refused_with_both_digests(clients: list[Client], ledger: Ledger) -> None:
    clients[0].submit(question("one"), idempotency_key="k")
    with pytest.raises(KeyReused) as caught:
        clients[1].submit(question("two"), idempotency_key="k")
    digests = [once_of("default", "k", {"job": {"kind": "inference", "model": "m", "prompt": p}, "at": None, "delay_s": 0.0}).digest for p in ("one", "two")]
    assert all(d in str(caught.value) for d in digests)
    assert ledger.stats()["jobs_submitted"] == 1


def test_keys_belong_to_a_tenant(clients: list[Client]) -> None:
    mine, theirs = (clients[0].submit(question(tags=(f"tenant:{t}",)), idempotency_key="k") for t in ("a", "b"))
    assert mine.job_id != theirs.job_id


def test_many_at_once_become_one_job_and_leave_no_papers_behind(clients: list[Client], ledger: Ledger, shelf: Shelf) -> None:
    long, found, go = question("word " * 500), [], threading.Barrier(8)
    _ = [c.bell for c in clients]

    def submit(n: int) -> None:
        go.wait()
        found.append(clients[n % 2].submit(long, idempotency_key="k").job_id)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(found)) == 1
    assert len(found) == 8
    assert ledger.stats()["jobs_submitted"] == 1
    assert [key.rpartition("-")[0] for key in shelf.bodies] == [f"jobs/{found[0]}/job"]


def test_another_job_under_an_id_in_flight_is_refused_and_has_written_over_nothing(clients: list[Client], shelf: Shelf) -> None:
    clients[0].submit(question("word " * 500), job_id="mine")
    papers = dict(shelf.bodies)
    for refused in (lambda: clients[1].submit(question("other " * 500), job_id="mine"),
                    lambda: clients[1].submit_many([question("third " * 500)], job_ids=["mine"])):
        with pytest.raises(BadInput, match="submitted before"):
            refused()
    assert papers
    assert {key: shelf.bodies[key] for key in papers} == papers


def test_a_repetition_under_the_same_id_leaves_the_jobs_papers_as_they_were(clients: list[Client], ledger: Ledger, shelf: Shelf) -> None:
    long = question("word " * 500, sampling=Sampling(temperature=1.0))
    clients[0].submit(long, job_id="mine", idempotency_key="k")
    papers = dict(shelf.bodies)
    assert [key.rpartition("-")[0] for key in papers] == ["jobs/mine/job"]
    # When it is repeated where the key is not yet seen (as if both came at once), and when the id is taken under another key
    record = clients[1].record_of("mine", long.seeded(int(once_of("default", "k", {}).name[-12:], 16)))
    once = Once.from_json(ledger.redis.get(f"t:once:{once_of('default', 'k', {}).name}"))
    assert [h.job_id for h in submit_behind(clients[1], [record], Gate(once=once, life_ms=1)).handles] == ["mine"]
    assert shelf.bodies == papers
    with pytest.raises(BadInput, match="submitted before"):
        clients[1].submit(long, job_id="mine", idempotency_key="other")
    assert list(shelf.bodies) == list(papers)


def test_a_refused_job_binds_no_key(clients: list[Client], ledger: Ledger) -> None:
    with pytest.raises(BadInput):
        clients[0].submit(Inference(model="nobody", prompt="?"), idempotency_key="k")
    assert clients[0].submit(question(), idempotency_key="k").job_id  # another body, and the key is free
    full = Client(settings=clients[0].settings.model_copy(update={"limits": LimitSettings(queue=1)}))
    full.__dict__["archive"] = clients[0].archive
    with pytest.raises(Busy):
        full.submit(question("b"), idempotency_key="b")
    assert ledger.redis.exists(f"t:once:{once_of('default', 'b', {}).name}") == 0
    full.close()


def test_a_key_is_known_for_its_life_and_the_jobs_own_time(clients: list[Client], ledger: Ledger) -> None:
    clients[0].submit(question(deadline_s=100), idempotency_key="k")
    left = ledger.redis.pttl(f"t:once:{once_of('default', 'k', {}).name}")
    assert 86_400_000 + 90_000 < left <= 86_400_000 + 100_000


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\nb"])
def test_what_is_no_key_is_refused(clients: list[Client], key: str) -> None:
    with pytest.raises(BadInput, match="idempotency key"):
        clients[0].submit(question(), idempotency_key=key)


def test_a_job_for_later_can_have_a_key(clients: list[Client], ledger: Ledger) -> None:
    first = clients[0].submit(question(), idempotency_key="k", delay_s=600)
    assert clients[1].submit(question(), idempotency_key="k", delay_s=600).job_id == first.job_id
    entry = ledger.job(first.job_id)
    assert entry is not None
    assert entry.state == "later"
    with pytest.raises(KeyReused):
        clients[1].submit(question(), idempotency_key="k")


def test_the_jobs_of_one_request_are_recorded_together_or_not_at_all(ledger: Ledger) -> None:
    answers = ledger.ask([new_job("a"), new_job("b", model="nobody"), new_job("c")], Gate(once=Once(name="t:k", digest="d"), life_ms=1000)).answers
    assert answers == ["not recorded", "unplaced nobody", "not recorded"]
    assert ledger.stats()["jobs_submitted"] == 0
    assert ledger.redis.exists("t:once:t:k") == 0


def submit_all(url: str, folder: Path, many: int) -> None:
    """What the killed producer runs."""
    with Client(settings=Settings(broker_url=SecretStr(url), message_key=SecretStr("k" * 24), prefix="t:", dir=folder)) as client:
        for n in range(many):
            client.submit(question(str(n)), idempotency_key=f"k{n}")


def test_a_producer_that_is_killed_anywhere_and_begins_again_loses_and_doubles_nothing(ledger: Ledger, url: str, tmp_path: Path) -> None:
    importlib.import_module("celery")  # once, and not in each child
    fork, many = multiprocessing.get_context("fork"), 80
    for kill_at in (4, 13, 22):
        producer = fork.Process(target=submit_all, args=(url, tmp_path, many))
        producer.start()
        while ledger.stats()["jobs_submitted"] < kill_at and producer.is_alive():
            time.sleep(0.001)
        time.sleep(random.random() / 200)  # somewhere within a submit, not always at the same place
        producer.kill()
        producer.join()
        assert producer.exitcode == -signal.SIGKILL
    submit_all(url, tmp_path, many)
    jobs = [ledger.job(job_id) for job_id, _ in ledger.jobs(1000)]
    assert sorted(int(json.loads(j.spec)["prompt"]) for j in jobs if j is not None) == list(range(many))
    assert ledger.stats()["jobs_submitted"] == many


# -- limits ------------------------------------------------------------------------------------------------------------------


def ask(ledger: Ledger, job_id: str, tenant: str = "a", tokens: int = 0) -> Any:
    return ledger.ask([new_job(job_id)], Gate(tenant=tenant, tokens=(tokens,)))


def test_jobs_in_flight_are_limited_by_tenant_across_processes(ledger: Ledger, url: str) -> None:
    Allowances(ledger).set("a", Limits(concurrent=2))
    other = Ledger(url, "t:")
    ask(ledger, "1")
    ask(other, "2")
    with pytest.raises(Limited) as caught:
        ask(other, "3")
    assert (caught.value.what, caught.value.limit) == ("jobs", 2)
    ask(other, "4", tenant="b")  # whose limits these are not
    ledger.forget("1", state="done", kind="inference")
    ask(other, "3")
    assert Allowances(ledger).in_flight("a") == 2
    with pytest.raises(BadInput, match="at once"):
        ledger.ask([new_job(f"n{i}") for i in range(3)], Gate(tenant="a", tokens=(0, 0, 0)))


def test_requests_a_minute_are_limited_and_come_back_evenly_by_redis_own_clock(ledger: Ledger) -> None:
    Allowances(ledger).set("*", Limits(requests_per_minute=3))
    assert [ask(ledger, str(i)).rates.requests_left for i in range(3)] == [2, 1, 0]
    with pytest.raises(Limited) as caught:
        ask(ledger, "3")
    assert 18 < caught.value.retry_after_s <= 20
    assert ledger.job("3") is None
    # When 20 s have gone by (the bucket was seen 20 s earlier) there is room for one
    ledger.redis.hincrby("t:rate:a", "rat", -20_000)
    assert ask(ledger, "3").rates.requests_left == 0
    with pytest.raises(Limited):
        ask(ledger, "4")


def test_tokens_are_put_aside_and_settled_by_what_was_used(ledger: Ledger) -> None:
    Allowances(ledger).set("a", Limits(tokens_per_minute=1000))
    assert ask(ledger, "1", tokens=600).rates.tokens_left == 400
    with pytest.raises(Limited) as caught:
        ask(ledger, "2", tokens=600)
    assert caught.value.what == "tokens"
    ledger.forget("1", state="done", kind="inference", used=used_by(_result("1", (100, 50))))
    assert 850 <= ask(ledger, "2", tokens=0).rates.tokens_left < 900  # 150 were used, and a little has come back
    assert ask(ledger, "3", tokens=0).rates.tokens_left >= 850


def test_a_request_for_more_than_a_minutes_worth_waits_for_a_full_bucket_and_is_paid_off(ledger: Ledger) -> None:
    Allowances(ledger).set("a", Limits(tokens_per_minute=1000))
    assert ask(ledger, "1", tokens=5000).rates.tokens_left == -4000
    with pytest.raises(Limited) as caught:
        ask(ledger, "2", tokens=1)
    assert 230 < caught.value.retry_after_s <= 241


def test_a_repeated_key_counts_against_no_limit(ledger: Ledger) -> None:
    Allowances(ledger).set("a", Limits(requests_per_minute=1))
    gate = Gate(tenant="a", tokens=(0,), once=Once(name="a:k", digest="d"), life_ms=10_000)
    ledger.ask([new_job("1")], gate)
    before = ledger.ask([new_job("2")], gate).before
    assert before is not None
    assert before.job_ids == ("1",)


def test_a_limited_request_binds_no_key_and_records_nothing(ledger: Ledger) -> None:
    Allowances(ledger).set("a", Limits(requests_per_minute=1))
    ask(ledger, "1")
    with pytest.raises(Limited):
        ledger.ask([new_job("2")], Gate(tenant="a", tokens=(0,), once=Once(name="a:k", digest="d"), life_ms=10_000))
    assert ledger.redis.exists("t:once:a:k") == 0
    assert ledger.job("2") is None


def test_no_limit_is_one_over_many_threads(ledger: Ledger, url: str) -> None:
    Allowances(ledger).set("a", Limits(requests_per_minute=10, concurrent=7))
    taken, go = [], threading.Barrier(6)

    def several(n: int) -> None:
        mine = Ledger(url, "t:")
        go.wait()
        for i in range(5):
            try:
                taken.append(ask(mine, f"{n}-{i}"))
            except Limited:
                pass

    threads = [threading.Thread(target=several, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(taken) == 7


def test_limits_are_kept_and_forgotten(ledger: Ledger) -> None:
    book = Allowances(ledger)
    book.set("a", Limits(concurrent=2))
    book.set("*", Limits(tokens_per_minute=5))
    assert book.of("a") == Limits(concurrent=2)
    assert book.of("b") == Limits(tokens_per_minute=5)
    assert list(book.all()) == ["*", "a"]
    assert book.clear("a")
    assert not book.clear("a")
    assert book.of("a") == Limits(tokens_per_minute=5)
    with pytest.raises(BadInput, match="no tenant"):
        book.set("a b", Limits())


# -- shares ------------------------------------------------------------------------------------------------------------------


def test_a_tenants_one_job_does_not_wait_behind_anothers_many(ledger: Ledger) -> None:
    ledger.submit([new_job(f"many{i}", tags=("tenant:a",)) for i in range(200)])
    ledger.submit([new_job("one", tags=("tenant:b",))])
    ledger.submit([new_job("alone", tags=("tenant:c",))])
    first = [claim_one(ledger, queue=QUEUE).seat.job_id for _ in range(4)]
    assert {"one", "alone"} <= set(first)


# -- usage -------------------------------------------------------------------------------------------------------------------


def _result(job_id: str, *turns: tuple[int, int], tags: tuple[str, ...] = ("tenant:a",), reused: bool = False) -> Result:
    kept = Kept(key="reuse/x", made_in="before") if reused else None
    replies = [Completion(text="x", usage=Usage(prompt_tokens=p, completion_tokens=c), kept=kept) for p, c in turns]
    records = tuple(TurnRecord(turn=question().turn, reply=reply) for reply in replies)
    rounds = (RoundRecord(round=0, digest="", closed_by="all", counted=tuple(range(len(turns))), turns=records),)
    return Result(job_id=job_id, state="done", rounds=rounds, job={"kind": "inference", "tags": list(tags)}, ended_at=1_764_028_800.0)


def test_use_is_counted_once_with_the_result_by_day_and_checkpoint(ledger: Ledger) -> None:
    ask(ledger, "1")
    told = used_by(_result("1", (10, 5), (20, 6)))
    assert ledger.forget("1", state="done", kind="ensemble", used=told)
    assert not ledger.forget("1", state="done", kind="ensemble", used=told)  # what is done again counts nothing
    day = "2025-11-25"
    whole, model = usage(ledger, "a", start=day, end=day)
    assert whole == Used(day=day, model="", jobs=1, calls=2, prompt_tokens=30, completion_tokens=11)
    assert model == Used(day=day, model="m", jobs=1, calls=2, prompt_tokens=30, completion_tokens=11)
    assert usage(ledger, "b", start=day, end=day) == []
    assert usage(ledger, "a", start="2025-11-26", end="2025-12-26") == []


def test_a_reused_reply_costs_nothing_and_is_counted_as_such(ledger: Ledger) -> None:
    ask(ledger, "1")
    ledger.forget("1", state="done", kind="inference", used=used_by(_result("1", (10, 5), reused=True)))
    whole, _ = usage(ledger, "a", start="2025-11-25", end="2025-11-25")
    assert whole == Used(day="2025-11-25", jobs=1, reused=1)
    assert ledger.stats()["calls_reused"] == 1


def test_what_a_retried_job_takes_over_is_not_counted_twice(ledger: Ledger) -> None:
    ask(ledger, "1")
    ledger.forget("1", state="done", kind="inference", used=used_by(_result("1", (10, 5), (3, 4)), taken_over={(0, 0)}))
    assert usage(ledger, "a", start="2025-11-25", end="2025-11-25")[0].prompt_tokens == 3


@pytest.mark.parametrize(("start", "end"), [("x", None), ("2025-01-02", "2025-01-01"), ("2020-01-01", "2025-01-01")])
def test_days_that_are_none_are_refused(ledger: Ledger, start: str, end: str | None) -> None:
    with pytest.raises(BadInput):
        usage(ledger, "a", start=start, end=end)


@pytest.mark.parametrize("more", [{}, {"idempotency_key": "one"}, {"webhook": "https://example.com"}, {"delay_s": 60.0},
                                  {"webhook": "https://example.com", "idempotency_key": "one"}])
def test_an_id_is_looked_up_where_the_caller_gave_it_and_nowhere_else(clients: list[Client], shelf: Shelf, more: dict[str, Any]) -> None:
    drawn = clients[0].submit(question(), **more)
    assert f"jobs/{drawn.job_id}/result.json" not in shelf.read
    shelf.put("jobs/mine/result.json", Result(job_id="mine", state="done", job={}).to_json().encode())
    with pytest.raises(BadInput, match=r"Client\.handle"):
        clients[0].submit(question("!"), job_id="mine", **(more | ({"idempotency_key": "two"} if "idempotency_key" in more else {})))
