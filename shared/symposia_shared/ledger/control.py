"""Pause, resume and drain, kept in Redis: the claim script reads it, so that no doorbell slips through.

    queue paused     its turns stay where they are; submits are taken. Deadlines go on
    queue draining   its turns run; submits are refused as Busy. Rounds of jobs in flight are still opened
    pool paused      it claims nothing more; what it holds ends
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from symposia_shared.ledger import Ledger, Seat, away

Held = Literal["paused", "draining"]


class Control:
    """What is held in a ledger. Every method may be repeated, and raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def hold_queue(self, queue: str, how: Held) -> None:
        """Pause or drain a queue; the last word counts."""
        self._set(f"queue:{queue}", how)

    def hold_pool(self, pool: str) -> None:
        """Let a pool claim nothing more. It is so told by name, and may be away or yet to come."""
        self._set(f"pool:{pool}", "paused")

    def resume_queue(self, queue: str) -> bool:
        """Take a queue's pause or drain back. False where there was none."""
        return self._clear(f"queue:{queue}")

    def resume_pool(self, pool: str) -> bool:
        """Let a pool claim again. False where it was not held."""
        return self._clear(f"pool:{pool}")

    def held(self) -> dict[str, Held]:
        """What is held: ``queue:NAME`` or ``pool:NAME`` → how."""
        with away():
            found: dict[str, Held] = self.ledger.redis.hgetall(self.ledger.key("paused"))
            return found

    def left(self, queue: str) -> int:
        """Turns of a queue that are queued, run, or wait for another try."""
        redis, key = self.ledger.redis, self.ledger.key
        with away():
            seats = [Seat.of(m) for m in (*redis.zrange(key("leases"), 0, -1), *redis.zrange(key("delayed"), 0, -1))]
            with redis.pipeline(transaction=False) as pipe:
                pipe.zcard(key(f"ready:{queue}"))
                for seat in seats:
                    pipe.hget(key(f"job:{seat.job_id}"), f"qn:{seat.round}:{seat.turn}")
                queued, *queues = pipe.execute()
        return int(queued) + sum(1 for q in queues if q == queue)

    def tagged(self, tag: str) -> list[str]:
        """The ids of the jobs in flight with a tag."""
        with away():
            return sorted(self.ledger.redis.smembers(self.ledger.key(f"tag:{tag}")))

    def in_flight(self) -> list[str]:
        """The ids of all jobs in flight, oldest first."""
        with away():
            return list(self.ledger.redis.zrange(self.ledger.key("jobs"), 0, -1))

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """Mark jobs cancelled, 500 in a round trip; returns those that were not and had not ended."""
        won: list[str] = []
        for start in range(0, len(job_ids), 500):
            chunk = job_ids[start:start + 500]
            with away(), self.ledger.redis.pipeline(transaction=False) as pipe:
                for job_id in chunk:
                    self.ledger.run("cancel", job_id, pipe=pipe)
                won += [job_id for job_id, answer in zip(chunk, pipe.execute(), strict=True) if answer == "won"]
        return won

    def _set(self, name: str, how: Held) -> None:
        with away():
            self.ledger.redis.hset(self.ledger.key("paused"), name, how)

    def _clear(self, name: str) -> bool:
        with away():
            return bool(self.ledger.redis.hdel(self.ledger.key("paused"), name))
