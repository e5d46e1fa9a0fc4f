"""What has ended is kept for its stated life (``RetentionSettings``) and then erased, by whichever coordinator comes first.

Whoever keeps something else with a life of its own joins by ``has_a_life``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

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
    return {name: one(places, lives) for name, one in SWEEPS.items()}


def has_a_life(name: str, one: Sweep) -> None:
    """Have something else swept, too. The last of a name counts."""
    SWEEPS[name] = one


def jobs_with_papers(places: Places) -> Iterator[tuple[str, float, bool]]:
    """Every job that has papers: its id, when the newest was written in epoch's seconds, and whether its result is among them."""
    def job_of(item: tuple[str, float]) -> str:
        return item[0].split("/", 2)[1]

    for job_id, items in itertools.groupby(places.archive.store.listed("jobs/"), key=job_of):
        papers = list(items)
        result = places.archive.result_key(job_id)
        yield job_id, max(at for _, at in papers), any(key == result for key, _ in papers)


def _jobs(places: Places, lives: RetentionSettings) -> int:
    if lives.jobs_days is None:
        return 0
    before, erased = places.ledger.now_s() - lives.jobs_days * DAY_S, 0
    for job_id, at, _ in jobs_with_papers(places):
        if at < before:
            try:
                erase(places, checked_id(job_id))
                erased += 1
            except (NotYet, UnknownJob, BadInput):
                continue  # in flight, or gone meanwhile
    return erased


def _transcripts(places: Places, lives: RetentionSettings) -> int:
    """Results lose their rounds, and the papers beside them go; verdict, votes and bill stay."""
    days, cut = lives.transcripts_days, 0
    if days is None or (lives.jobs_days is not None and days >= lives.jobs_days):
        return 0
    before = places.ledger.now_s() - days * DAY_S
    for job_id, _, ended in jobs_with_papers(places):
        result = places.archive.result(job_id) if ended else None
        if result is not None and result.rounds and result.ended_at < before and places.ledger.job(job_id) is None:
            _without_transcript(places, result)
            cut += 1
    return cut


def _without_transcript(places: Places, result: Result) -> None:
    store, kept = places.archive.store, places.archive.result_key(result.job_id)
    for key in store.keys(f"jobs/{result.job_id}/"):
        if key != kept:
            store.delete(key)
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


SWEEPS: dict[str, Sweep] = {"jobs": _jobs, "transcripts": _transcripts, "late papers": _late, "notices": _told}
