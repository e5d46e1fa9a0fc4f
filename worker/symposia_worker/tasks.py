"""The Celery tasks. Each carries a place in the ledger and nothing else, and none of them raises."""

from __future__ import annotations

from celery import Celery

from symposia_shared.broker import ADVANCE, CLOSED, SETTLE, TURN
from symposia_shared.ledger import Seat
from symposia_worker.coordinator import Coordinator
from symposia_worker.pool import Pool


def pool_tasks(app: Celery, pool: Pool) -> None:
    """What a pool's worker runs."""

    @app.task(name=TURN, ignore_result=True)
    def turn(job_id: str, number: int, place: int) -> str:
        """One turn: claimed, run beside all others on this device, recorded."""
        return pool.tend(Seat(str(job_id), int(number), int(place)))


def coordinator_tasks(app: Celery, coordinator: Coordinator) -> None:
    """What a coordinator's worker runs."""

    @app.task(name=ADVANCE, ignore_result=True)
    def advance(job_id: str) -> str:
        """Open the job's next round, or commit its result."""
        return coordinator.advance(str(job_id))

    @app.task(name=SETTLE, ignore_result=True)
    def settle(job_id: str, number: int) -> str:
        """Close the round if its outcome can no longer change."""
        return coordinator.settle(str(job_id), int(number))

    @app.task(name=CLOSED, ignore_result=True)
    def closed(job_id: str, number: int) -> str:
        """A chord's body: close the round in the ledger, and advance."""
        return coordinator.closed(str(job_id), int(number))
