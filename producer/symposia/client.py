"""The front door: submit jobs, ask, and hold what was submitted."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from symposia.asking import embeddings, question, score_of, scoring, vectors_of
from symposia.batches import TenantBatches
from symposia.handle import AsyncHandle, Handle
from symposia.on_commit import submit_on_commit
from symposia.once import submit_once
from symposia.telling import submit_wishing, wish_of
from symposia.watcher import Watcher
from symposia_shared.archive import Archive, checked_id
from symposia_shared.broker import Doorbell, celery_app
from symposia_shared.erasing import Erased, Places, erase
from symposia_shared.errors import BadInput, UnknownJob
from symposia_shared.jobs import Job
from symposia_shared.ledger import Ledger, NewJob
from symposia_shared.ledger.control import Control
from symposia_shared.ledger.outbox import Outbox
from symposia_shared.prompts import Sampling
from symposia_shared.results import Result, Score
from symposia_shared.schedules import Schedule, Schedules
from symposia_shared.settings import Settings, load
from symposia_shared.store import Store
from symposia_shared.submission import new_job, refusal, ring, taken

if TYPE_CHECKING:
    from celery.canvas import Signature

#: jobs recorded in one round trip
SUBMIT_BATCH = 250
#: of them, long ones that are written to S3 at the same time
WRITES_AT_ONCE = 4
#: of jobs cancelled together, so many are rung for; the sweeper finds the others within seconds
RUNG = 100


class Client:
    """A producer's side of a deployment. Safe to share between threads; connections are made on first use.

    ``dir`` is a stack's folder (default: SYMPOSIA_DIR or ~/.symposia); SYMPOSIA_* environment settings come before it.
    """

    def __init__(self, dir: str | Path | None = None, *, settings: Settings | None = None) -> None:
        self.settings = settings or load(dir)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of this deployment."""
        return Ledger(self.settings.broker, self.settings.prefix)

    @cached_property
    def archive(self) -> Archive:
        """The papers of its jobs."""
        return Archive(Store(self.settings.s3))

    @cached_property
    def watcher(self) -> Watcher:
        """What hears of jobs' ends."""
        return Watcher(self.ledger)

    @cached_property
    def batches(self) -> TenantBatches:
        """Batches and their files, of the tenant ``default``."""
        return TenantBatches(self)

    @cached_property
    def bell(self) -> Doorbell:
        """What wakes pools and coordinators."""
        bell = Doorbell(celery_app(self.settings, role="producer"))
        bell.connect()
        return bell

    @cached_property
    def outbox(self) -> Outbox:
        """Who is told of jobs' ends."""
        return Outbox(self.ledger, self.settings.signing_key)

    def submit(self, job: Job, *, job_id: str | None = None, at: datetime | None = None, delay_s: float = 0.0, idempotency_key: str | None = None,
               webhook: str | Sequence[str] | None = None, link: Signature[Any] | None = None, link_error: Signature[Any] | None = None) -> Handle:
        """Record a job and return its handle once the record is on Redis' disk.

        A job that comes again under its ``idempotency_key`` is the same job, for as long as ``SYMPOSIA_LIMITS__IDEMPOTENCY_S`` says;
        another job under the key raises KeyReused.

        ``at`` (with a time zone) or ``delay_s`` have it begin later; it then waits in Redis, and its deadline counts from when it
        is opened. ``webhook`` is told of its end; ``link``, a task of your own Celery app, is sent once with the result's key (``result_of``
        reads it) where the job is done, ``link_error`` where it is not.

        Raises UnknownModel, NotPlaced, PromptTooLong, Busy, or BadInput where the checkpoint cannot do what is asked: nothing was recorded
        then. Raises BrokerUnavailable or StoreUnavailable.
        """
        if webhook is not None or link is not None or link_error is not None:
            wish = wish_of(webhook=webhook, link=link, link_error=link_error, broker=self.settings.broker, allowed=self.settings.webhooks.networks)
            return submit_wishing(self, job, wish, job_id=job_id, at=at, delay_s=delay_s, idempotency_key=idempotency_key)
        return self.submit_as(job, job_id=job_id, at=at, delay_s=delay_s, idempotency_key=idempotency_key)

    def submit_as(self, job: Job, *, job_id: str | None, drawn: bool = False, at: datetime | None = None, delay_s: float = 0.0,
                  idempotency_key: str | None = None) -> Handle:
        """``submit`` where nobody is to be told. ``drawn``: the id was drawn for this job, so no other can have it and none is looked for."""
        if idempotency_key is not None:
            return submit_once(self, job, idempotency_key, job_id=job_id, drawn=drawn, at=at, delay_s=delay_s)
        due_ms = self.due_ms(at, delay_s) if at is not None or delay_s > 0 else 0
        chosen = checked_id(job_id or uuid.uuid4().hex)
        _ = self.bell  # as in submit_many
        if job_id is not None and not drawn and self.archive.result(chosen) is not None:
            raise taken(chosen)
        return self.submit_records([self.record_of(chosen, job, due_ms=due_ms)])[0]

    def submit_on_commit(self, job: Job, *, using: str | None = None, **more: Any) -> Handle:
        """Submit a job when Django's transaction is committed; see ``symposia.on_commit``."""
        return submit_on_commit(self, job, using=using, **more)

    def submit_many(self, jobs: Sequence[Job], *, job_ids: Sequence[str] | None = None) -> list[Handle]:
        """Record many jobs in few round trips, in order. A refused one raises at once; those before it are recorded."""
        ids = [checked_id(j) for j in job_ids] if job_ids is not None else [uuid.uuid4().hex for _ in jobs]
        if len(ids) != len(jobs) or len(set(ids)) != len(ids):
            raise BadInput(f"{len(jobs)} jobs came with {len(ids)} ids, {len(set(ids))} of them different.", field="job_ids",
                           remedy="Give each job an id of its own.")
        _ = self.bell  # imports Celery and connects, which takes a while: before the job's clock starts, not between its record and its ring
        handles: list[Handle] = []
        for start in range(0, len(jobs), SUBMIT_BATCH):
            chunk = list(zip(ids[start:start + SUBMIT_BATCH], jobs[start:start + SUBMIT_BATCH], strict=True))
            for job_id, _ in chunk:
                if job_ids is not None and self.archive.result(job_id) is not None:
                    raise taken(job_id)
            handles += self.submit_records(self._records(chunk))
        return handles

    def due_ms(self, at: datetime | None, delay_s: float) -> int:
        """When a job is to begin, in epoch's ms. Raises BadInput."""
        if at is not None and (at.tzinfo is None or delay_s > 0):
            raise BadInput(f"at is {at!s}" + ("" if at.tzinfo is None else f" and delay_s {delay_s:g}") + ".", field="at", value=at,
                           remedy="Give a time with its zone (datetime.now(UTC) + ...), or delay_s, and one of them.")
        _ = self.bell, self.archive.store.client  # what takes a while comes before the clock is read
        return int((at.timestamp() if at is not None else self.ledger.now_s() + delay_s) * 1000)

    def schedule(self, schedule_id: str, job: Job, *, cron: str | None = None, every_s: int | None = None) -> int:
        """Have a job recur, by a cron expression in UTC or every so many seconds; returns when it is first due, in epoch's seconds.

        A schedule of this id is replaced. Raises BadInput and what ``submit`` raises.
        """
        record = self.record_of(checked_id(f"schedule-{schedule_id}"), job)
        now = self.ledger.now_s()
        recipe = {f: getattr(record, f) for f in ("kind", "spec", "deadline_ms", "prompt_bytes", "models", "priority", "tags")}
        raw = {"id": schedule_id, "cron": cron, "every_s": every_s, "begins_s": int(now), "recipe": recipe}
        return Schedules(self.ledger).add(Schedule.parse(raw), now_s=now)

    def submit_records(self, records: Sequence[NewJob]) -> list[Handle]:
        """Record what was made ready, and ring. Raises what ``submit_many`` raises."""
        _ = self.bell
        answers = self.ledger.submit(records, limits=self.settings.limits)
        self.ring(records, answers)
        self.check(records, answers)
        return [Handle(self, record.job_id) for record in records]

    def check(self, records: Sequence[NewJob], answers: Sequence[str]) -> None:
        """Raise the reason of the first job that the ledger has not taken."""
        for record, answer in zip(records, answers, strict=False):
            if not answer.startswith(("ok ", "later ", "not recorded")):
                raise refusal(self.ledger, self.archive.store, record, answer)

    def record_of(self, job_id: str, job: Job, **more: Any) -> NewJob:
        """What the ledger is to record of a job: checked, its draws fixed, its JSON in S3 where it is long. Raises BadInput or StoreUnavailable."""
        return replace(self._record(job_id, job), **more)

    def ask(self, prompt: str, *, model: str, system: str | None = None, timeout: float | None = None, sampling: Sampling | None = None) -> str:
        """One prompt to one model; waits, and returns what it said. Raises what ``submit`` and ``Handle.result`` raise."""
        return self.submit(question(prompt, model=model, system=system, sampling=sampling)).result(timeout).answer or ""

    def embed(self, texts: Sequence[str], *, model: str, timeout: float | None = None) -> list[list[float]]:
        """A vector of length one for each text, in their order. Raises what ``submit`` and ``Handle.result`` raise."""
        results = [h.result(timeout) for h in self.submit_many(embeddings(texts, model=model))]
        return [list(v) for found in results for v in vectors_of(found)]

    def score(self, text: str, *, model: str, given: str | None = None, timeout: float | None = None) -> Score:
        """How likely ``model`` finds ``text``, as an answer to ``given`` or by itself. Raises what ``submit`` and ``Handle.result`` raise."""
        return score_of(self.submit(scoring(text, model=model, given=given)).result(timeout))

    def handle(self, job_id: str) -> Handle:
        """The handle of a job submitted before, here or elsewhere."""
        return Handle(self, checked_id(job_id))

    def cancel(self, job_id: str) -> bool:
        """Ask for a job's end. False where it had ended already. Raises UnknownJob."""
        answer = self.ledger.cancel(checked_id(job_id))
        if answer == "gone" and self.archive.result(job_id) is None:
            raise UnknownJob(f"no job {job_id!r} is in the ledger or in S3.", field="job_id", value=job_id, remedy="List them with `symposia jobs`.")
        if answer == "won":
            self.bell.advance(job_id, kind="cancelled")
        return answer == "won"

    def cancel_many(self, job_ids: Sequence[str]) -> list[str]:
        """Ask for jobs' ends; returns those that had not ended and were not asked before."""
        won = Control(self.ledger).cancel([checked_id(j) for j in job_ids])
        for job_id in won[:RUNG]:
            self.bell.advance(job_id, kind="cancelled")
        return won

    def result_of(self, key: str) -> Result:
        """The result at a key, as a linked task is sent it. Raises UnknownJob."""
        head, _, rest = key.partition("jobs/")
        job_id, _, name = rest.partition("/")
        result = self.archive.result(checked_id(job_id)) if not head and name == "result.json" else None
        if result is None:
            raise UnknownJob(f"no result is at {key!r}.", field="key", value=key, remedy="Give the key as a linked task is sent it: jobs/ID/result.json.")
        return result

    def delete(self, job_id: str, *, timeout: float = 30.0) -> Erased:
        """Erase every copy of a job; returns what was erased. One in flight is cancelled first, and its end waited for.

        Raises UnknownJob, and NotYet where it has not ended within ``timeout`` seconds.
        """
        if self.ledger.job(checked_id(job_id)) is not None:
            self.cancel(job_id)
            self.handle(job_id).wait(timeout)
        return erase(Places(self.ledger, self.archive), job_id)

    def stats(self) -> dict[str, int]:
        """The deployment's counters."""
        return self.ledger.stats()

    def close(self) -> None:
        """Let go of the connections."""
        if "watcher" in self.__dict__:
            self.watcher.close()
        if "bell" in self.__dict__:
            self.bell.app.close()
        if "ledger" in self.__dict__:
            self.ledger.redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _record(self, job_id: str, job: Job) -> NewJob:
        return new_job(self.ledger, self.archive, job_id, job, seed=secrets.randbits(48))

    def _records(self, asked: Sequence[tuple[str, Job]]) -> list[NewJob]:
        """In order; the long ones are written to S3 side by side. Raises what the first that fails raises, and begins no other then."""
        several = ThreadPoolExecutor(WRITES_AT_ONCE, thread_name_prefix="symposia-records")
        try:
            return list(several.map(lambda one: self._record(*one), asked))
        finally:
            several.shutdown(cancel_futures=True)

    def ring(self, records: Sequence[NewJob], answers: Sequence[str]) -> None:
        """Wake whoever runs the jobs that the ledger has taken."""
        ring(self.bell, records, answers)


