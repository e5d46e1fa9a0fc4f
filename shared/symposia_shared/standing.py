"""How a job in flight stands: its state, its round, and what it waits for."""

from __future__ import annotations

import time
from typing import Any, Literal

from symposia_shared.archive import Archive
from symposia_shared.errors import UnknownJob
from symposia_shared.jobs import SINGLE_KINDS
from symposia_shared.ledger import Ledger, LedgerJob, Seat
from symposia_shared.ledger.control import Control
from symposia_shared.values import Value

#: a worker whose heartbeat is older than this, in seconds, is taken to be away
AWAY_AFTER_S = 10.0


class Status(Value):
    """Where a job is now. ``round`` is None before its first round and after its end."""

    job_id: str
    state: Literal["queued", "running", "cancelling", "done", "failed", "cancelled"]
    round: int | None = None
    #: one line for each thing the job waits for; empty once it has ended
    waiting_for: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether there is a result."""
        return self.state in ("done", "failed", "cancelled")


def status(ledger: Ledger, archive: Archive, job_id: str) -> Status:
    """The status of a job, in flight or ended. Raises UnknownJob."""
    entry = ledger.job(job_id)
    if entry is None:
        result = archive.result(job_id)
        if result is None:
            raise UnknownJob(f"no job {job_id!r} is in the ledger or in {archive.store.uri(archive.result_key(job_id))}.", field="job_id",
                             value=job_id, remedy="List them with `symposia jobs`; another stack's folder is named with --dir.")
        return Status(job_id=job_id, state=result.state)
    waiting = _waiting_for(ledger, entry)
    if entry.state == "cancelled":
        return Status(job_id=job_id, state="cancelling", round=_round(entry), waiting_for=waiting)
    begun = entry.current > 0 or (entry.round is not None and any(t.attempts for t in entry.round.turns))
    return Status(job_id=job_id, state="running" if begun else "queued", round=_round(entry), waiting_for=waiting)


def _round(entry: LedgerJob) -> int | None:
    return entry.current if entry.current >= 0 else None


def alive(workers: dict[str, dict[str, Any]], role: str) -> list[dict[str, Any]]:
    """The workers of a role whose heartbeat is fresh, each with its ``name``."""
    now = time.time()
    return [{"name": name, **w} for name, w in workers.items() if w.get("role") == role and now - float(w.get("beat_at", 0)) < AWAY_AFTER_S]


def _waiting_for(ledger: Ledger, entry: LedgerJob) -> tuple[str, ...]:
    if entry.state == "later":
        return (time.strftime("its time, %Y-%m-%d %H:%M:%S UTC", time.gmtime(entry.due_ms / 1000)),)
    workers, held = ledger.workers(), Control(ledger).held()
    current = entry.round
    if current is None or current.closed is not None:
        what = "its first round" if current is None else f"what follows round {current.number}"
        if alive(workers, "coordinator") or (entry.kind in SINGLE_KINDS and alive(workers, "pool")):
            return (f"the coordinator: {what}",)
        return (f"a coordinator, for {what}: none is up",)
    served = {queue for w in alive(workers, "pool") if f"pool:{w['name']}" not in held for queue in w.get("queues", ())}
    lines = []
    for i, turn in enumerate(current.turns):
        label = f"turn {i} ({turn.queue.removeprefix('turns.')})"
        if turn.state.startswith("l"):
            lines.append(f"{label}: running")
        elif turn.state == "b":
            lines.append(f"{label}: its next try; it failed for a cause that may pass")
        elif turn.state.startswith("q") and held.get(f"queue:{turn.queue}") == "paused":
            lines.append(f"{label}: its queue is paused; `symposia resume {turn.queue.removeprefix('turns.')}`")
        elif turn.state.startswith("q") and turn.queue not in served:
            lines.append(f"{label}: a pool that serves {turn.queue.removeprefix('turns.')}; none is up, or all are paused")
        elif turn.state.startswith("q"):
            ahead = ledger.ahead(Seat(entry.job_id, current.number, i), turn.queue) or 0
            lines.append(f"{label}: queued, {ahead} ahead of it")
    return tuple(lines)
