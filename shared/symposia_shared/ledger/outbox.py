"""The notices of a deployment, in Redis: made once, given to one sender at a time, kept until they are taken or given up."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from symposia_shared.errors import BadInput, Busy
from symposia_shared.ledger import Ledger, away
from symposia_shared.notices.targets import Network, read_target
from symposia_shared.notices.wishes import Endpoint, Wish, seal, secret_of, unseal
from symposia_shared.values import Value

#: seconds a wish is kept of whose job it is not known whether it was recorded: longer than any deadline
WISH_S = 60 * 86_400
#: ms after which what a sender took comes to another: it was killed
LEASE_MS = 90_000
#: endpoints of a tenant
MOST_ENDPOINTS = 16
#: hours for which a notice is also signed with the secret that was replaced
OLD_SECRET_HOURS = 24

State = Literal["waiting", "delivered", "failed"]


class Notice(Value):
    """What one receiver is told. ``body``: as it is sent; of a linked task, the task, sealed."""

    id: str
    kind: Literal["webhook", "link"]
    tenant: str
    type: str
    #: a URL, or a task's name
    target: str
    body: str
    job_id: str | None = None
    #: the tenant's endpoint, where it is not the job's own
    endpoint: str | None = None


class Standing(Value):
    """A notice and how it stands. Times in seconds since the epoch."""

    notice: Notice
    state: State
    tries: int = 0
    created_at: float = 0.0
    #: when it is tried next
    due_at: float | None = None
    ended_at: float | None = None
    #: what the last try came to
    last: str = Field("", max_length=400)


class Outbox:
    """Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger, key: bytes) -> None:
        self.ledger, self.key = ledger, key

    # -- wishes ----------------------------------------------------------------------------------------------------

    def wish(self, job_id: str, wish: Wish) -> bool:
        """Write who is to be told of a job that is to be submitted now. False where somebody wished for a job of this id before."""
        with away():
            return bool(self.ledger.redis.set(self._k(f"tell:{job_id}"), seal(self.key, job_id, wish), nx=True, ex=WISH_S))

    def keep(self, job_id: str) -> None:
        """The job was recorded: the wish stays until its end, however far off."""
        with away():
            self.ledger.redis.persist(self._k(f"tell:{job_id}"))

    def withdraw(self, job_id: str) -> None:
        """The job was refused."""
        with away():
            self.ledger.redis.unlink(self._k(f"tell:{job_id}"))

    def wished(self, job_id: str) -> Wish:
        """Who is to be told of a job's end. Raises Damaged where that was not written with our key."""
        with away():
            text = self.ledger.redis.get(self._k(f"tell:{job_id}"))
        return Wish() if text is None else unseal(self.key, job_id, text, Wish)

    # -- what is due -----------------------------------------------------------------------------------------------

    def ended_jobs(self, most: int = 100) -> list[str]:
        """Ended jobs of which notices are to be made, each given to one caller."""
        found: list[str] = self.ledger.run("due", "tellings", most, LEASE_MS)
        return found

    def put(self, notices: Sequence[Notice], *, job_id: str = "") -> None:
        """Make notices, each once by its id; with ``job_id`` all of that job, whose wish is then done with."""
        self.ledger.run("notices", job_id, *(x for n in notices for x in (n.id, n.to_json())))

    def due(self, most: int) -> list[Standing]:
        """Notices to be sent now, each given to one caller."""
        if most <= 0:
            return []
        ids: list[str] = self.ledger.run("due", "notices", most, LEASE_MS)
        found = [(i, self.get(i)) for i in ids]
        with away():
            for notice_id, standing in found:
                if standing is None or standing.state != "waiting":
                    self.ledger.redis.zrem(self._k("notices"), notice_id)
        return [s for _, s in found if s is not None and s.state == "waiting"]

    def hold(self, notice_id: str, seconds: float) -> None:
        """Not now: it comes again after so long, and no try is counted."""
        with away():
            self.ledger.redis.zadd(self._k("notices"), {notice_id: (self.ledger.now_s() + seconds) * 1000}, xx=True)

    def tried(self, notice_id: str, last: str, *, due_s: float | None, delivered: bool, keep_s: float | None) -> None:
        """A try has ended: the notice is tried again at ``due_s``, or that was the last one. ``keep_s``: how long it is then kept."""
        key, state = self._k(f"notice:{notice_id}"), "delivered" if delivered else "waiting" if due_s is not None else "failed"
        with away():
            if not self.ledger.redis.exists(key):  # erased while it was sent
                return
        with away(), self.ledger.redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(key, "n", 1)
            pipe.hset(key, mapping={"st": state, "last": last[:400], **({} if state == "waiting" else {"end": int(self.ledger.now_s() * 1000)})})
            if state == "waiting":
                pipe.zadd(self._k("notices"), {notice_id: (due_s or 0.0) * 1000})
            else:
                pipe.zrem(self._k("notices"), notice_id)
                pipe.hincrby(self._k("stats"), f"notices_{state}", 1)
                if keep_s is not None:
                    pipe.expire(key, max(1, int(keep_s)))
            pipe.execute()

    def replay(self, notice_id: str) -> bool:
        """Send a notice again, with its own id and all its tries anew. False where it is not known any more."""
        key = self._k(f"notice:{notice_id}")
        with away():
            if not self.ledger.redis.exists(key):
                return False
            now = int(self.ledger.now_s() * 1000)
            with self.ledger.redis.pipeline(transaction=True) as pipe:
                pipe.persist(key)
                pipe.hset(key, mapping={"st": "waiting", "since": now, "n": 0})
                pipe.hdel(key, "end")
                pipe.zadd(self._k("notices"), {notice_id: now})
                pipe.execute()
        return True

    # -- looking ---------------------------------------------------------------------------------------------------

    def get(self, notice_id: str) -> Standing | None:
        """One notice."""
        with away(), self.ledger.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._k(f"notice:{notice_id}"))
            pipe.zscore(self._k("notices"), notice_id)
            h, due = pipe.execute()
        if "b" not in h:
            return None
        return Standing(notice=Notice.from_json(h["b"]), state=h["st"], tries=int(h["n"]), created_at=int(h["at"]) / 1000,
                        due_at=None if due is None or h["st"] != "waiting" else due / 1000,
                        ended_at=int(h["end"]) / 1000 if "end" in h else None, last=h.get("last", ""))

    def since(self, notice_id: str) -> float:
        """When its tries were begun."""
        with away():
            return int(self.ledger.redis.hget(self._k(f"notice:{notice_id}"), "since") or 0) / 1000

    def all(self, *, tenant: str | None = None, job_id: str | None = None, state: State | None = None, most: int = 100) -> list[Standing]:
        """Notices, newest first."""
        found: list[Standing] = []
        with away():
            ids = self.ledger.redis.zrange(self._k("told"), 0, -1, desc=True) if job_id is None else sorted(self.of_job(job_id))
        for notice_id in ids:
            standing = self.get(notice_id)
            if standing is not None and tenant in (None, standing.notice.tenant) and state in (None, standing.state):
                found.append(standing)
            if len(found) == most:
                break
        return found

    def of_job(self, job_id: str) -> set[str]:
        """The ids of a job's notices."""
        with away():
            return set(self.ledger.redis.smembers(self._k(f"notices:{job_id}")))

    # -- a tenant's endpoints and secret ---------------------------------------------------------------------------

    def register(self, tenant: str, url: str, *, events: Sequence[str] = (), allowed: Sequence[Network] = ()) -> Endpoint:
        """Have a tenant's URL told of all its jobs. Raises BadInput for a URL that may not be called, Busy where there are too many."""
        read_target(url, field="url", allowed=allowed)
        if any(e not in EVENTS for e in events):
            raise BadInput(f"'events' is {list(events)!r}.", field="events", value=list(events), remedy=f"Use {', '.join(EVENTS)}.")
        endpoint = Endpoint(id=f"we_{uuid.uuid4().hex[:24]}", url=url, events=tuple(events), created_at=round(self.ledger.now_s(), 3))
        with away():
            if self.ledger.redis.hlen(self._k(f"hooks:{tenant}")) >= MOST_ENDPOINTS:
                raise Busy(f"there are {MOST_ENDPOINTS} webhooks, which is the most a tenant may have. Delete one.", retry_after_s=60.0)
        self._keep(tenant, endpoint)
        return endpoint

    def endpoints(self, tenant: str) -> list[Endpoint]:
        """A tenant's endpoints, oldest first. Raises Damaged."""
        with away():
            stored = self.ledger.redis.hgetall(self._k(f"hooks:{tenant}"))
        return sorted((unseal(self.key, f"{tenant} {i}", text, Endpoint) for i, text in stored.items()), key=lambda e: e.created_at)

    def unregister(self, tenant: str, endpoint_id: str) -> bool:
        """Tell an endpoint nothing more; notices that wait are still sent. False where there is none of this id."""
        with away():
            return bool(self.ledger.redis.hdel(self._k(f"hooks:{tenant}"), endpoint_id))

    def disable(self, tenant: str, endpoint_id: str, why: str) -> None:
        """Nothing more is sent to an endpoint that said so itself (410)."""
        found = next((e for e in self.endpoints(tenant) if e.id == endpoint_id), None)
        if found is not None:
            self._keep(tenant, found.model_copy(update={"disabled": why}))

    def secrets(self, tenant: str) -> list[str]:
        """The secrets a notice is signed with now: the tenant's, and for a day the one before."""
        generation, rotated = self._generation(tenant)
        kept = generation > 0 and self.ledger.now_s() - rotated < OLD_SECRET_HOURS * 3600
        return [secret_of(self.key, tenant, g) for g in ([generation, generation - 1] if kept else [generation])]

    def rotate(self, tenant: str) -> str:
        """A new secret for a tenant."""
        generation, _ = self._generation(tenant)
        with away():
            self.ledger.redis.hset(self._k("secrets"), tenant, json.dumps([generation + 1, round(self.ledger.now_s(), 3)]))
        return secret_of(self.key, tenant, generation + 1)

    def _generation(self, tenant: str) -> tuple[int, float]:
        with away():
            stored = self.ledger.redis.hget(self._k("secrets"), tenant)
        found: list[Any] = json.loads(stored) if stored else [0, 0.0]
        return int(found[0]), float(found[1])

    def _keep(self, tenant: str, endpoint: Endpoint) -> None:
        with away():
            self.ledger.redis.hset(self._k(f"hooks:{tenant}"), endpoint.id, seal(self.key, f"{tenant} {endpoint.id}", endpoint))

    def _k(self, name: str) -> str:
        return self.ledger.key(name)


#: what webhooks are told of: a job's end, or where the job is a response's, the response's
EVENTS = ("job.done", "job.failed", "job.cancelled", "response.completed", "response.incomplete", "response.failed", "response.cancelled")
