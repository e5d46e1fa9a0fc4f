"""What outlives its life goes, by the store's listing: a transcript first, its job in its own time."""

from __future__ import annotations

import time

import pytest

from shelf import Shelf
from symposia_shared.archive import Archive
from symposia_shared.erasing import Places, erase
from symposia_shared.errors import StoreUnavailable
from symposia_shared.ledger import Ledger
from symposia_shared.play import Verdict
from symposia_shared.results import Result, RoundRecord
from symposia_shared.retention import DAY_S, sweep
from symposia_shared.settings import RetentionSettings

LIVES = RetentionSettings(jobs_days=3, transcripts_days=2)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def places(ledger: Ledger, shelf: Shelf) -> Places:
    return Places(ledger, Archive(shelf))  # type: ignore[arg-type]


def ended(places: Places, shelf: Shelf, job_id: str, *, days_ago: float, rounds: int = 1) -> None:
    at = time.time() - days_ago * DAY_S
    records = tuple(RoundRecord(round=n, digest="d", turns=(), closed_by="all", counted=()) for n in range(rounds))
    places.archive.commit(Result(job_id=job_id, state="done", verdict=Verdict(answer="1"), job={}, ended_at=at, rounds=records))
    for n in range(rounds):
        shelf.put(f"jobs/{job_id}/rounds/{n}.json", b"{}")
    for key in shelf.keys(f"jobs/{job_id}/"):
        shelf.times[key] = at


def test_a_job_whose_transcript_was_cut_goes_when_its_own_life_is_over(places: Places, shelf: Shelf) -> None:
    ended(places, shelf, "a", days_ago=2.5)
    done = sweep(places, LIVES)
    assert (done["transcripts"], done["jobs"]) == (1, 0)
    cut = places.archive.result("a")
    assert cut is not None
    assert (cut.answer, cut.rounds) == ("1", ())
    assert sweep(places, LIVES)["jobs"] == 0
    # the result was written a moment ago, and its job ended two days and a half ago
    assert sweep(places, RetentionSettings(jobs_days=2.4, transcripts_days=2))["jobs"] == 1
    assert shelf.keys("jobs/") == []


def test_a_sweep_lists_the_papers_once_and_reads_no_result_that_is_young_or_was_cut(places: Places, shelf: Shelf) -> None:
    ended(places, shelf, "old", days_ago=2.5)
    ended(places, shelf, "mute", days_ago=2.5, rounds=0)
    ended(places, shelf, "young", days_ago=1)
    assert sweep(places, LIVES)["transcripts"] == 1
    assert sorted(shelf.read) == ["jobs/mute/result.json", "jobs/old/result.json"]
    for key in shelf.keys("jobs/"):
        shelf.times[key] -= 2.5 * DAY_S  # the cut result is as old again as it was then
    shelf.read.clear()
    shelf.lists.clear()
    done = sweep(places, RetentionSettings(jobs_days=30, transcripts_days=2))
    assert (shelf.lists.count("jobs/"), shelf.read, done["transcripts"]) == (1, ["jobs/young/result.json"], 0)


def test_lives_without_an_end_are_not_looked_for(places: Places, shelf: Shelf) -> None:
    ended(places, shelf, "a", days_ago=400)
    sweep(places, RetentionSettings(jobs_days=None, transcripts_days=None))
    assert shelf.lists == []


def test_a_job_is_found_again_until_the_last_of_its_papers_is_gone(places: Places, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(places, shelf, "a", days_ago=1, rounds=2)

    def refuse(_: object) -> None:
        raise StoreUnavailable("S3 is away.")

    with monkeypatch.context() as away:
        away.setattr(shelf, "delete_many", refuse)
        with pytest.raises(StoreUnavailable):
            erase(places, "a")
    assert places.archive.result("a") is not None
    assert erase(places, "a").copies["s3"] == 3
    assert shelf.keys("jobs/") == []
