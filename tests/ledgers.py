"""Jobs in a bare ledger, for tests that need Redis and nothing else."""

from __future__ import annotations

import time
from typing import Any

from symposia_shared.jobs import Inference
from symposia_shared.ledger import Claim, Ledger, LedgerRound, NewJob

QUEUE = "q"


class Asked:
    """What these tests ask."""

    @staticmethod
    def job(**fields: Any) -> Inference:
        """One prompt."""
        return Inference(model="m", prompt="?", **fields)


def placed(ledger: Ledger, **queues: str) -> None:
    """Have models served: model → queue; without any, ``m`` on the queue ``q``."""
    ledger.place("pool", {model: {"queue": queue} for model, queue in (queues or {"m": QUEUE}).items()})


def new_job(job_id: str, *, model: str = "m", kind: str = "inference", deadline_ms: int = 60_000, **more: Any) -> NewJob:
    """A job's record."""
    return NewJob(job_id=job_id, kind=kind, spec=Asked.job().to_json(), deadline_ms=deadline_ms, prompt_bytes=1, models=(model,), **more)


def one_job(ledger: Ledger, job_id: str, **fields: Any) -> None:
    """One prompt, submitted."""
    placed(ledger)
    assert ledger.submit([new_job(job_id, **fields)]) == [f"ok {QUEUE}"]


def claim_one(ledger: Ledger, *, queue: str = QUEUE, wait_s: float = 0.0) -> Claim:
    """The next turn of a queue, waited for."""
    until = time.monotonic() + wait_s
    while True:
        claims = ledger.claim(most=1, pools=1, queues=[queue]).claims
        if claims or time.monotonic() > until:
            (claim,) = claims
            return claim
        time.sleep(0.01)


def round_of(ledger: Ledger, job_id: str) -> LedgerRound:
    """The current round of a job."""
    entry = ledger.job(job_id)
    assert entry is not None
    assert entry.round is not None
    return entry.round
