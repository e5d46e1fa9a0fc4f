"""The front door: submit jobs, ask, and hold what was submitted."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from symposia.admission import check_roles, needs, prompt_bytes, sized, unable
from symposia.asking import embeddings, question, score_of, scoring, vectors_of
from symposia.handle import AsyncHandle, Handle
from symposia.on_commit import submit_on_commit
from symposia.once import submit_once
from symposia.telling import submit_wishing, wish_of
from symposia.watcher import Watcher
from symposia_shared.archive import Archive, checked_id
from symposia_shared.broker import CHECKS, Doorbell, celery_app
from symposia_shared.erasing import Erased, Places, erase
from symposia_shared.errors import BadInput, Busy, NotPlaced, PromptTooLong, SymposiaError, UnknownJob, UnknownModel
from symposia_shared.jobs import SINGLE_KINDS, Job
from symposia_shared.ledger import Ledger, NewJob, Seat
from symposia_shared.ledger.control import Control
from symposia_shared.ledger.outbox import Outbox
from symposia_shared.ledger.usage import tenant_of
from symposia_shared.prompts import Sampling
from symposia_shared.results import Result, Score
from symposia_shared.schedules import Schedule, Schedules
from symposia_shared.settings import Settings, load
from symposia_shared.store import Store

if TYPE_CHECKING:
    from celery.canvas import Signature

#: jobs recorded in one round trip
SUBMIT_BATCH = 250
#: of jobs submitted together, every so many share a doorbell: one bell claims as many turns (``pool.BELL_CLAIMS``)
PER_BELL = 8


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
        if idempotency_key is not None:
            return submit_once(self, job, idempotency_key, job_id=job_id, at=at, delay_s=delay_s)
        if at is not None or delay_s > 0:
            return self._submit_later(job, job_id or uuid.uuid4().hex, at, delay_s)
        return self.submit_many([job], job_ids=None if job_id is None else [job_id])[0]

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
                    raise self.taken(job_id)
            records = [self._record(job_id, job) for job_id, job in chunk]
            handles += self.submit_records(records)
        return handles

    def due_ms(self, at: datetime | None, delay_s: float) -> int:
        """When a job is to begin, in epoch's ms. Raises BadInput."""
        if at is not None and (at.tzinfo is None or delay_s > 0):
            raise BadInput(f"at is {at!s}" + ("" if at.tzinfo is None else f" and delay_s {delay_s:g}") + ".", field="at", value=at,
                           remedy="Give a time with its zone (datetime.now(UTC) + ...), or delay_s, and one of them.")
        _ = self.bell, self.archive.store.client  # what takes a while comes before the clock is read
        return int((at.timestamp() if at is not None else self.ledger.now_s() + delay_s) * 1000)

    def _submit_later(self, job: Job, job_id: str, at: datetime | None, delay_s: float) -> Handle:
        due_ms = self.due_ms(at, delay_s)
        if self.archive.result(checked_id(job_id)) is not None:
            raise self.taken(job_id)
        return self.submit_records([self.record_of(job_id, job, due_ms=due_ms)])[0]

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
                raise self._refused(record, answer)

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
        reuse = tenant_of(job.tags) if job.reuse and job.repeatable else ""
        job = job.seeded(secrets.randbits(48))
        check_roles(job, self.ledger.placed)
        job = sized(job, self.ledger.placed)
        spec = self.archive.spec(job_id, job.to_json())
        return NewJob(job_id=job_id, kind=job.name, spec=spec, deadline_ms=int(job.deadline_s * 1000), prompt_bytes=prompt_bytes(job),
                      models=job.models, needs=needs(job), priority="" if job.priority == "normal" else job.priority, tags=job.tags, reuse=reuse)

    def ring(self, records: Sequence[NewJob], answers: Sequence[str]) -> None:
        """Wake whoever runs the jobs that the ledger has taken."""
        taken = [(r, a.removeprefix("ok ")) for r, a in zip(records, answers, strict=True) if a.startswith("ok ")]
        for n, (record, queue) in enumerate(taken):
            if record.kind not in SINGLE_KINDS:
                self.bell.advance(record.job_id, kind=record.kind, first=True)
            elif len(taken) < PER_BELL or n % PER_BELL == 0:
                self.bell.turn(Seat(record.job_id, 0, 0), queue, kind=record.kind)

    def _refused(self, record: NewJob, answer: str) -> SymposiaError:
        word, _, rest = answer.partition(" ")
        if word == "busy":
            return busy(rest)
        if word == "draining":
            return Busy(f"{rest} takes no new jobs: its queue is being drained. Submit once it is resumed (`symposia resume {rest}`).", retry_after_s=60.0)
        if word == "unplaced":
            return self._unplaced(rest)
        if word == "unable":
            need, model = rest.split(" ", 1)
            return unable(model, need, self.ledger.placed())
        if word == "toolong":
            context, longest, model = rest.split(" ", 2)
            return PromptTooLong(
                f"the prompt has {record.prompt_bytes:,} bytes; {model} takes {int(context):,} tokens of at most {longest} bytes each, so it cannot fit.",
                field="prompt", value=record.prompt_bytes, remedy="Shorten it, or use a checkpoint with a longer context.")
        return self.taken(record.job_id)

    def _unplaced(self, model: str) -> SymposiaError:
        placed = ", ".join(sorted(m for m in self.ledger.placed() if m != CHECKS)) or "none"
        if model.startswith("test/"):
            return NotPlaced(f"no pool serves the test checkpoints ({model!r}).", field="model", value=model,
                             remedy="Start one: symposia up --test-models")
        if self.archive.store.get(f"models/{model}/manifest.json") is not None:
            return NotPlaced(f"{model!r} is in the model store, but no pool is meant to serve it (served: {placed}).", field="model", value=model,
                             remedy=f"Start one: symposia up --model {model}")
        return UnknownModel(f"no checkpoint {model!r} is in the model store (served: {placed}).", field="model", value=model,
                            remedy=f"See `symposia models list`, or put it there: symposia models pull {model}")

    def taken(self, job_id: str) -> BadInput:
        """The refusal of an id that another job has."""
        return BadInput(f"a job {job_id!r} was submitted before.", field="job_id", value=job_id,
                        remedy="Read it with Client.handle(job_id), or submit under another id.")


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


def busy(told: str) -> Busy:
    """The ledger's ``SECONDS queue|jobs|memory COUNT QUEUE`` as an error."""
    seconds, what, count, queue = told.split(" ", 3)
    full = {"queue": f"{int(count):,} turns wait on {queue}, which is its limit", "jobs": f"{int(count):,} jobs are in flight, which is the limit",
            "memory": f"Redis holds {int(count) / 2**20:,.0f} MiB, more than the share of its maxmemory that jobs may fill"}[what]
    return Busy(f"{full}. Try again in about {seconds} s, or raise the limit (SYMPOSIA_LIMITS__QUEUE, __JOBS, __MEMORY).", retry_after_s=float(seconds))
