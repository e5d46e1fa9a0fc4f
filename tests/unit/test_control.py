"""Pause, drain and cancel in the ledger, on a real Valkey: the claim script is what obeys."""

from __future__ import annotations

from pathlib import Path

from ledgers import QUEUE, claim_one, new_job, one_job, placed, round_of
from symposia_shared.ledger import Ledger, Seat
from symposia_shared.ledger.control import Control


def test_a_paused_queue_gives_nothing_out_even_to_a_doorbell_that_names_a_turn(ledger: Ledger) -> None:
    one_job(ledger, "a")
    Control(ledger).hold_queue(QUEUE, "paused")
    claimed = ledger.claim(most=8, pools=1, queues=[QUEUE], named=Seat("a", 0, 0), pool="p")
    assert (claimed.named, claimed.left, claimed.claims) == ("paused", 0, ())
    # Submits are still taken, and after a resume all of it runs
    one_job(ledger, "b")
    assert Control(ledger).resume_queue(QUEUE)
    assert {c.seat.job_id for c in ledger.claim(most=8, pools=1, queues=[QUEUE]).claims} == {"a", "b"}
    assert not Control(ledger).resume_queue(QUEUE)


def test_other_queues_of_the_pool_go_on(ledger: Ledger) -> None:
    placed(ledger, m="q", n="r")
    ledger.submit([new_job("a"), new_job("b", model="n")])
    Control(ledger).hold_queue("q", "paused")
    assert [c.seat.job_id for c in ledger.claim(most=8, pools=1, queues=["q", "r"]).claims] == ["b"]


def test_a_draining_queue_refuses_new_jobs_and_runs_what_it_has(ledger: Ledger) -> None:
    one_job(ledger, "a")
    Control(ledger).hold_queue(QUEUE, "draining")
    assert ledger.submit([new_job("b")]) == ["draining m"]
    assert ledger.job("b") is None
    held = claim_one(ledger)
    assert Control(ledger).left(QUEUE) == 1
    ledger.record([(held, "{}", True, True)])
    assert Control(ledger).left(QUEUE) == 0


def test_a_paused_pool_claims_nothing_while_another_goes_on(ledger: Ledger) -> None:
    one_job(ledger, "a")
    Control(ledger).hold_pool("first")
    assert ledger.claim(most=8, pools=2, queues=[QUEUE], named=Seat("a", 0, 0), pool="first").named == "paused"
    assert len(ledger.claim(most=8, pools=2, queues=[QUEUE], pool="second").claims) == 1


def test_a_turn_that_runs_when_its_queue_is_paused_is_still_recorded(ledger: Ledger) -> None:
    one_job(ledger, "a")
    held = claim_one(ledger)
    Control(ledger).hold_queue(QUEUE, "paused")
    assert ledger.renew([(held.seat, held.fence)]) == []
    assert ledger.record([(held, "{}", True, True)])[0].closed == "all"


def test_a_tag_finds_its_jobs_until_they_have_ended(ledger: Ledger) -> None:
    placed(ledger)
    ledger.submit([new_job("a", tags=("x", "y")), new_job("b", tags=("y",)), new_job("c")])
    control = Control(ledger)
    assert (control.tagged("x"), control.tagged("y"), control.in_flight()) == (["a"], ["a", "b"], ["a", "b", "c"])
    assert control.cancel(["a", "b", "gone"]) == ["a", "b"]
    assert control.cancel(["a"]) == []
    assert round_of(ledger, "a").closed == "cancelled"
    ledger.forget("a", state="cancelled", kind="inference")
    assert (control.tagged("x"), control.tagged("y")) == ([], ["b"])


def test_what_is_held_outlives_its_writer(ledger: Ledger, tmp_path: Path) -> None:
    Control(ledger).hold_pool("p")
    Control(ledger).hold_queue("q", "draining")
    Control(ledger).hold_queue("q", "paused")
    assert Control(Ledger(f"redis+socket://{ledger.redis.connection_pool.connection_kwargs['path']}", "t:")).held() == {"pool:p": "paused", "queue:q": "paused"}
