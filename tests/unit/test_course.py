"""What a course remembers between two advances of a job."""

from __future__ import annotations

from typing import Any, cast

from symposia_shared.results import RoundRecord
from symposia_shared.turns import Abstention, Completion, Timing, Usage
from symposia_worker import course as courses
from symposia_worker.course import Course, told


class CountingArchive:
    """Holds a few closed rounds, and counts how often it is read."""

    def __init__(self, rounds: int) -> None:
        self.reads = 0
        self._rounds = {n: RoundRecord(round=n, digest=str(n), closed_by="all", counted=(), turns=()) for n in range(rounds)}

    def round(self, job_id: str, number: int) -> RoundRecord | None:
        self.reads += 1
        return self._rounds.get(number)


def course_over(archive: CountingArchive) -> Course:
    nothing: Any = None
    return Course(nothing, cast(Any, archive), nothing, nothing)


def test_a_closed_round_which_never_changes_is_read_from_s3_once() -> None:
    archive = CountingArchive(2)
    course = course_over(archive)
    assert [course._closed("j", n) for n in (0, 1, 0, 1)] == [archive._rounds[n] for n in (0, 1, 0, 1)]
    assert archive.reads == 2


def test_a_round_that_is_not_there_is_looked_for_again() -> None:
    archive = CountingArchive(1)
    course = course_over(archive)
    assert [course._closed("j", 7), course._closed("j", 7)] == [None, None]
    assert archive.reads == 2


def test_rounds_of_jobs_advanced_long_ago_are_let_go() -> None:
    archive = CountingArchive(1)
    course = course_over(archive)
    for n in range(courses.MOST_ROUNDS + 1):
        course._closed(f"job{n}", 0)
    course._closed("job0", 0)
    assert archive.reads == courses.MOST_ROUNDS + 2
    course._closed(f"job{courses.MOST_ROUNDS}", 0)
    assert archive.reads == courses.MOST_ROUNDS + 2


def test_a_reply_is_told_by_what_it_consists_of() -> None:
    timing = Timing(claimed_at=10.0, last_token_at=12.0)
    assert told(Completion(text="a b", usage=Usage(completion_tokens=8), timing=timing)) == "8 tok 2.0 s 4 tok/s"
    assert told(Completion(text="", vectors=((1.0,), (0.5,)), usage=Usage(prompt_tokens=9), timing=timing)) == "2 texts 2.0 s 1 texts/s"
    assert told(Completion(text="", vectors=((1.0,),), timing=timing)).startswith("1 text 2.0 s")
    assert told(Abstention(cause="bug", message="x")) == "abstained: bug"
