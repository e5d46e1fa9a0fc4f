"""Retries by cause: what is tried again, how often, how soon; in the pure policy and in the ledger on a real Valkey."""

from __future__ import annotations

import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgers import Asked, claim_one, one_job, round_of
from symposia_shared.ledger import Ledger, Seat
from symposia_shared.results import Fault, RoundRecord, TurnRecord
from symposia_shared.retries import RETRIES, Retry, cut_at, delay_s, letter_reason, retry_for
from symposia_shared.turns import Abstention, Cause, Completion

ONCE = Retry(first_s=0.05, longest_s=1.0, most=1)


def record_of(*causes: Cause | None, number: int = 0) -> RoundRecord:
    job = Asked.job()
    replies = [Completion(text="x") if c is None else Abstention(cause=c) for c in causes]
    return RoundRecord(round=number, digest="", closed_by="all", counted=(), turns=tuple(TurnRecord(turn=job.turn, reply=r) for r in replies))


@pytest.mark.parametrize("cause", get_args(Cause))
def test_a_cause_is_tried_again_just_where_the_policy_says(cause: Cause) -> None:
    assert (retry_for(Abstention(cause=cause)) is not None) == (cause in ("out_of_memory", "device_lost", "throttled", "timeout", "bug"))
    assert retry_for(Completion(text="x")) is None


@given(st.sampled_from(list(RETRIES)), st.integers(0, 100), st.floats(0, 1))
def test_a_delay_grows_within_its_bounds(cause: Cause, tried: int, jitter: float) -> None:
    retry = RETRIES[cause]
    assert retry.first_s / 2 <= delay_s(retry, tried, jitter) <= retry.longest_s
    assert delay_s(retry, tried, jitter) <= delay_s(retry, tried + 1, jitter)


def test_a_failed_job_is_a_dead_letter_by_its_gravest_cause_and_a_refused_one_is_none() -> None:
    quorum = Fault(type="NoQuorum", message="")
    assert letter_reason("failed", [record_of("timeout", "poison", None)], quorum) == "poison"
    assert letter_reason("failed", [record_of("bad_prompt", "refused")], quorum) is None
    assert letter_reason("failed", [record_of(None)], Fault(type="PlayDiverged", message="")) == "PlayDiverged"
    assert letter_reason("done", [record_of("poison", None)], None) == "poison"
    assert letter_reason("done", [record_of("timeout", None)], None) is None
    assert letter_reason("cancelled", [record_of("timeout")], None) is None


def test_a_retried_job_begins_at_the_last_round_that_a_retry_may_mend() -> None:
    assert cut_at([record_of(None), record_of("timeout", number=1), record_of("bad_prompt", number=2)]) == 1
    assert cut_at([record_of("refused")]) == 0


def test_a_turn_that_failed_comes_back_after_its_delay_and_is_then_recorded_once(ledger: Ledger) -> None:
    # Given a turn that has failed
    one_job(ledger, "a")
    first = claim_one(ledger)
    assert ledger.postpone(first, "timeout", ONCE, jitter=0.0) == "later"
    # Then nobody gets it before its time, and its old holder can no longer record it
    assert ledger.claim(most=1, pools=1, queues=["q"], named=first.seat).named == "later"
    assert ledger.record([(first, "{}", True, True)])[0].status == "stale"
    # When the time has come, it is claimed again, and failing once more is final
    second = claim_one(ledger, wait_s=2.0)
    assert second.attempt == 2
    assert ledger.postpone(second, "timeout", ONCE, jitter=0.0) == "over"
    assert ledger.record([(second, "{}", False, True)])[0].closed == "all"
    # And it is counted as a retry, not as a repeated call
    stats = ledger.stats()
    assert (stats["retried_timeout"], stats["calls_failed"], stats["calls_repeated"], stats["calls_recorded"]) == (1, 1, 0, 1)


def test_each_cause_has_tries_of_its_own(ledger: Ledger) -> None:
    one_job(ledger, "a")
    for cause in ("timeout", "bug"):
        assert ledger.postpone(claim_one(ledger, wait_s=2.0), cause, ONCE, jitter=0.0) == "later"  # type: ignore[arg-type]
    assert ledger.postpone(claim_one(ledger, wait_s=2.0), "bug", ONCE, jitter=0.0) == "over"


def test_a_turn_that_lacked_memory_comes_back_marked_to_run_alone(ledger: Ledger) -> None:
    one_job(ledger, "a")
    first = claim_one(ledger)
    assert not first.alone
    ledger.postpone(first, "out_of_memory", ONCE.model_copy(update={"alone": True}), jitter=0.0)
    assert claim_one(ledger, wait_s=2.0).alone


def test_a_retry_that_would_begin_after_the_deadline_is_not_waited_for(ledger: Ledger) -> None:
    one_job(ledger, "a", deadline_ms=500)
    assert ledger.postpone(claim_one(ledger), "timeout", Retry(first_s=1.0, longest_s=1.0, most=9), jitter=0.0) == "over"


def test_a_round_that_is_closed_meanwhile_takes_its_waiting_retry_with_it(ledger: Ledger) -> None:
    one_job(ledger, "a")
    ledger.postpone(claim_one(ledger), "timeout", ONCE, jitter=0.0)
    ledger.cancel("a")
    time.sleep(0.1)
    assert ledger.claim(most=1, pools=1, queues=["q"]).claims == ()
    assert round_of(ledger, "a").turns[0].state == "x"
    assert ledger.redis.zcard(ledger.key("delayed")) == 0


def test_only_the_holder_can_put_a_turn_off(ledger: Ledger) -> None:
    one_job(ledger, "a")
    mine = claim_one(ledger)
    ledger.hand_back([(mine.seat, mine.fence)], killed=True)
    theirs = claim_one(ledger)
    assert ledger.postpone(mine, "timeout", ONCE, jitter=0.0) == "lost"
    assert ledger.postpone(theirs, "timeout", ONCE, jitter=0.0) == "later"
    assert theirs.seat == Seat("a", 0, 0)


def test_a_repeated_turn_that_is_handed_back_unanswered_is_not_counted_as_repeated_again(ledger: Ledger) -> None:
    # Given a turn that was in flight when its engine was killed, and was claimed again
    one_job(ledger, "a")
    first = claim_one(ledger)
    ledger.hand_back([(first.seat, first.fence)], killed=True)
    again = claim_one(ledger)
    # When it is handed back without having been cut off, and claimed once more
    ledger.hand_back([(again.seat, again.fence)], killed=False)
    claim_one(ledger)
    # Then one call was in flight at a kill, and one was repeated
    stats = ledger.stats()
    assert (stats["in_flight_at_kills"], stats["calls_repeated"]) == (1, 1)
