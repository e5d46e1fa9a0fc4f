"""Times of schedules, and jobs due later in the ledger, on a real Valkey."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgers import QUEUE, Asked, claim_one, new_job, placed
from symposia_shared.archive import Archive
from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.control import Control
from symposia_shared.schedules import Recipe, Schedule, Schedules, next_by_cron, seconds_of
from symposia_shared.settings import LimitSettings, S3Settings
from symposia_shared.store import Store
from valkey_server import emptied

LIMITS = LimitSettings()
RECIPE = Recipe(kind="inference", spec=Asked.job().to_json(), deadline_ms=60_000, prompt_bytes=1, models=("m",))
#: no job here is long enough to be kept in S3
ARCHIVE = Archive(Store(S3Settings(endpoint_url="http://127.0.0.1:1", access_key="x", secret_key="x")))


@pytest.fixture
def ledger(server: Ledger) -> Ledger:
    placed(emptied(server))
    return server


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


@pytest.mark.parametrize(("cron", "after", "then"), [
    ("* * * * *", "2026-11-25T10:00:30Z", "2026-11-25T10:01:00Z"),
    ("0 4 * * *", "2026-11-25T04:00:00Z", "2026-11-26T04:00:00Z"),
    ("*/15 9-17 * * mon-fri", "2026-11-27T17:45:00Z", "2026-11-30T09:00:00Z"),
    ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
    ("30 23 31 12 *", "2026-12-31T23:30:00Z", "2027-12-31T23:30:00Z"),
    ("0 0 13 * 5", "2026-11-25T00:00:00Z", "2027-08-13T00:00:00Z"),
])
def test_the_next_time_of_a_cron_expression(cron: str, after: str, then: str) -> None:
    assert next_by_cron(cron, at(after)) == at(then)


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "nonsense", "0 0 31 2 *", "* * * * * *", "@daily"])
def test_an_expression_that_names_no_time_is_refused(cron: str) -> None:
    with pytest.raises(BadInput):
        next_by_cron(cron, 0)


@given(st.integers(1, 10_000), st.integers(0, 10**9), st.integers(0, 10**6))
def test_what_recurs_every_so_often_keeps_its_beat(every: int, begins: int, later: int) -> None:
    schedule = Schedule(id="x", every_s=every, begins_s=begins, recipe=RECIPE)
    then = schedule.following(begins + later)
    assert begins + later < then <= begins + later + every
    assert (then - begins) % every == 0
    assert schedule.latest(begins, begins + later) == then - every


@given(st.integers(1_500_000_000, 2_500_000_000), st.sampled_from(["*/7 * * * *", "0 4 * * *", "5 0 1 * *", "0 12 * * 0"]))
def test_the_next_time_is_later_and_there_is_none_between(after: int, cron: str) -> None:
    then = next_by_cron(cron, after)
    assert then > after
    assert next_by_cron(cron, then - 1) == then


def test_lengths_of_time() -> None:
    assert [seconds_of(t) for t in ("90", "90s", "10m", "2h", "1d")] == [90, 90, 600, 7200, 86_400]
    for wrong in ("", "-1", "1.5h", "1w"):
        with pytest.raises(BadInput):
            seconds_of(wrong)


def test_a_later_job_is_opened_when_its_time_has_come_and_its_deadline_counts_from_then(ledger: Ledger) -> None:
    # Given a job due in 300 ms with a second's deadline
    assert ledger.submit([new_job("a", due_ms=int(time.time() * 1000) + 300, deadline_ms=1000)]) == [f"later {QUEUE}"]
    entry = ledger.job("a")
    assert entry is not None
    assert (entry.state, entry.current) == ("later", -1)
    ledger.sweep(expire=True)
    assert ledger.claim(most=1, pools=1, queues=[QUEUE]).claims == ()
    # When it is swept after its time
    time.sleep(0.35)
    ledger.sweep(expire=True)
    # Then it is to be claimed, with its whole deadline ahead
    claim_one(ledger)
    opened = ledger.job("a")
    assert opened is not None
    assert 0 < opened.deadline_ms - time.time() * 1000 <= 1000
    assert Schedules(ledger).later() == []


def test_a_later_collaboration_is_given_to_the_coordinator_at_once(ledger: Ledger) -> None:
    ledger.submit([new_job("a", kind="ensemble", due_ms=int(time.time() * 1000) + 100)])
    assert ledger.sweep(expire=True) == []
    time.sleep(0.15)
    assert ledger.sweep(expire=True) == ["a"]


def test_a_later_job_is_listed_and_can_be_cancelled(ledger: Ledger) -> None:
    ledger.submit([new_job("a", due_ms=int(time.time() * 1000) + 60_000)])
    assert [i for i, _ in Schedules(ledger).later()] == ["a"]
    assert Control(ledger).cancel(["a"]) == ["a"]
    assert Schedules(ledger).later() == []


def test_a_time_that_has_passed_is_now(ledger: Ledger) -> None:
    assert ledger.submit([new_job("a", due_ms=1)]) == [f"ok {QUEUE}"]


def due_since(seconds: float, *, every_s: int = 60) -> Schedule:
    """A schedule whose first occurrence was that long ago."""
    return Schedule(id="s", every_s=every_s, begins_s=int(time.time() - seconds), recipe=RECIPE)


def test_an_occurrence_is_submitted_once_by_many_coordinators(ledger: Ledger) -> None:
    schedule = due_since(90)
    Schedules(ledger).add(schedule, now_s=schedule.begins_s - 1)
    with ThreadPoolExecutor(8) as many:
        answers = [a for found in many.map(lambda _: Schedules(ledger).occur(ARCHIVE, LIMITS), range(32)) for a in found]
    assert [a for _, a in answers].count(f"ok {QUEUE}") == 1
    assert ledger.stats()["jobs_submitted"] == 1


def test_of_missed_occurrences_the_last_is_run_once(ledger: Ledger) -> None:
    # Given an hour of missed minutes
    schedule = due_since(3630)
    Schedules(ledger).add(schedule, now_s=schedule.begins_s - 1)
    ((job_id, answer),) = Schedules(ledger).occur(ARCHIVE, LIMITS)
    # Then one job is submitted, the last one's, and the next is due within a minute
    assert answer == f"ok {QUEUE}"
    assert job_id == schedule.occurrence_id(schedule.begins_s + 3600)
    assert Schedules(ledger).occur(ARCHIVE, LIMITS) == []
    ((_, following),) = Schedules(ledger).all()
    assert following == schedule.begins_s + 3660


def test_an_occurrence_that_is_refused_is_tried_again(ledger: Ledger) -> None:
    schedule = due_since(30)
    Schedules(ledger).add(schedule, now_s=schedule.begins_s - 1)
    Control(ledger).hold_queue(QUEUE, "draining")
    assert [a for _, a in Schedules(ledger).occur(ARCHIVE, LIMITS)] == ["draining m"]
    Control(ledger).resume_queue(QUEUE)
    assert [a for _, a in Schedules(ledger).occur(ARCHIVE, LIMITS)] == [f"ok {QUEUE}"]


def test_a_removed_schedule_occurs_no_more_and_one_made_again_is_not_stuck(ledger: Ledger) -> None:
    schedule = due_since(30)
    schedules = Schedules(ledger)
    schedules.add(schedule, now_s=schedule.begins_s - 1)
    schedules.occur(ARCHIVE, LIMITS)
    assert schedules.remove("s")
    assert not schedules.remove("s")
    schedules.add(schedule, now_s=schedule.begins_s - 1)
    assert [a for _, a in schedules.occur(ARCHIVE, LIMITS)] == ["exists"]
    assert schedules.occur(ARCHIVE, LIMITS) == []


def test_an_occurrence_names_its_time() -> None:
    schedule = Schedule(id="nightly", cron="0 4 * * *", begins_s=0, recipe=RECIPE)
    assert schedule.occurrence_id(at("2026-11-25T04:00:00Z")) == "nightly-20261125T040000Z"
    start = datetime(2026, 11, 25, 4, tzinfo=UTC)
    assert schedule.latest(int(start.timestamp()), (start + timedelta(days=2, hours=1)).timestamp()) == int((start + timedelta(days=2)).timestamp())
