"""Jobs submitted behind an idempotency key: the same key and body is the same job, in any process, while it runs and afterwards."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from symposia.handle import Handle
from symposia_shared.archive import checked_id
from symposia_shared.errors import BadInput, Busy, StoreUnavailable
from symposia_shared.jobs import Job
from symposia_shared.ledger import NewJob
from symposia_shared.ledger.allowances import found_once
from symposia_shared.ledger.gate import Gate, Once, Rates, once_of
from symposia_shared.ledger.usage import tenant_of
from symposia_shared.submission import taken

if TYPE_CHECKING:
    from symposia.client import Client


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of the jobs of one request. ``before``: the key's entry, where they had been submitted before."""

    handles: list[Handle]
    before: Once | None = None
    rates: Rates = field(default_factory=Rates)


def submit_once(client: Client, job: Job, key: str, *, job_id: str | None = None, drawn: bool = False, at: datetime | None = None,
                delay_s: float = 0.0) -> Handle:
    """Record a job unless the key was used before; its handle either way. ``drawn``: no other job can have the id.

    Raises KeyReused, and what ``Client.submit`` raises.
    """
    once = once_of(tenant_of(job.tags), key, {"job": json.loads(job.to_json()), "at": at.isoformat() if at else None, "delay_s": float(delay_s)})
    known = job_id is not None and not drawn and (client.ledger.job(checked_id(job_id)) is not None or client.archive.result(job_id) is not None)
    before = found_once(client.ledger, once)  # after the look for the job: where that is this key's own, so is the key known
    if before is not None:
        return client.handle(before.job_ids[0])
    if job_id is not None and known:
        raise taken(job_id)
    if not job.repeatable:
        # seeded by the key: who repeats it under an id of his own writes the same papers again, and not those of another draw
        job = job.seeded(int(once.name[-12:], 16)).model_copy(update={"reuse": False})
    due_ms = client.due_ms(at, delay_s) if at is not None or delay_s > 0 else 0
    record = client.record_of(checked_id(job_id or uuid.uuid4().hex), job, due_ms=due_ms)
    return submit_behind(client, [record], Gate(once=once, life_ms=life_ms(client, [record]))).handles[0]


def submit_behind(client: Client, records: Sequence[NewJob], gate: Gate) -> Submitted:
    """Record the jobs of one request together, or find them recorded. Raises Limited, KeyReused and what ``Client.submit_records`` raises."""
    _ = client.bell
    answers: Sequence[str] = ()
    try:
        found = client.ledger.ask(records, gate, limits=client.settings.limits)
        answers = found.answers
        before = gate.once.check(found.before) if gate.once is not None and found.before is not None else None
        client.check(records, found.answers)
    except (BadInput, Busy):  # not where Redis was away: then they may have been recorded all the same
        if "exists" not in answers:  # else they are those of the job that exists
            _drop_papers(client, records)
        raise
    if before is not None:
        _drop_papers(client, [r for r in records if r.job_id not in before.job_ids])
        return Submitted([Handle(client, job_id) for job_id in before.job_ids], before=before)
    client.ring(records, found.answers)
    return Submitted([Handle(client, r.job_id) for r in records], rates=found.rates)


def life_ms(client: Client, records: Sequence[NewJob]) -> int:
    """How long a key is to be known: the setting, and the jobs' own time before it."""
    return int(client.settings.limits.idempotency_s * 1000) + max(r.deadline_ms for r in records)


def _drop_papers(client: Client, records: Sequence[NewJob]) -> None:
    """What was written for jobs that were not recorded is nobody's; what cannot be deleted now names no job, and does no harm."""
    with suppress(StoreUnavailable):
        for record in records:
            if record.spec.startswith("@"):
                client.archive.store.delete(record.spec[1:])
