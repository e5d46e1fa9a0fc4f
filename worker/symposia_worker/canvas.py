"""The one file that lowers a round to Celery: a group of turns fanned in by a chord; a lone turn is a chain.

The chord is the form a round has in Celery and in Flower. It knows only "all returned" and forgets if its keys are lost; so
its body asks the ledger, which is the truth, and everything still ends without it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery import Celery, chain, chord
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from symposia_shared.broker import CLOSED, COORDINATOR, TURN

log = logging.getLogger(__name__)


class CeleryCanvas:
    """Rounds as Celery canvases of one app; the job's id is the root id of each."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def round(self, job_id: str, kind: str, number: int, queues: Mapping[int, str]) -> None:
        """Ring for the turns of a round that need not wait for others (place → queue); the body advances the job.

        A round that cannot be sent waits in the ledger.
        """
        turns = [self._turn(job_id, kind, number, place, queue) for place, queue in queues.items()]
        body = self._signature(CLOSED, (job_id, number), COORDINATOR, job_id, shadow=f"{kind}.round", shown=f"{job_id} r{number}")
        try:
            if len(turns) == 1:
                chain(turns[0], body).apply_async(root_id=job_id)
            else:
                chord(turns, body).apply_async(root_id=job_id)
        except (OperationalError, RedisError, OSError) as error:
            log.warning("%s r%d could not be rung (%s); the pools find its turns by themselves", job_id, number, error)

    def _turn(self, job_id: str, kind: str, number: int, place: int, queue: str) -> Any:
        return self._signature(TURN, (job_id, number, place), queue, job_id, shadow=kind, shown=f"{job_id} r{number} t{place}")

    def _signature(self, task: str, args: tuple[Any, ...], queue: str, root: str, *, shadow: str, shown: str) -> Any:
        return self.app.signature(task, args=args, immutable=True, options={
            "queue": queue, "root_id": root, "ignore_result": True, "shadow": shadow, "argsrepr": f"({shown})", "kwargsrepr": "{}",
        })
