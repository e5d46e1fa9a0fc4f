"""What a submit is made of, for producers and for the coordinator that submits a batch's lines: the record, the ring, the refusal."""

from __future__ import annotations

from collections.abc import Sequence

from symposia_shared.admission import check_roles, needs, prompt_bytes, sized, unable
from symposia_shared.archive import Archive
from symposia_shared.broker import CHECKS, Doorbell
from symposia_shared.errors import BadInput, Busy, NotPlaced, PromptTooLong, SymposiaError, UnknownModel
from symposia_shared.jobs import SINGLE_KINDS, Job
from symposia_shared.ledger import Ledger, NewJob, Seat
from symposia_shared.ledger.usage import tenant_of
from symposia_shared.store import Store

#: of jobs submitted together, every so many share a doorbell: one bell claims as many turns (``pool.BELL_CLAIMS``)
PER_BELL = 8


def new_job(ledger: Ledger, archive: Archive, job_id: str, job: Job, *, seed: int) -> NewJob:
    """What the ledger is to record of a job: checked, its draws fixed by ``seed``, its JSON in S3 where it is long. Raises BadInput or StoreUnavailable."""
    reuse = tenant_of(job.tags) if job.reuse and job.repeatable else ""
    job = job.seeded(seed)
    check_roles(job, ledger.placed)
    job = sized(job, ledger.placed)
    spec = archive.spec(job_id, job.to_json())
    return NewJob(job_id=job_id, kind=job.name, spec=spec, deadline_ms=int(job.deadline_s * 1000), prompt_bytes=prompt_bytes(job),
                  models=job.models, needs=needs(job), priority="" if job.priority == "normal" else job.priority, tags=job.tags, reuse=reuse)


def ring(bell: Doorbell, records: Sequence[NewJob], answers: Sequence[str]) -> None:
    """Wake who is to work on the jobs that the ledger has taken."""
    taken = [(r, a.removeprefix("ok ")) for r, a in zip(records, answers, strict=True) if a.startswith("ok ")]
    for n, (record, queue) in enumerate(taken):
        if record.kind not in SINGLE_KINDS:
            bell.advance(record.job_id, kind=record.kind, first=True)
        elif len(taken) < PER_BELL or n % PER_BELL == 0:
            bell.turn(Seat(record.job_id, 0, 0), queue, kind=record.kind)


def refusal(ledger: Ledger, store: Store, record: NewJob, answer: str) -> SymposiaError:
    """The ledger's answer to a job it has not taken, as an error with its remedy."""
    word, _, rest = answer.partition(" ")
    if word == "busy":
        return busy(rest)
    if word == "draining":
        return Busy(f"{rest} takes no new jobs: its queue is being drained. Submit once it is resumed (`symposia resume {rest}`).", retry_after_s=60.0)
    if word == "unplaced":
        return _unplaced(ledger, store, rest)
    if word == "unable":
        need, model = rest.split(" ", 1)
        return unable(model, need, ledger.placed())
    if word == "toolong":
        context, longest, model = rest.split(" ", 2)
        return PromptTooLong(
            f"the prompt has {record.prompt_bytes:,} bytes; {model} takes {int(context):,} tokens of at most {longest} bytes each, so it cannot fit.",
            field="prompt", value=record.prompt_bytes, remedy="Shorten it, or use a checkpoint with a longer context.")
    return taken(record.job_id)


def taken(job_id: str) -> BadInput:
    """The refusal of an id that another job has."""
    return BadInput(f"a job {job_id!r} was submitted before.", field="job_id", value=job_id,
                    remedy="Read it with Client.handle(job_id), or submit under another id.")


def _unplaced(ledger: Ledger, store: Store, model: str) -> SymposiaError:
    placed = ", ".join(sorted(m for m in ledger.placed() if m != CHECKS)) or "none"
    if model.startswith("test/"):
        return NotPlaced(f"no pool serves the test checkpoints ({model!r}).", field="model", value=model,
                         remedy="Start one: symposia up --test-models")
    if store.get(f"models/{model}/manifest.json") is not None:
        return NotPlaced(f"{model!r} is in the model store, but no pool is meant to serve it (served: {placed}).", field="model", value=model,
                         remedy=f"Start one: symposia up --model {model}")
    return UnknownModel(f"no checkpoint {model!r} is in the model store (served: {placed}).", field="model", value=model,
                        remedy=f"See `symposia models list`, or put it there: symposia models pull {model}")


def busy(told: str) -> Busy:
    """The ledger's ``SECONDS queue|jobs|memory COUNT QUEUE`` as an error."""
    seconds, what, count, queue = told.split(" ", 3)
    full = {"queue": f"{int(count):,} turns wait on {queue}, which is its limit", "jobs": f"{int(count):,} jobs are in flight, which is the limit",
            "memory": f"Redis holds {int(count) / 2**20:,.0f} MiB, more than the share of its maxmemory that jobs may fill"}[what]
    return Busy(f"{full}. Try again in about {seconds} s, or raise the limit (SYMPOSIA_LIMITS__QUEUE, __JOBS, __MEMORY).", retry_after_s=float(seconds))