class AsyncClient:
    """The same names, awaited; no call blocks the event loop."""

    def __init__(self, dir: str | Path | None = None, *, settings: Settings | None = None) -> None:
        self._client = Client(dir, settings=settings)

    async def submit(self, job: Job, *, job_id: str | None = None, at: datetime | None = None, delay_s: float = 0.0,
                     idempotency_key: str | None = None, webhook: str | Sequence[str] | None = None, link: Signature[Any] | None = None,
                     link_error: Signature[Any] | None = None) -> AsyncHandle:
        """Record a job; see ``Client.submit``."""
        return AsyncHandle(await asyncio.to_thread(self._client.submit, job, job_id=job_id, at=at, delay_s=delay_s, idempotency_key=idempotency_key,
                                                   webhook=webhook, link=link, link_error=link_error))

    async def submit_many(self, jobs: Sequence[Job], *, job_ids: Sequence[str] | None = None) -> list[AsyncHandle]:
        """Record many jobs; see ``Client.submit_many``."""
        return [AsyncHandle(h) for h in await asyncio.to_thread(self._client.submit_many, jobs, job_ids=job_ids)]

    async def ask(self, prompt: str, *, model: str, system: str | None = None, timeout: float | None = None, sampling: Sampling | None = None) -> str:
        """One prompt to one model; what it said."""
        handle = await self.submit(question(prompt, model=model, system=system, sampling=sampling))
        result: Result = await handle.result(timeout)
        return result.answer or ""

    async def embed(self, texts: Sequence[str], *, model: str, timeout: float | None = None) -> list[list[float]]:
        """A vector of length one for each text; see ``Client.embed``."""
        results = [await h.result(timeout) for h in await self.submit_many(embeddings(texts, model=model))]
        return [list(v) for found in results for v in vectors_of(found)]

    async def score(self, text: str, *, model: str, given: str | None = None, timeout: float | None = None) -> Score:
        """How likely ``model`` finds ``text``; see ``Client.score``."""
        handle = await self.submit(scoring(text, model=model, given=given))
        return score_of(await handle.result(timeout))

    def handle(self, job_id: str) -> AsyncHandle:
        """The handle of a job submitted before."""
        return AsyncHandle(self._client.handle(job_id))

    async def cancel(self, job_id: str) -> bool:
        """Ask for a job's end."""
        return await asyncio.to_thread(self._client.cancel, job_id)

    async def delete(self, job_id: str, *, timeout: float = 30.0) -> Erased:
        """Erase every copy of a job; see ``Client.delete``."""
        return await asyncio.to_thread(self._client.delete, job_id, timeout=timeout)

    async def stats(self) -> dict[str, int]:
        """The deployment's counters."""
        return await asyncio.to_thread(self._client.stats)

    async def close(self) -> None:
        """Let go of the connections."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
