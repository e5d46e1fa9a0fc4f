"""The ledger: what Redis knows of the jobs in flight, and the truth of them. A Celery message is only a doorbell.

Keys, each under the deployment's prefix:

    job:ID       hash  one job: st state, k kind, sp job JSON (or @key in S3), cur current round, at submitted, dl deadline (ms), pr class,
                       tg tags, kp rounds kept of the job it tries again; of a later one du due, dq queue, on of one turn;
                       sm somebody reads its answer as it comes; ru whose replies it may be given
                       again; tn, rs the tenant it is metered for and the tokens put aside for it; and
                       per round r    n turns, d deadline, q quorum, sf settle-from, in replies, sp voices, g digest, h chord, b chord's
                                      body came early, c why closed, ca when, k counted
                       per turn r:i   t state, qn queue, p payload, v reply, a attempts, e engine deaths, cl claimed at, y retries by cause,
                                      al to be run alone
    ready:QUEUE  zset  turns to be claimed, by the time they were queued      queues  set   the queues that have any
    leases       zset  turns held by a pool, by when the lease ends           deadlines zset open rounds, by their deadline
    delayed      zset  turns to be tried again, by when
    follow       zset  rounds whose waiting turns are to be looked at
    advance      zset  jobs whose next round or result is due, by since when  jobs    zset  jobs in flight, by submission
    ended        zset  the last 10,000 ended jobs       endings hash their states      stats   hash  counters
    placement    hash  pool → what it is meant to serve       placed hash checkpoint → queue, context      workers hash heartbeats
    later        zset  jobs to be opened later, by when       tag:TAG set  the jobs in flight with a tag
    paused       hash  queue:Q → paused | draining, pool:NAME → paused      line:QUEUE hash  turns queued by tag
    drain        hash  how fast each queue is claimed from    served hash  when each queue was last served, in claims
    dead         zset  dead letters, by when                  letters hash  what each says      quarantine list  malformed messages
    schedules    hash  what recurs                            occurrences zset  when each is next due
    keys         hash  API keys, by digest                     teams:TENANT hash saved teams
    tell:JOB     str   who is to be told of its end, sealed    tellings    zset  ended jobs of which notices are to be made
    notice:ID    hash  one notice: b JSON, st state, n tries    notices     zset  those to be sent, by when      told zset all, by when they were made
    notices:JOB  set   the notices of a job                     hooks:TENANT hash webhooks of a tenant, sealed   secrets hash secrets' generations
    erased       zset  jobs whose papers were erased, looked at once more later
    once:T:KEY   what an idempotency key stands for            limits, rate:T, metered:T  what tenants may ask for (``gate``)
    usage:T:DAY  hash  what a tenant used                      tenants set   who has used anything (``usage``)
    wanted:POOL  set   checkpoints to take up at run time     refusals hash why one was not
    pinned       set   checkpoints no pool evicts             bells    hash queue → the list of its doorbells, where it is not its own
    replicas     hash  queue → the pools that serve it, where they are several
    burdens      hash  pool → tokens it has taken on, free slots, when it said so

Every step is one Lua script (``scripts/``), so each is atomic; every script may be repeated without harm.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any, Literal

import redis

from symposia_shared.errors import BrokerUnavailable, Busy
from symposia_shared.jobs import SINGLE_KINDS
from symposia_shared.ledger.entries import TIMED, Claim, Claimed, Glance, LedgerJob, LedgerRound, LedgerTurn, NewJob, Recorded, Seat, round_of
from symposia_shared.ledger.gate import Gate, Passed, passed
from symposia_shared.results import ClosedBy
from symposia_shared.retries import RETRIES, Retry
from symposia_shared.settings import LimitSettings
from symposia_shared.turns import Cause

#: milliseconds a pool may hold a turn without a heartbeat
LEASE_MS = 5_000
#: milliseconds a closed round may wait before the sweeper advances its job itself
OVERDUE_MS = 2_000
#: bytes up to which a job, payload or reply stands in Redis itself; longer ones lie in S3
INLINE_BYTES = 512

__all__ = ["Claim", "Claimed", "Ledger", "LedgerJob", "LedgerRound", "LedgerTurn", "NewJob", "Recorded", "Seat", "away", "redis_url"]

SCRIPTS = ("submit", "open", "claim", "renew", "record", "close", "hand_back", "sweep", "cancel", "forget", "place", "release", "postpone", "due", "notices")


class Ledger:
    """The scripts as methods. Safe to share between threads. Each raises BrokerUnavailable when Redis is away or read-only, Busy when it is full."""

    def __init__(self, url: str, prefix: str, *, timeout_s: float = 10.0) -> None:
        self.prefix = prefix
        self.redis: Any = redis.Redis.from_url(
            redis_url(url), decode_responses=True, socket_timeout=timeout_s, socket_connect_timeout=min(3.0, timeout_s), health_check_interval=15,
        )
        folder = resources.files("symposia_shared.ledger") / "scripts"
        library = (folder / "lib.lua").read_text() + (folder / "tenants.lua").read_text()
        self._scripts = {name: self.redis.register_script(library + (folder / f"{name}.lua").read_text()) for name in SCRIPTS}

    def key(self, name: str) -> str:
        """``name`` under our prefix."""
        return self.prefix + name

    def run(self, name: str, *args: object, pipe: Any = None) -> Any:
        """One script; within ``pipe`` its answer comes with the pipeline's."""
        with away():
            return self._scripts[name](keys=[self.prefix], args=[str(a) if not isinstance(a, str) else a for a in args], client=pipe)

    def submit(self, jobs: Sequence[NewJob], *, limits: LimitSettings = LimitSettings()) -> list[str]:
        """Record jobs. One answer each: ``ok QUEUE``, ``later QUEUE``, ``exists``, ``unplaced MODEL``, ``unable NEED MODEL``,
        ``toolong CONTEXT BYTES MODEL``, ``draining MODEL`` or ``busy SECONDS queue|jobs|memory COUNT QUEUE``; behind a busy one all are.
        """
        answers: list[str] = self.run("submit", limits.queue, limits.jobs, limits.memory, "", *_records(jobs))
        return answers

    def ask(self, jobs: Sequence[NewJob], gate: Gate, *, limits: LimitSettings = LimitSettings()) -> Passed:
        """Record the jobs of one request together or not at all; of a key that was used before, say what it stands for.

        Answers as ``submit`` has them; behind a refused job and before it ``not recorded``. Raises Limited, or BadInput for more at once than the limit.
        """
        return passed(self.run("submit", limits.queue, limits.jobs, limits.memory, gate.to_json([j.job_id for j in jobs]), *_records(jobs)))

    def open(self, job_id: str, number: int, *, deadline_ms: int, quorum: int, settle_from: int, chord: bool, digest: str,
             turns: Sequence[tuple[str, str, bool]], kept: Mapping[int, str] | None = None) -> str:
        """Open round ``number`` over (queue, payload, follows others) triples. ``won`` once; else ``was``, ``later``, ``cancelled`` or ``gone``.

        ``kept``: replies, each that of a member who spoke, that are in from the start (place → JSON or @key).
        """
        flat = [x for i, (queue, payload, follows) in enumerate(turns) for x in (queue, payload, "1" if follows else "0", (kept or {}).get(i, ""))]
        answer: str = self.run("open", job_id, number, deadline_ms, quorum, settle_from, int(chord), digest, *flat)
        return answer

    def claim(self, *, most: int, pools: int, queues: Sequence[str], named: Seat | None = None, pool: str = "",
              lease_ms: int = LEASE_MS, burden: str = "", batch: int | None = None, strict: bool = False) -> Claimed:
        """Lease up to ``most`` turns for ``pool``, in the queues' order, at most ``batch`` of them of batches; ``named`` is the one a doorbell asks about.

        ``burden``: ``TOKENS MEAN FREE`` as a pool says it; then a pool of the same queue that has less to do goes before. ``batch``: of batches
        at most so many. A named turn of another queue is leased, too, but for ``strict``.
        """
        asked = ("=" if strict else "") + named.key if named else ""
        answer = self.run("claim", uuid.uuid4().hex[:8], lease_ms, most, pools, asked, pool, burden,
                          most if batch is None else batch, *queues)
        rows = [answer[k:k + 13] for k in range(2, len(answer), 13)]
        claims = tuple(Claim(seat=Seat(r[0], int(r[1]), int(r[2])), fence=r[3], attempt=int(r[4]), deaths=int(r[5]), kind=r[6], spec=r[7],
                             payload=r[8], queue=r[9], alone=r[10] == "1", stream=r[11] == "1", reuse=r[12])
                       for r in rows)
        return Claimed(named=answer[0], left=int(answer[1]), claims=claims)

    def renew(self, held: Iterable[tuple[Seat, str]], *, lease_ms: int = LEASE_MS) -> list[Seat]:
        """Extend the leases of (seat, fence) pairs. Returns the seats that are no longer ours."""
        lost: list[str] = self.run("renew", lease_ms, *_flat(held))
        return [Seat.of(m) for m in lost]

    def record(self, replies: Sequence[tuple[Claim, str, bool, bool]]) -> list[Recorded]:
        """Record (claim, reply JSON or @key, spoke, attended) in one round trip, each once under its fence."""
        with away(), self.redis.pipeline(transaction=False) as pipe:
            for claim, reply, spoke, attended in replies:
                seat = claim.seat
                self.run("record", seat.job_id, seat.round, seat.turn, claim.fence, reply, int(spoke), int(attended), pipe=pipe)
            answers = pipe.execute()
        return [Recorded(status=a[0], closed=a[1], ring=a[2]) for a in answers]

    def postpone(self, claim: Claim, cause: Cause, retry: Retry, *, jitter: float) -> Literal["later", "over", "lost"]:
        """Have a turn that failed tried again, as ``retries.delay_s`` says. ``over``: that was done often enough; ``lost``: it is no longer ours."""
        seat = claim.seat
        answer: Literal["later", "over", "lost"] = self.run("postpone", seat.job_id, seat.round, seat.turn, claim.fence, cause, retry.most,
                                                            retry.first_s * 1000, retry.longest_s * 1000, jitter, int(retry.alone))
        return answer

    def close(self, job_id: str, number: int, reason: ClosedBy, *, from_chord: bool = False) -> str:
        """End a round, once. ``won``, ``was``, ``notyet`` or ``gone``."""
        answer: str = self.run("close", job_id, number, reason, int(from_chord))
        return answer

    def release(self, job_id: str, number: int, payloads: Mapping[int, str]) -> list[int]:
        """Queue turns whose predecessors have ended: place → payload. Returns the places it released, each once."""
        flat = [x for place, payload in payloads.items() for x in (place, payload)]
        return [int(i) for i in self.run("release", job_id, number, *flat)]

    def hand_back(self, held: Iterable[tuple[Seat, str]], *, killed: bool) -> int:
        """Give leased turns back to their queues. Returns how many were still ours."""
        return int(self.run("hand_back", "killed" if killed else "unused", *_flat(held)))

    def sweep(self, *, expire: bool, overdue_ms: int = OVERDUE_MS) -> list[str]:
        """Lost leases, passed deadlines; returns the jobs whose advance is overdue, and as ``job|round`` those whose turns wait for release."""
        due: list[str] = self.run("sweep", int(expire), overdue_ms)
        return due

    def cancel(self, job_id: str) -> str:
        """Mark a job cancelled. ``won``, ``was`` or ``gone``."""
        answer: str = self.run("cancel", job_id)
        return answer

    def forget(self, job_id: str, *, state: str, kind: str, conflicts: int = 0, letter: str = "", used: str = "") -> bool:
        """Drop a job whose result is in S3, and tell who waits; ``letter``: what the dead letters say of it, ``used``: what it used (JSON)."""
        return bool(self.run("forget", job_id, state, kind, conflicts, letter, used))

    def place(self, pool: str, models: Mapping[str, Mapping[str, object]], *, origin: str = "") -> None:
        """Say what ``pool`` is meant to serve: checkpoint → {queue, context, longest_token_bytes}."""
        self.run("place", pool, json.dumps({"origin": origin, "models": models}), "")

    def unplace(self, *, origin: str, keep: Sequence[str]) -> None:
        """Drop the placements of an origin's pools but those to keep."""
        self.run("place", "", "", origin, *keep)

    def want(self, pool: str, model: str, *, wanted: bool = True) -> None:
        """Ask a pool to take a checkpoint up, now or when it comes back; or no longer to take it up at its start."""
        with away():
            (self.redis.sadd if wanted else self.redis.srem)(self.key(f"wanted:{pool}"), model)
            self.redis.hdel(self.key("refusals"), f"{pool} {model}")

    def wanted(self, pool: str) -> set[str]:
        """The checkpoints a pool was asked to take up."""
        with away():
            return set(self.redis.smembers(self.key(f"wanted:{pool}")))

    def refuse(self, pool: str, model: str, why: str) -> None:
        """A pool cannot take a checkpoint up: whoever asked may read why, and it is not asked again."""
        with away(), self.redis.pipeline() as pipe:
            pipe.srem(self.key(f"wanted:{pool}"), model)
            pipe.hset(self.key("refusals"), f"{pool} {model}", why)
            pipe.execute()

    def refusal(self, pool: str, model: str) -> str | None:
        """Why a pool did not take a checkpoint up, if it said so."""
        with away():
            why: str | None = self.redis.hget(self.key("refusals"), f"{pool} {model}")
            return why

    def placed(self) -> dict[str, dict[str, Any]]:
        """Checkpoint → where it is served."""
        with away():
            return {model: json.loads(place) for model, place in self.redis.hgetall(self.key("placed")).items()}

    def bells(self, queues: Sequence[str]) -> dict[str, str]:
        """Queue → the Celery list its doorbells go to."""
        if not queues:
            return {}
        with away():
            return {queue: bell or queue for queue, bell in zip(queues, self.redis.hmget(self.key("bells"), list(queues)), strict=True)}

    def workers(self) -> dict[str, dict[str, Any]]:
        """Name → the last heartbeat of each coordinator and pool; one older than 10 s by its own ``beat_at`` is dead or deaf."""
        with away():
            return {name: json.loads(beat) for name, beat in self.redis.hgetall(self.key("workers")).items()}

    def beat(self, name: str, facts: Mapping[str, object], counters: Mapping[str, int] | None = None) -> None:
        """Write a worker's heartbeat and add to the counters."""
        with away(), self.redis.pipeline(transaction=False) as pipe:
            pipe.hset(self.key("workers"), name, json.dumps(facts))
            for counter, by in (counters or {}).items():
                if by:
                    pipe.hincrby(self.key("stats"), counter, by)
            pipe.execute()

    def gone(self, name: str) -> None:
        """A worker has stopped in good order."""
        with away():
            self.redis.hdel(self.key("workers"), name)

    def now_s(self) -> float:
        """Redis' own clock, in seconds."""
        with away():
            return _epoch_s(self.redis.time())

    def glance(self) -> Glance:
        """In one round trip: the server's run, its clock, and whether anything waits for one who looks now and then."""
        with away(), self.redis.pipeline(transaction=False) as pipe:
            pipe.info("server")
            pipe.time()
            for name in TIMED:
                pipe.zrange(self.key(name), 0, 0, withscores=True)
            pipe.zcard(self.key("batches"))
            info, time, *soonest, batches = pipe.execute()
        now_s = _epoch_s(time)
        due = {name for name, first in zip(TIMED, soonest, strict=True) if first and first[0][1] <= now_s * 1000}
        return Glance(info["run_id"], float(info["uptime_in_seconds"]), now_s, frozenset(due | ({"batches"} if batches else set())))

    def stats(self) -> dict[str, int]:
        """The counters, each at least 0."""
        with away():
            stored = self.redis.hgetall(self.key("stats"))
            in_flight = self.redis.zcard(self.key("jobs"))
        return {**dict.fromkeys(COUNTERS, 0), **{k: int(v) for k, v in stored.items()}, "jobs_in_flight": int(in_flight)}

    def job(self, job_id: str) -> LedgerJob | None:
        """A job in flight, or None where the ledger does not (or no longer) know it."""
        with away():
            h: dict[str, Any] = self.redis.hgetall(self.key(f"job:{job_id}"))
        if "st" not in h:
            return None
        current, state = int(h["cur"]), h["st"]
        return LedgerJob(
            job_id=job_id, state=state if state in ("cancelled", "later") else "open", kind=h["k"], spec=h["sp"], current=current,
            submitted_ms=int(h["at"]), deadline_ms=int(h["dl"]), round=round_of(h, current) if current >= 0 else None,
            due_ms=int(h.get("du", 0)), keeps=int(h["kp"]) if "kp" in h else None,
        )

    def jobs(self, most: int = 100) -> list[tuple[str, float]]:
        """The newest jobs in flight: (id, submitted at in seconds)."""
        with away():
            return [(m, s / 1000) for m, s in self.redis.zrange(self.key("jobs"), 0, most - 1, desc=True, withscores=True)]

    def ended(self, most: int = 100) -> list[tuple[str, float, str, str]]:
        """The newest ended jobs: (id, ended at in seconds, state, kind)."""
        with away():
            rows = self.redis.zrange(self.key("ended"), 0, most - 1, desc=True, withscores=True)
            states = self.redis.hmget(self.key("endings"), [m for m, _ in rows]) if rows else []
        return [(m, s / 1000, *((state or "done ?").split(" ", 1))) for (m, s), state in zip(rows, states, strict=True)]

    def known(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are in flight."""
        if not job_ids:
            return set()
        with away(), self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.exists(self.key(f"job:{job_id}"))
            return {job_id for job_id, there in zip(job_ids, pipe.execute(), strict=True) if there}

    def ahead(self, seat: Seat, queue: str) -> int | None:
        """How many turns of its queue come before this one; None where it is not queued."""
        with away():
            rank = self.redis.zrank(self.key(f"ready:{queue}"), seat.key)
        return None if rank is None else int(rank)


#: what ``symposia stats`` always shows
COUNTERS = (
    "jobs_submitted", "jobs_done", "jobs_failed", "jobs_cancelled", "calls_started", "calls_recorded", "calls_repeated",
    "dead_letters", "calls_handed_back", "calls_failed", *(f"retried_{cause}" for cause in RETRIES),
    "calls_reused", "in_flight_at_kills", "stale_replies", "late_replies", "forward_passes", "loads", "commit_conflicts",
    "notices_made", "notices_delivered", "notices_failed",
)


def _epoch_s(time: tuple[int, int]) -> float:
    """Redis' answer to TIME, in seconds."""
    seconds, micros = time
    return float(seconds) + float(micros) / 1e6


def _records(jobs: Sequence[NewJob]) -> list[object]:
    flat: list[object] = []
    for j in jobs:
        single = "1" if j.kind in SINGLE_KINDS else "0"
        # of a scripted test/say:TEXT only the first line goes: names are joined by line ends
        models = "\n".join(m.partition("\n")[0] for m in j.models)
        flat += [j.job_id, j.kind, j.spec, j.deadline_ms, j.prompt_bytes, models, single]
        flat += [-1 if j.keeps is None else j.keeps, j.priority, json.dumps(j.tags) if j.tags else "", j.due_ms, j.schedule, j.following_ms]
        flat += ["\n".join(j.needs), int(j.stream), j.reuse]
    return flat


def _flat(held: Iterable[tuple[Seat, str]]) -> Iterator[object]:
    for seat, fence in held:
        yield from (seat.job_id, seat.round, seat.turn, fence)


def redis_url(url: str) -> str:
    """A Celery broker URL as redis-py reads it (``redis+socket://`` is its ``unix://``)."""
    if url.startswith("redis+socket://"):
        return "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    return url


_FULL = "Redis has reached its maxmemory and takes nothing more; nothing was recorded. Wait for jobs to end, or raise maxmemory."


@contextmanager
def away() -> Iterator[None]:
    """Redis' own errors as BrokerUnavailable, or Busy where it is full, each with its remedy."""
    try:
        yield
    except redis.exceptions.AuthenticationError as error:
        raise BrokerUnavailable(f"Redis refuses the credentials ({error}). Check SYMPOSIA_BROKER_URL.") from error
    except redis.exceptions.OutOfMemoryError as error:
        raise Busy(_FULL, retry_after_s=5.0) from error
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError) as error:
        raise BrokerUnavailable(f"Redis cannot be reached ({error}). Start it (`symposia up`), or check SYMPOSIA_BROKER_URL.") from error
    except redis.exceptions.ResponseError as error:
        text = str(error)
        if "MISCONF" in text or "READONLY" in text:
            raise BrokerUnavailable(f"Redis does not write ({text[:160]}). See its log: a full disk or a replica is the usual cause.") from error
        if "OOM" in text:
            raise Busy(_FULL, retry_after_s=5.0) from error
        raise
