"""Who wished to be told of a job's end is told, beside the coordinator's sweep and never in its way."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import urlsplit

from symposia_shared.archive import Archive
from symposia_shared.errors import Damaged, Unavailable
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.outbox import Notice, Outbox, Standing
from symposia_shared.ledger.usage import tenant_of
from symposia_shared.notices.wishes import LinkedTask, seal, signed_headers, unseal
from symposia_shared.results import Result
from symposia_shared.settings import Settings
from symposia_worker.notices.linking import send
from symposia_worker.notices.posting import Posted, cut_all, post
from symposia_worker.sleeping import Sleep

log = logging.getLogger(__name__)

#: seconds between looks at what is due where nobody says that something is
LOOK_S = 2.0
#: notices sent at once, and to one host at once: a slow one holds up no other
SENDERS, PER_HOST = 16, 4
#: seconds before the second try, and between tries at most; each is four times the one before
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 8 * 3600.0


def wait_s(tries: int, *, jitter: float) -> float:
    """Seconds after the ``tries``-th try; ``jitter`` 0 to 1 spreads it by a quarter either way."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 4 ** (tries - 1)) * (0.75 + jitter / 2))


class Teller:
    """Makes the notices of ended jobs and sends them. Any number may run: each notice is given to one at a time."""

    def __init__(self, ledger: Ledger, archive: Archive, settings: Settings) -> None:
        self.archive, self.settings = archive, settings
        self.outbox = Outbox(ledger, settings.signing_key)
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="notice")
        self._hosts: Counter[str] = Counter()
        self._mutex = threading.Lock()
        self._sleep = Sleep()
        #: whether a look found as much as could be begun, so that there may be more
        self._more = False
        self._thread = threading.Thread(target=self._loop, name="teller", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; what is being sent is sent again by the next one, if its end is not written down."""
        self._sleep.end()
        self._senders.shutdown(wait=False, cancel_futures=True)
        cut_all()

    def heed(self, due: Set[str]) -> None:
        """Look now if something is to be told."""
        if due & {"tellings", "notices"}:
            self._sleep.wake()

    def _loop(self) -> None:
        while self._sleep.rested(LOOK_S):
            try:
                self.look()
            except Unavailable as error:
                log.warning("notices wait: %s", error)
                self._sleep.over.wait(1.0)
            except Exception:
                log.exception("notices")
                self._sleep.over.wait(1.0)

    def look(self) -> None:
        """Make what is to be made, begin to send what is due."""
        for job_id in self.outbox.ended_jobs():
            self.make(job_id)
        with self._mutex:
            free = SENDERS - sum(self._hosts.values())
        due = self.outbox.due(free)
        self._more = len(due) == free
        for standing in due:
            host = _host(standing.notice)
            with self._mutex:
                busy = self._hosts[host] >= PER_HOST
                self._hosts[host] += not busy
            if busy:
                self.outbox.hold(standing.notice.id, 1.0)
            else:
                self._senders.submit(self._deliver, standing, host)

    def make(self, job_id: str) -> None:
        """The notices of an ended job: those wished for it, and those of its tenant."""
        result = self.archive.result(job_id)
        notices = [] if result is None else self._notices(result)
        self.outbox.put(notices, job_id=job_id)

    def _notices(self, result: Result) -> list[Notice]:
        tenant = tenant_of(result.job.get("tags", ()))
        kind, body = self._event(result)
        try:
            wish = self.outbox.wished(result.job_id)
            endpoints = [e for e in self.outbox.endpoints(tenant) if e.disabled is None and (not e.events or kind in e.events)]
        except Damaged as error:
            log.error("%s nobody is told of its end: %s", result.job_id, error)
            return []
        if any(str(t).startswith("batch:") for t in result.job.get("tags", ())):
            endpoints = []
        found = [Notice(id=notice_id(result.job_id, url), kind="webhook", tenant=tenant, type=kind, target=url, body=body, job_id=result.job_id)
                 for url in wish.webhooks]
        found += [Notice(id=notice_id(result.job_id, e.id), kind="webhook", tenant=tenant, type=kind, target=e.url, body=body, job_id=result.job_id,
                         endpoint=e.id) for e in endpoints]
        linked = wish.link if result.state == "done" else wish.link_error
        if linked is not None:
            found.append(Notice(id=notice_id(result.job_id, "link"), kind="link", tenant=tenant, type=kind, target=linked.task, job_id=result.job_id,
                                body=seal(self.outbox.key, f"link {result.job_id}", linked)))
        return found

    def _event(self, result: Result) -> tuple[str, str]:
        """The type of what is told, and its JSON: thin, so that no answer travels to where it may not be read."""
        job_id, ended = result.job_id, result.ended_at
        kind, subject = f"job.{result.state}", job_id
        if self.archive.store.head(f"jobs/{job_id}/response.json") is not None:
            completion = result.completion
            short = completion is not None and completion.finish_reason == "length"
            kind = "response." + ("incomplete" if short else {"done": "completed"}.get(result.state, result.state))
            subject = f"resp_{job_id}"
        said = {
            "id": notice_id(job_id, kind), "object": "event", "type": kind, "created_at": int(ended),
            "timestamp": datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": {"id": subject, "job_id": job_id, "status": result.state, "kind": result.job.get("kind"), "result_key": self.archive.result_key(job_id),
                     "error": None if result.error is None else result.error.model_dump()},
        }
        return kind, json.dumps(said, ensure_ascii=False)

    # -- sending ---------------------------------------------------------------------------------------------------

    def _deliver(self, standing: Standing, host: str) -> None:
        try:
            self.deliver(standing)
        except Unavailable as error:
            log.warning("%s %s: %s", standing.notice.job_id, standing.notice.id, error)
        except Exception:
            log.exception("notice %s", standing.notice.id)
        finally:
            with self._mutex:
                self._hosts[host] -= 1
            if self._more:
                self._sleep.wake()

    def deliver(self, standing: Standing) -> None:
        """Send a notice once and write down what came of it."""
        notice, tries = standing.notice, standing.tries + 1
        posted = self._linked(notice) if notice.kind == "link" else self._posted(notice)
        log.info("notice → %s %s %s try %d: %s", notice.job_id, notice.type, host_of(notice), tries, posted.said)
        if posted.status == 410 and notice.endpoint is not None:
            self.outbox.disable(notice.tenant, notice.endpoint, "it answered 410 Gone")
        due = None if posted.taken or posted.status == 410 or posted.forbidden else self._next(notice.id, tries, posted)
        days = self.settings.retention.notices_days
        self.outbox.tried(notice.id, posted.said, due_s=due, delivered=posted.taken, keep_s=None if days is None else days * 86_400)

    def _next(self, notice_id: str, tries: int, posted: Posted) -> float | None:
        """When it is tried again: the last time at the end of its hours."""
        now, until = self.outbox.ledger.now_s(), self.outbox.since(notice_id) + self.settings.webhooks.hours * 3600
        if now >= until:
            return None
        wait = max(wait_s(tries, jitter=random.random()), posted.retry_after_s or 0.0)  # noqa: S311 - jitter, not a secret
        return min(now + wait, until)

    def _posted(self, notice: Notice) -> Posted:
        body = notice.body.encode()
        headers = signed_headers(self.outbox.secrets(notice.tenant), notice.id, int(time.time()), body)
        return post(notice.target, body, headers, allowed=self.settings.webhooks.networks, timeout_s=self.settings.webhooks.timeout_s)

    def _linked(self, notice: Notice) -> Posted:
        job_id = notice.job_id or ""
        try:
            linked = unseal(self.outbox.key, f"link {job_id}", notice.body, LinkedTask)
        except Damaged as error:
            return Posted(None, str(error), forbidden=True)
        try:
            send(linked, self.archive.result_key(job_id), task_id=task_id_of(job_id), own_broker=self.settings.broker)
        except Exception as error:  # each broker has errors of its own
            return Posted(None, f"not sent: {type(error).__name__}: {_without_secrets(str(error), linked)}"[:300])
        return Posted(200, "sent")


def notice_id(job_id: str, receiver: str) -> str:
    """The id of what a receiver is told of a job: the same however often it is made."""
    return "evt_" + hashlib.sha256(f"{job_id}\n{receiver}".encode()).hexdigest()[:32]


def task_id_of(job_id: str) -> str:
    """The Celery id of the task that is linked to a job."""
    digest = hashlib.sha256(f"symposia linked {job_id}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"


def _host(notice: Notice) -> str:
    return "link" if notice.kind == "link" else host_of(notice)


def host_of(notice: Notice) -> str:
    """Whom it goes to, without path and query: those may be secrets of the receiver's."""
    return notice.target if notice.kind == "link" else urlsplit(notice.target).hostname or ""


def _without_secrets(text: str, linked: LinkedTask) -> str:
    password = urlsplit(linked.broker).password if linked.broker else None
    return text.replace(password, "...") if password else text


