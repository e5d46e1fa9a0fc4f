"""Every copy of a job, wherever one lies, and its erasure.

Whoever keeps a copy of a job elsewhere joins by ``keeps_copies``: what erases them, by a name under which it is told how many there were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from symposia_shared.archive import Archive
from symposia_shared.errors import NotYet, UnknownJob
from symposia_shared.ledger import Ledger, away
from symposia_shared.reuse import Replies
from symposia_shared.values import Value

#: ms after which the papers of an erased job are looked for once more: a pool may have been writing a reply when they were erased
AGAIN_MS = 120_000


class Erased(Value):
    """What was erased of a job: how many copies, by what kept them."""

    job_id: str
    #: s3 (its papers), ledger (its entries in Redis), notices (to be sent, or kept), replies (kept to be
    #: given again), and what joined by ``keeps_copies``
    copies: dict[str, int]


@dataclass(frozen=True, slots=True)
class Places:
    """Where copies may lie."""

    ledger: Ledger
    archive: Archive


#: erases what it keeps of a job; returns how many copies that were
Eraser = Callable[[Places, str], int]


def erase(places: Places, job_id: str) -> Erased:
    """Erase all of a job that has ended. May be repeated. Raises NotYet while it is in flight, UnknownJob where nothing is known of it,
    BrokerUnavailable and StoreUnavailable, after which it is to be repeated."""
    if places.ledger.job(job_id) is not None:
        raise NotYet(f"job {job_id} has not ended; cancel it first (`symposia cancel {job_id}`).")
    with away():
        places.ledger.redis.zadd(places.ledger.key("erased"), {job_id: places.ledger.now_s() * 1000 + AGAIN_MS})
    copies = {name: eraser(places, job_id) for name, eraser in ERASERS.items()}
    if not any(copies.values()):
        with away():
            places.ledger.redis.zrem(places.ledger.key("erased"), job_id)
        raise UnknownJob(f"no job {job_id!r} is known here.", field="job_id", value=job_id, remedy="List them with `symposia jobs`.")
    return Erased(job_id=job_id, copies=copies)


def erase_again(places: Places) -> int:
    """Look once more for papers that were written while their job was erased; returns how many there were."""
    found: list[str] = places.ledger.run("due", "erased", 100, AGAIN_MS)
    late = 0
    for job_id in found:
        if places.ledger.job(job_id) is None and places.archive.result(job_id) is None:
            late += _papers(places, job_id)
        with away():
            places.ledger.redis.zrem(places.ledger.key("erased"), job_id)
    return late


def keeps_copies(name: str, eraser: Eraser) -> None:
    """Have copies that are kept elsewhere erased with their job. The last of a name counts."""
    ERASERS[name] = eraser


def _papers(places: Places, job_id: str) -> int:
    """The result last: as long as it is there, a repeated erasure finds the job."""
    store, last = places.archive.store, places.archive.result_key(job_id)
    keys = store.keys(f"jobs/{job_id}/")
    store.delete_many([key for key in keys if key != last])
    if last in keys:
        store.delete(last)
    return len(keys)


def _entries(places: Places, job_id: str) -> int:
    redis, key = places.ledger.redis, places.ledger.key
    with away(), redis.pipeline(transaction=True) as pipe:
        pipe.zrem(key("ended"), job_id)
        pipe.hdel(key("endings"), job_id)
        pipe.zrem(key("dead"), job_id)
        pipe.hdel(key("letters"), job_id)
        return sum(int(n) for n in pipe.execute())


def _notices(places: Places, job_id: str) -> int:
    redis, key = places.ledger.redis, places.ledger.key
    with away():
        ids = redis.smembers(key(f"notices:{job_id}"))
        with redis.pipeline(transaction=True) as pipe:
            pipe.unlink(key(f"tell:{job_id}"), *(key(f"notice:{i}") for i in ids))
            pipe.unlink(key(f"notices:{job_id}"))
            pipe.zrem(key("tellings"), job_id)
            for i in ids:
                pipe.zrem(key("notices"), i)
                pipe.zrem(key("told"), i)
            return int(pipe.execute()[0])


def _replies(places: Places, job_id: str) -> int:
    """Kept replies that were made in the job, or that its turns were answered with; its transcript names them."""
    result = places.archive.result(job_id)
    return 0 if result is None else len(Replies(places.archive.store, life_s=0.0).erase_of(result))


#: what keeps copies of jobs, in the order in which they are erased
ERASERS: dict[str, Eraser] = {"replies": _replies, "notices": _notices, "ledger": _entries, "s3": _papers}
