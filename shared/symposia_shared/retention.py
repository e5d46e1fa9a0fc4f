"""What has ended is kept for its stated life (``RetentionSettings``) and then erased, by whichever coordinator comes first.

Whoever keeps something else with a life of its own joins by ``has_a_life``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from symposia_shared.archive import checked_id
from symposia_shared.erasing import Places, erase, erase_again
from symposia_shared.errors import BadInput, NotYet, UnknownJob
from symposia_shared.ledger import away
from symposia_shared.results import Result
from symposia_shared.settings import RetentionSettings

DAY_S = 86_400.0
#: drops what of its own has outlived the settings; returns how much that was
Sweep = Callable[[Places, RetentionSettings], int]


def begin(places: Places, lives: RetentionSettings) -> bool:
    """Whether it is time for a sweep and nobody else has begun one."""
    with away():
        return bool(places.ledger.redis.set(places.ledger.key("retention"), 1, nx=True, px=max(1, int(lives.every_s * 1000))))


def sweep(places: Places, lives: RetentionSettings) -> dict[str, int]:
    """Erase what has outlived its time; returns how much, by kind. Raises BrokerUnavailable and StoreUnavailable; what is left then waits
    for the next sweep."""
    return {**_papers(places, lives), **{name: one(places, lives) for name, one in SWEEPS.items()}}


def has_a_life(name: str, one: Sweep) -> None:
    """Have something else swept, too. The last of a name counts."""
    SWEEPS[name] = one


@dataclass(frozen=True, slots=True)
class Papers:
    """What the store's listing says of a job's papers; times in seconds since the epoch."""

    job_id: str
    #: when the newest was written; of a job whose transcript is gone, when it ended: its result was written anew then
    at: float
    #: when its result was written, None: there is none
    result_at: float | None
    #: whether its transcript is gone
    cut: bool


def jobs_with_papers(places: Places) -> Iterator[Papers]:
    """Every job that has papers."""
    def job_of(item: tuple[str, float]) -> str:
        return item[0].split("/", 2)[1]

    for job_id, items in itertools.groupby(places.archive.store.listed("jobs/"), key=job_of):
        papers = dict(items)
        marks = [at for at in (places.archive.cut_at(key) for key in papers) if at is not None]
        yield Papers(job_id, at=max(marks or papers.values()), result_at=papers.get(places.archive.result_key(job_id)), cut=bool(marks))


def _papers(places: Places, lives: RetentionSettings) -> dict[str, int]:
    """Jobs go whole, or lose their transcripts: in one walk, for there may be millions."""
    done = {"jobs": 0, "transcripts": 0}
    if lives.jobs_days is None and lives.transcripts_days is None:
        return done
    now, of_job, of_transcript = places.ledger.now_s(), _seconds(lives.jobs_days), _seconds(lives.transcripts_days)
    erased_before, cut_before = now - of_job, now - of_transcript if of_transcript < of_job else -math.inf
    for papers in jobs_with_papers(places):
        if papers.at < erased_before:
            done["jobs"] += _erased(places, papers.job_id)
        elif papers.result_at is not None and papers.result_at < cut_before and not papers.cut:
            done["transcripts"] += _cut(places, papers.job_id, before=cut_before)
    return done


def _seconds(days: float | None) -> float:
    return math.inf if days is None else days * DAY_S


def _erased(places: Places, job_id: str) -> bool:
    try:
        erase(places, checked_id(job_id))
    except (NotYet, UnknownJob, BadInput):
        return False  # in flight, or gone meanwhile
    return True


def _cut(places: Places, job_id: str, *, before: float) -> bool:
    """A result loses its rounds, and the papers beside it go; verdict, votes and bill stay."""
    result = places.archive.result(job_id) if places.ledger.job(job_id) is None else None
    if result is None or result.ended_at >= before:
        return False
    if result.rounds:
        _without_transcript(places, result)
    places.archive.mark_cut(result)  # last: what is marked is not looked at again
    return bool(result.rounds)


def _without_transcript(places: Places, result: Result) -> None:
    store, kept = places.archive.store, places.archive.result_key(result.job_id)
    store.delete_many([key for key in store.keys(f"jobs/{result.job_id}/") if key != kept])
    store.put(kept, result.model_copy(update={"rounds": ()}).model_dump_json().encode())


def _late(places: Places, _: RetentionSettings) -> int:
    return erase_again(places)


def _told(places: Places, lives: RetentionSettings) -> int:
    """Notices that have expired leave the list; Redis itself has dropped them."""
    redis, key = places.ledger.redis, places.ledger.key
    with away():
        ids = redis.zrange(key("told"), 0, 9_999)
        with redis.pipeline(transaction=False) as pipe:
            for i in ids:
                pipe.exists(key(f"notice:{i}"))
            gone = [i for i, there in zip(ids, pipe.execute(), strict=True) if not there]
        return int(redis.zrem(key("told"), *gone)) if gone else 0


SWEEPS: dict[str, Sweep] = {"late papers": _late, "notices": _told}
